//! Experts beside an MLP, each with norms of its own.
//!
//! After `Gemma4TextDecoderLayer` of transformers.

use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Result, Tensor};

use super::TextPlan;
use crate::layers::{Experts, ExpertsPlan, Norm, add_rows};

/// Experts, the norms around them, and that after the MLP.
pub struct Beside {
    path: String,
    experts: Experts,
    routed: Norm,
    before: Norm,
    after: Norm,
    of_mlp: Norm,
}

impl Beside {
    /// Loads the experts and norms of the layer at `scope`.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &TextPlan, experts: &ExpertsPlan) -> Result<Self> {
        let (d, eps) = (plan.d, plan.norm_eps);
        let norm = |cx: &mut Ctx, name: &str| Norm::rms(cx, &scope.at(name), d, eps);
        Ok(Self {
            path: scope.prefix().to_owned(),
            experts: Experts::load(cx, scope, experts)?,
            routed: Norm::rms_times(cx, &scope.at("router"), "scale", d, eps, (d as f32).sqrt().recip())?,
            before: norm(cx, "pre_feedforward_layernorm_2")?,
            after: norm(cx, "post_feedforward_layernorm_2")?,
            of_mlp: norm(cx, "post_feedforward_layernorm_1")?,
        })
    }

    /// `out = norm(out) + norm(experts(norm(h)))`, `out` being what the MLP gave. `steps`: see [`Experts::write_to`].
    pub fn add_to(&self, cx: &mut Ctx, h: &Tensor, out: &Tensor, steps: bool) -> Result<()> {
        self.of_mlp.write_to(cx, out, out)?;
        cx.scope(|cx| {
            let (routed, x) = (self.routed.forward(cx, h)?, self.before.forward(cx, h)?);
            let result = cx.alloc(h.shape(), cx.dtype())?;
            self.experts.write_to(cx, &routed, &x, &result, false, steps)?;
            self.after.write_to(cx, &result, &result)?;
            add_rows(cx, &self.path, out, &result)
        })
    }
}
