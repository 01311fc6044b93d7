//! Normalization layers.

use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::View;
use ocelli_kernels::ops::{self, NormKind, RowNorm};

/// RMS or layer normalization with its weights.
#[derive(Clone, Debug)]
pub struct Norm {
    path: String,
    kind: NormKind,
    weight: View,
    bias: Option<View>,
    eps: f32,
}

impl Norm {
    /// RMS normalization of `d` features, at `scope`.
    pub fn rms(cx: &mut Ctx, scope: &Scope<'_>, d: usize, eps: f32) -> Result<Self> {
        Self::load(cx, scope, d, eps, NormKind::Rms)
    }

    /// Layer normalization of `d` features with a shift, at `scope`.
    pub fn layer(cx: &mut Ctx, scope: &Scope<'_>, d: usize, eps: f32) -> Result<Self> {
        Self::load(cx, scope, d, eps, NormKind::Layer)
    }

    fn load(cx: &mut Ctx, scope: &Scope<'_>, d: usize, eps: f32, kind: NormKind) -> Result<Self> {
        let weight = cx.stream().place_view(&scope.tensor("weight", &[d])?)?;
        let bias = match kind {
            NormKind::Rms => None,
            NormKind::Layer => Some(cx.stream().place_view(&scope.tensor("bias", &[d])?)?),
        };
        Ok(Self { path: scope.prefix().to_owned(), kind, weight, bias, eps })
    }

    /// The weights.
    pub fn views(&self) -> impl Iterator<Item = &View> {
        [Some(&self.weight), self.bias.as_ref()].into_iter().flatten()
    }

    /// What a product does to the rows of its input first, if it can: RMS normalization alone.
    #[must_use]
    pub fn of_rows(&self) -> Option<RowNorm> {
        let norm = RowNorm { weight: self.weight.clone(), weight_offset: 0.0, eps: self.eps };
        (self.kind == NormKind::Rms).then_some(norm)
    }

    /// `x: [rows, d]  ->  [rows, d]`.
    pub fn forward(&self, cx: &mut Ctx, x: &Tensor) -> Result<Tensor> {
        let out = cx.alloc(x.shape(), cx.dtype())?;
        let op = ops::Norm {
            x: cx.view(x)?,
            add: None,
            sum: None,
            weight: Some(self.weight.clone()),
            bias: self.bias.clone(),
            kind: self.kind,
            weight_offset: 0.0,
            eps: self.eps,
            out: cx.view(&out)?,
        };
        cx.exec(&self.path, &op)?;
        Ok(out)
    }
}
