//! Normalization of groups of channels over a picture.

use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::View;
use ocelli_kernels::ops::{self, Activation};

/// Group normalization with its weights.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    path: String,
    weight: View,
    bias: View,
    groups: usize,
    eps: f32,
}

impl GroupNorm {
    /// Loads scale and shift of `channels` channels, in so many groups, at `scope`.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, channels: usize, groups: usize, eps: f32) -> Result<Self> {
        let weight = cx.stream().place_view(&scope.take("weight", &[channels])?)?;
        let bias = cx.stream().place_view(&scope.take("bias", &[channels])?)?;
        Ok(Self { path: scope.prefix().to_owned(), weight, bias, groups, eps })
    }

    /// `act(norm(x))` of one picture: `x: [rows, channels]  ->  [rows, channels]`.
    pub fn forward_act(&self, cx: &mut Ctx, x: &Tensor, act: Activation) -> Result<Tensor> {
        let out = cx.alloc(x.shape(), cx.dtype())?;
        let op = ops::GroupNorm {
            x: cx.view(x)?,
            weight: self.weight.clone(),
            bias: self.bias.clone(),
            rows: x.size(0),
            groups: self.groups,
            eps: self.eps,
            act,
            out: cx.view(&out)?,
        };
        cx.exec(&self.path, &op)?;
        Ok(out)
    }
}
