//! Normalization layers.

use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::ops::{self, NormKind, QkNorm, Rope, RopeStyle, RowNorm};
use ocelli_kernels::{DType, View};

/// RMS or layer normalization with its weights.
#[derive(Clone, Debug)]
pub struct Norm {
    path: String,
    kind: NormKind,
    weight: View,
    /// Added to each weight.
    offset: f32,
    bias: Option<View>,
    eps: f32,
}

impl Norm {
    /// RMS normalization of `d` features, at `scope`.
    pub fn rms(cx: &mut Ctx, scope: &Scope<'_>, d: usize, eps: f32) -> Result<Self> {
        Self::load(cx, scope, d, eps, NormKind::Rms)
    }

    /// RMS normalization of `d` features, at `scope`, with `offset` added to the stored weights.
    pub fn rms_offset(cx: &mut Ctx, scope: &Scope<'_>, d: usize, eps: f32, offset: f32) -> Result<Self> {
        Ok(Self { offset, ..Self::load(cx, scope, d, eps, NormKind::Rms)? })
    }

    /// Normalization of either kind without a shift, at `scope`, with `offset` added to the stored weights.
    pub fn unshifted(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        d: usize,
        kind: NormKind,
        (eps, offset): (f32, f32),
    ) -> Result<Self> {
        Ok(Self { kind, ..Self::rms_offset(cx, scope, d, eps, offset)? })
    }

    /// Layer normalization of `d` features with a shift, at `scope`.
    pub fn layer(cx: &mut Ctx, scope: &Scope<'_>, d: usize, eps: f32) -> Result<Self> {
        Self::load(cx, scope, d, eps, NormKind::Layer)
    }

    /// Normalization of `d` features, at `scope`; layer normalization has a shift.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, d: usize, eps: f32, kind: NormKind) -> Result<Self> {
        let weight = cx.stream().place_view(&scope.take("weight", &[d])?)?;
        let bias = match kind {
            NormKind::Rms => None,
            NormKind::Layer => Some(cx.stream().place_view(&scope.take("bias", &[d])?)?),
        };
        Ok(Self { path: scope.prefix().to_owned(), kind, weight, offset: 0.0, bias, eps })
    }

    /// RMS normalization by the weights `name` at `scope`, each times `factor`, which are kept in f32.
    pub fn rms_times(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        name: &str,
        d: usize,
        eps: f32,
        factor: f32,
    ) -> Result<Self> {
        scope.take(name, &[d])?;
        let weights = scope.checkpoint().floats(&scope.path(name))?;
        let weights: Vec<f32> = weights.into_iter().map(|weight| weight * factor).collect();
        Self::of_weights(cx, scope.prefix().to_owned(), &weights, eps)
    }

    /// RMS normalization of `d` features without weights; `path` names it in errors.
    pub fn bare(cx: &mut Ctx, path: impl Into<String>, d: usize, eps: f32) -> Result<Self> {
        Self::of_weights(cx, path.into(), &vec![1.0; d], eps)
    }

    fn of_weights(cx: &mut Ctx, path: String, weights: &[f32], eps: f32) -> Result<Self> {
        let table = cx.alloc_owned(&[weights.len()], DType::F32)?;
        let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        cx.stream().write(table.view(), &bytes)?;
        Ok(Self { path, kind: NormKind::Rms, weight: table.view().clone(), offset: 0.0, bias: None, eps })
    }

    /// RMS normalization of heads, in place: of `q` by these weights, of `k` by those of `keys`; `q, k: [rows, heads, d]`, `k` of any
    /// number of heads. `positions`: i32 `[axes, rows]`.
    pub fn heads(&self, cx: &mut Ctx, q: &Tensor, k: &Tensor, keys: &Self, positions: &Tensor) -> Result<()> {
        let norm = QkNorm {
            q: self.weight.clone(),
            k: keys.weight.clone(),
            weight_offset: self.offset,
            eps: self.eps,
        };
        // A rotation of no pairs is a norm alone.
        let none = cx.alloc(&[0], DType::F32)?;
        let op = Rope {
            q: cx.view(q)?,
            k: cx.view(k)?,
            positions: cx.view(positions)?,
            inv_freq: cx.view(&none)?,
            pair_axis: None,
            style: RopeStyle::Half,
            attention_scaling: 1.0,
            norm: Some(norm),
            kv: None,
        };
        cx.exec(&self.path, &op)
    }

    /// What a product does to the rows of its input first, if it can: RMS normalization alone.
    #[must_use]
    pub fn of_rows(&self) -> Option<RowNorm> {
        let norm = RowNorm { weight: self.weight.clone(), weight_offset: self.offset, eps: self.eps };
        (self.kind == NormKind::Rms).then_some(norm)
    }

    /// Scale of each feature, with what is added to it and to the mean square.
    #[must_use]
    pub fn scale(&self) -> (&View, f32, f32) {
        (&self.weight, self.offset, self.eps)
    }

    /// `x: [rows, d]  ->  [rows, d]`.
    pub fn forward(&self, cx: &mut Ctx, x: &Tensor) -> Result<Tensor> {
        let out = cx.alloc(x.shape(), cx.dtype())?;
        self.write(cx, x, None, &out)?;
        Ok(out)
    }

    /// `out = norm(x)`; `out` may be `x` itself.
    pub fn write_to(&self, cx: &mut Ctx, x: &Tensor, out: &Tensor) -> Result<()> {
        self.write(cx, x, None, out)
    }

    /// `h += add`, then `out = norm(h)`.
    pub fn add_to(&self, cx: &mut Ctx, h: &Tensor, add: &Tensor, out: &Tensor) -> Result<()> {
        self.write(cx, h, Some(add), out)
    }

    fn write(&self, cx: &mut Ctx, x: &Tensor, add: Option<&Tensor>, out: &Tensor) -> Result<()> {
        let view = cx.view(x)?;
        let op = ops::Norm {
            add: add.map(|add| cx.view(add)).transpose()?,
            sum: add.map(|_| view.clone()),
            x: view,
            weight: Some(self.weight.clone()),
            bias: self.bias.clone(),
            kind: self.kind,
            weight_offset: self.offset,
            eps: self.eps,
            out: cx.view(out)?,
        };
        cx.exec(&self.path, &op)
    }
}
