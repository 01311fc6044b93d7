//! The loss of pairs that belong together among all that do not, and its gradients, without the gradients of all pairs in memory.
//!
//! With `z[i, j] = exp(scale) (a[i] . b[j]) + bias`, and `n` pairs of which row `i` of `a` and row `i` of `b` are one:
//!
//! - softmax (CLIP): `loss = 1/2n sum_i (ln sum_j exp z[i, j] + ln sum_j exp z[j, i] - 2 z[i, i])`;
//! - sigmoid (SigLIP): `loss = 1/n sum_ij ln (1 + exp(-t z[i, j]))`, where `t` is 1 for `i = j`, else -1.
//!
//! With `dz` the gradient of `z`: `da[i] = exp(scale) sum_j dz[i, j] b[j]`, `db[j] = exp(scale) sum_i dz[i, j] a[i]`,
//! `d_scale += sum_ij dz[i, j] (z[i, j] - bias)`, `d_bias += sum_ij dz[i, j]`. Without pairs the loss is 0.

mod cpu;
mod reference;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::check;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// Which loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContrastiveKind {
    /// Cross entropy of each row among all of the other side, both ways: CLIP's.
    #[default]
    Softmax,
    /// Each pair by itself: SigLIP's.
    Sigmoid,
}

/// `a, b: [n, d]  scale, bias: [1]  ->  loss: [1]  da, db: [n, d]  d_scale, d_bias: [1]`, all f32.
#[derive(Clone, Debug)]
pub struct ContrastiveLoss {
    /// Vectors of one side `[n, d]`.
    pub a: View,
    /// Vectors of the other side `[n, d]`.
    pub b: View,
    /// Logarithm of the factor of the products `[1]`.
    pub scale: View,
    /// Added to the scaled products `[1]`.
    pub bias: Option<View>,
    /// Which loss.
    pub kind: ContrastiveKind,
    /// The loss in nats a pair `[1]`.
    pub loss: View,
    /// Gradient of `a` `[n, d]`, which is written.
    pub da: Option<View>,
    /// Gradient of `b` `[n, d]`, which is written.
    pub db: Option<View>,
    /// Gradient of `scale` `[1]`: added to.
    pub d_scale: Option<View>,
    /// Gradient of `bias` `[1]`: added to. Needs `bias`.
    pub d_bias: Option<View>,
}

/// The key of a [`ContrastiveLoss`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct ContrastiveLossSpec {
    /// Pairs, bucketed.
    pub n: u32,
    /// Length of the vectors.
    pub d: u32,
    /// Which loss.
    pub kind: ContrastiveKind,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether the gradient of `a` is wanted.
    pub da: bool,
    /// Whether that of `b` is.
    pub db: bool,
    /// Whether that of the scale is.
    pub d_scale: bool,
    /// Whether that of the bias is.
    pub d_bias: bool,
}

impl ContrastiveLoss {
    /// Whether anything but the loss is wanted.
    fn has_gradients(&self) -> bool {
        self.da.is_some() || self.db.is_some() || self.d_scale.is_some() || self.d_bias.is_some()
    }
}

impl Op for ContrastiveLoss {
    const NAME: &'static str = "contrastive_loss";
    type Spec = ContrastiveLossSpec;

    fn spec(&self) -> Result<ContrastiveLossSpec, ShapeError> {
        let Self { a, b, scale, bias, loss, da, db, d_scale, d_bias, .. } = self;
        check::rank("a", a, 2)?;
        check::dtype("a", a, DType::F32)?;
        check::dtype("b", b, DType::F32)?;
        check::shape("b", b, a.shape())?;
        check::dtype("scale", scale, DType::F32)?;
        check::shape("scale", scale, &[1])?;
        let mut inputs = vec![("a", a), ("b", b), ("scale", scale)];
        if let Some(bias) = bias {
            check::dtype("bias", bias, DType::F32)?;
            check::shape("bias", bias, &[1])?;
            inputs.push(("bias", bias));
        } else if d_bias.is_some() {
            return Err(ShapeError::mismatch("d_bias", "a `bias` to go with it", "none"));
        }
        let vectors = a.shape();
        let results: [(&str, Option<&View>, &[usize]); 5] = [
            ("loss", Some(loss), &[1]),
            ("da", da.as_ref(), vectors),
            ("db", db.as_ref(), vectors),
            ("d_scale", d_scale.as_ref(), &[1]),
            ("d_bias", d_bias.as_ref(), &[1]),
        ];
        for (name, view, shape) in results {
            let Some(view) = view else { continue };
            check::dtype(name, view, DType::F32)?;
            check::shape(name, view, shape)?;
            check::output(name, view, inputs.iter().copied())?;
            inputs.push((name, view));
        }
        Ok(ContrastiveLossSpec {
            n: bucket(a.size(0)),
            d: a.size(1) as u32,
            kind: self.kind,
            bias: bias.is_some(),
            da: da.is_some(),
            db: db.is_some(),
            d_scale: d_scale.is_some(),
            d_bias: d_bias.is_some(),
        })
    }

    fn cost(&self) -> Cost {
        let (n, d) = (self.a.size(0) as u64, self.a.size(1) as u64);
        let bytes = |view: &Option<View>| view.as_ref().map_or(0, View::bytes);
        let products = 1 + u64::from(self.da.is_some()) + u64::from(self.db.is_some());
        let of_pair = if self.has_gradients() { 40 } else { 20 };
        Cost {
            flops: 2 * products * n * n * d + of_pair * n * n,
            read: self.a.bytes() + self.b.bytes() + bytes(&self.d_scale) + bytes(&self.d_bias) + 8,
            written: self.loss.bytes()
                + bytes(&self.da)
                + bytes(&self.db)
                + bytes(&self.d_scale)
                + bytes(&self.d_bias),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        for view in [&mut self.a, &mut self.b, &mut self.scale].into_iter().chain(&mut self.bias) {
            visit(Access::In, view);
        }
        for view in std::iter::once(&mut self.loss).chain(&mut self.da).chain(&mut self.db) {
            visit(Access::Out, view);
        }
        for view in self.d_scale.iter_mut().chain(&mut self.d_bias) {
            visit(Access::InOut, view);
        }
    }

    fn of_spec(spec: &ContrastiveLossSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let shape = [spec.n as usize, spec.d as usize];
        let mut to =
            |wanted: bool, shape: &[usize]| wanted.then(|| operands.output(shape, DType::F32)).transpose();
        let (da, db) = (to(spec.da, &shape)?, to(spec.db, &shape)?);
        let (d_scale, d_bias) = (to(spec.d_scale, &[1])?, to(spec.d_bias, &[1])?);
        Ok(Self {
            a: operands.activations(&shape, DType::F32)?,
            b: operands.activations(&shape, DType::F32)?,
            scale: operands.floats(&[1], &|_| 1.0)?,
            bias: spec.bias.then(|| operands.floats(&[1], &|_| -2.0)).transpose()?,
            kind: spec.kind,
            loss: operands.output(&[1], DType::F32)?,
            da,
            db,
            d_scale,
            d_bias,
        })
    }

    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError> {
        reference::reference(self, io)
    }

    #[cfg(feature = "conformance")]
    fn cases(cx: &mut crate::conformance::CaseCx) -> Vec<crate::conformance::Case<Self>> {
        cases::cases(cx)
    }
}

#[cfg(feature = "wgpu")]
impl crate::wgpu::WgpuOp for ContrastiveLoss {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for ContrastiveLoss {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
