//! What each layer of a decoder takes of a token beside the result of the layer before: rows of a second table of embeddings, and a
//! projection of the first layer's input.
//!
//! After `Gemma4TextModel.project_per_layer_inputs` of transformers.

use ocelli_engine::batch::Packed;
use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::ops::{Activation, Pointwise, ScatterRows};

use super::{InputsPlan, TextPlan};
use crate::layers::{Embedding, Linear, Norm, add_rows};

/// Inputs of all layers.
pub struct Inputs {
    plan: InputsPlan,
    layers: usize,
    path: String,
    table: Embedding,
    proj: Linear,
    norm: Norm,
}

impl Inputs {
    /// Loads the second table and the projection of the decoder below `scope`.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &TextPlan, inputs: InputsPlan) -> Result<Self> {
        let (layers, d) = (plan.layers.len(), inputs.d);
        let width = layers * d;
        // Both parts count half; the projection's factor 1 / sqrt(d) is the same as a larger epsilon.
        let half = std::f32::consts::FRAC_1_SQRT_2;
        let table = scope.role(Role::Embedding).at("embed_tokens_per_layer");
        let table = Embedding::load(cx, &table, plan.vocab, width, (d as f32).sqrt() * half)?;
        let norm = scope.at("per_layer_projection_norm");
        Ok(Self {
            path: scope.prefix().to_owned(),
            table: match &plan.placeholders {
                Some((ids, by)) => table.with_stand_in(ids, *by),
                None => table,
            },
            proj: Linear::load(cx, &scope.at("per_layer_model_projection"), width, plan.d, false)?,
            norm: Norm::rms_times(cx, &norm, "weight", d, plan.norm_eps * plan.d as f32, half)?,
            plan: inputs,
            layers,
        })
    }

    /// `h: [tokens, d_model]  ->  [tokens, layers * d]`; features of pictures, which are in `h`, have the row of one token in the table.
    pub fn forward(&self, cx: &mut Ctx, h: &Tensor, batch: &Packed) -> Result<Tensor> {
        let rows = self.table.forward(cx, &batch.ids)?;
        cx.scope(|cx| {
            for (_, at) in &batch.features {
                let ids = cx.upload(&[at.size(0)], &vec![self.plan.pad as i32; at.size(0)])?;
                let src = self.table.forward(cx, &ids)?;
                let op = ScatterRows { src: cx.view(&src)?, rows: cx.view(at)?, out: cx.view(&rows)? };
                cx.exec(&self.path, &op)?;
            }
            let projected = self.proj.forward(cx, h)?;
            let each = projected.reshape(&[h.size(0) * self.layers, self.plan.d])?;
            self.norm.write_to(cx, &each, &each)?;
            add_rows(cx, &self.path, &rows, &projected)
        })?;
        Ok(rows)
    }

    /// The part of a layer, `[tokens, d]`.
    pub fn of(&self, rows: &Tensor, layer: usize) -> Result<Tensor> {
        rows.narrow(1, layer * self.plan.d, self.plan.d)
    }
}

/// How a layer takes its input: `norm(proj(act(gate h) * input))`.
pub struct Taking {
    path: String,
    act: Activation,
    gate: Linear,
    proj: Linear,
    norm: Norm,
}

impl Taking {
    /// Loads gate, projection and norm of the layer at `scope`; what is taken has a factor.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        plan: &TextPlan,
        inputs: InputsPlan,
        factor: f32,
    ) -> Result<Self> {
        let norm = scope.at("post_per_layer_input_norm");
        Ok(Self {
            path: scope.prefix().to_owned(),
            act: plan.act,
            gate: Linear::load(cx, &scope.at("per_layer_input_gate"), inputs.d, plan.d, false)?,
            proj: Linear::load(cx, &scope.at("per_layer_projection"), plan.d, inputs.d, false)?,
            norm: Norm::rms_times(cx, &norm, "weight", plan.d, plan.norm_eps, factor)?,
        })
    }

    /// `h: [tokens, d_model]  input: [tokens, d]  ->  [tokens, d_model]`, which is to be added.
    pub fn forward(&self, cx: &mut Ctx, h: &Tensor, input: &Tensor) -> Result<Tensor> {
        let gate = self.gate.forward(cx, h)?;
        let (x, by) = (cx.view(&gate)?, cx.view(input)?);
        let op = Pointwise { act: self.act, by: Some(by), ..Pointwise::new(x.clone(), x) };
        cx.exec(&self.path, &op)?;
        let out = self.proj.forward(cx, &gate)?;
        self.norm.write_to(cx, &out, &out)?;
        Ok(out)
    }
}

/// The factor of a layer's result.
pub fn factor(scope: &Scope<'_>) -> Result<f32> {
    scope.take("layer_scalar", &[1])?;
    let values = scope.checkpoint().floats(&scope.path("layer_scalar"))?;
    values.first().copied().filter(|value| value.is_finite()).ok_or_else(|| Error::Config {
        path: scope.path("layer_scalar"),
        reason: format!("expected a number, found {values:?}"),
    })
}
