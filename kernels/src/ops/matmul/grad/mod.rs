//! The gradients of a product: of its rows, its weights and its biases.
//!
//! Of `z = x w^T + bias`: `dx += dz w`, `d_weight += dz^T x`, `d_bias += sum of the rows of dz`.

mod cpu;
mod reference;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

pub(in crate::ops) use self::cpu::{Turned, TurnedRows};
use crate::buffer::{View, Weights};
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::ops::check;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, Format, KernelError, ShapeError, bucket};

/// Gradients of one of the tensors that weights are stacked from. Both are added to.
#[derive(Clone, Debug, Default)]
pub struct PartGrad {
    /// f32 `[rows, k]`.
    pub weight: Option<View>,
    /// f32 `[rows]`.
    pub bias: Option<View>,
}

/// `dz: [m, n]  x: [m, k]  w: [n, k]  ->  dx: [m, k]  d_weight: [n, k]  d_bias: [n]`, all of f32 but `w`.
#[derive(Clone, Debug)]
pub struct MatmulGrad {
    /// Gradient of the biased products `[m, n]`, before any activation; rows may be strided.
    pub dz: View,
    /// The rows that were multiplied `[m, k]`; rows may be strided.
    pub x: View,
    /// Weights `[n, k]` of any format along `k`.
    pub w: Weights,
    /// Gradient of `x`, which is added to.
    pub dx: Option<View>,
    /// Gradients of the parts of `w`; as many as there are parts, or none.
    pub parts: SmallVec<[PartGrad; 3]>,
}

/// The key of a [`MatmulGrad`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct MatmulGradSpec {
    /// Rows of `x`, bucketed.
    pub m: u32,
    /// Rows of `w`.
    pub n: u32,
    /// Columns of both.
    pub k: u32,
    /// Format of the weights.
    pub w: Format,
    /// Stored tensors that make up `w`; 0 stands for one.
    pub parts: u32,
    /// Whether the gradient of `x` is wanted.
    pub dx: bool,
    /// Whether that of any weight is.
    pub d_weight: bool,
    /// Whether that of any bias is.
    pub d_bias: bool,
}

impl Op for MatmulGrad {
    const NAME: &'static str = "matmul_grad";
    type Spec = MatmulGradSpec;

    fn spec(&self) -> Result<MatmulGradSpec, ShapeError> {
        let Self { dz, x, w, dx, parts } = self;
        check::rank("x", x, 2)?;
        check::dtype("x", x, DType::F32)?;
        let (m, n, k) = (x.size(0), w.n(), w.k());
        if x.size(1) != k {
            return Err(ShapeError::mismatch("x axis 1", k, x.size(1)));
        }
        check::dtype("dz", dz, DType::F32)?;
        check::shape("dz", dz, &[m, n])?;
        let mut inputs = vec![("dz", dz), ("x", x)];
        for part in w.parts() {
            inputs.extend(part.planes.iter().map(|view| ("w", view)));
        }
        let mut outputs = Vec::new();
        if let Some(dx) = dx {
            check::dtype("dx", dx, DType::F32)?;
            check::shape("dx", dx, &[m, k])?;
            outputs.push(("dx", dx));
        }
        if !parts.is_empty() && parts.len() != w.parts().len() {
            return Err(ShapeError::mismatch(
                "gradients of parts",
                format!("{}, as w has", w.parts().len()),
                parts.len(),
            ));
        }
        for (grad, part) in parts.iter().zip(w.parts()) {
            if let Some(weight) = &grad.weight {
                check::dtype("d_weight", weight, DType::F32)?;
                check::shape("d_weight", weight, &[part.rows, k])?;
                outputs.push(("d_weight", weight));
            }
            if let Some(bias) = &grad.bias {
                check::dtype("d_bias", bias, DType::F32)?;
                check::shape("d_bias", bias, &[part.rows])?;
                outputs.push(("d_bias", bias));
            }
        }
        for (i, (name, view)) in outputs.iter().enumerate() {
            let others = outputs[..i].iter().copied();
            check::output(name, view, inputs.iter().copied().chain(others))?;
        }
        Ok(MatmulGradSpec {
            m: bucket(m),
            n: n as u32,
            k: k as u32,
            w: w.format(),
            parts: if w.parts().len() == 1 { 0 } else { w.parts().len() as u32 },
            dx: dx.is_some(),
            d_weight: parts.iter().any(|part| part.weight.is_some()),
            d_bias: parts.iter().any(|part| part.bias.is_some()),
        })
    }

    fn cost(&self) -> Cost {
        let (m, n, k) = (self.x.size(0) as u64, self.w.n() as u64, self.w.k() as u64);
        let weights: u64 = self.parts.iter().filter_map(|part| part.weight.as_ref()).map(View::bytes).sum();
        let products = u64::from(self.dx.is_some()) + u64::from(weights > 0);
        let dx = self.dx.as_ref().map_or(0, View::bytes);
        let w = if self.dx.is_some() { self.w.bytes() } else { 0 };
        let x = if weights > 0 { self.x.bytes() } else { 0 };
        Cost {
            flops: 2 * products * m * n * k,
            read: products * self.dz.bytes() + w + x + dx + weights,
            written: dx + weights,
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.dz);
        visit(Access::In, &mut self.x);
        self.w.for_each_view(&mut |view| visit(Access::In, view));
        let parts = self.parts.iter_mut().flat_map(|part| [&mut part.weight, &mut part.bias]);
        for view in parts.chain([&mut self.dx]).flatten() {
            visit(Access::InOut, view);
        }
    }

    fn weights(&mut self) -> Option<&mut Weights> {
        Some(&mut self.w)
    }

    fn of_spec(spec: &MatmulGradSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
        let w = operands.weights(spec.w, n, k, spec.parts.max(1) as usize, false)?;
        let mut parts = SmallVec::new();
        for part in w.parts() {
            let weight = spec.d_weight.then(|| operands.output(&[part.rows, k], DType::F32)).transpose()?;
            let bias = spec.d_bias.then(|| operands.output(&[part.rows], DType::F32)).transpose()?;
            parts.push(PartGrad { weight, bias });
        }
        Ok(Self {
            dz: operands.activations(&[m, n], DType::F32)?,
            x: operands.activations(&[m, k], DType::F32)?,
            dx: spec.dx.then(|| operands.output(&[m, k], DType::F32)).transpose()?,
            w,
            parts,
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
impl crate::wgpu::WgpuOp for MatmulGrad {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for MatmulGrad {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
