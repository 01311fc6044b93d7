//! Layers whose tokens mix by the gated delta rule, after a short convolution; both keep a state.

use ocelli_engine::batch::Packed;
use ocelli_engine::kv::KvCache;
use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::ops::{self, Activation, ConvForm, Pointwise};

use super::short_conv::{Filters, floats, sequences, states};
use super::{ConvPlan, DeltaPlan, LayerPlan, TextPlan};
use crate::layers::{Norm, Stacked};

/// What mixes the tokens of such a layer.
pub(super) struct DeltaRule {
    path: String,
    plan: DeltaPlan,
    /// Queries, keys and values; gates of the results; `b`; `a`.
    pub input: Stacked,
    filters: Filters,
    /// f32 `[2, heads_v]`: rates of decay, and what is added to `a`.
    decay: Tensor,
    norm: Norm,
}

impl DeltaRule {
    pub(super) fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &TextPlan, delta: DeltaPlan) -> Result<Self> {
        let heads = delta.heads_v;
        let parts = [
            (scope.at("in_proj_qkv"), delta.channels()),
            (scope.at("in_proj_z"), delta.width()),
            (scope.at("in_proj_b"), heads),
            (scope.at("in_proj_a"), heads),
        ];
        let vector = |name: &str| {
            scope.take(name, &[heads])?;
            scope.checkpoint().floats(&scope.path(name))
        };
        let (rates, bias) = (vector("A_log")?, vector("dt_bias")?);
        let decay = rates.into_iter().map(f32::exp).chain(bias);
        let filters = ConvPlan { taps: delta.taps, bias: false };
        Ok(Self {
            path: scope.prefix().to_owned(),
            plan: delta,
            input: Stacked::load(cx, scope.prefix(), &parts, plan.d, false)?,
            filters: Filters::load(cx, &scope.at("conv1d"), delta.channels(), filters)?,
            decay: floats(cx, &[2, heads], decay)?,
            norm: Norm::rms(cx, &scope.at("norm"), delta.d_v, plan.norm_eps)?,
        })
    }

    /// `x: [tokens, channels + width + 2 heads_v]  ->  [tokens, width]`; states of the convolution are those of `layer.kv`.
    pub(super) fn forward(
        &self,
        cx: &mut Ctx,
        x: &Tensor,
        layer: LayerPlan,
        state: (usize, usize),
        batch: &Packed,
        kv: &KvCache,
    ) -> Result<Tensor> {
        let (tokens, channels, width) = (x.size(0), self.plan.channels(), self.plan.width());
        let heads = self.plan.heads_v;
        let qkv = x.narrow(1, 0, channels)?;
        let qkv = self.filters.forward(cx, &qkv, ConvForm::Silu, layer.kv, batch, kv)?;
        let gates = x.narrow(1, channels + width, 2 * heads)?;
        let out = cx.alloc(&[tokens, width], cx.dtype())?;
        let states = states(kv, state, &self.path)?;
        for run in &batch.runs {
            let rows = |x: &Tensor| cx.view(&x.narrow(0, run.rows.start, run.rows.len())?);
            let op = ops::GatedDelta {
                qkv: rows(&qkv)?,
                gates: rows(&gates)?,
                decay: cx.view(&self.decay)?,
                state: states.clone(),
                seqs: sequences(cx, batch, run, state.0, &self.path)?,
                out: rows(&out)?,
            };
            cx.exec(&self.path, &op)?;
        }
        let of_heads = out.reshape(&[tokens * heads, self.plan.d_v])?;
        self.norm.write_to(cx, &of_heads, &of_heads)?;
        let (z, result) = (cx.view(&x.narrow(1, channels, width)?)?, cx.view(&out)?);
        let op = Pointwise { act: Activation::Silu, by: Some(result.clone()), ..Pointwise::new(z, result) };
        cx.exec(&self.path, &op)?;
        Ok(out)
    }
}
