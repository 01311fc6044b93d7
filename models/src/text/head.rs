//! What makes logits of the rows after the last layer.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::Weights;

use super::TextPlan;
use crate::layers::{Embedding, Linear, Norm};

/// Kinds of heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadPlan {
    /// A matrix.
    Plain,
    /// BERT's: a layer with an activation and a norm, then the embedding's matrix with a bias of its own.
    Transformed,
}

/// A matrix, perhaps with a layer before it.
pub(super) struct Head {
    transform: Option<(Linear, Norm)>,
    matrix: Linear,
}

impl Head {
    /// Loads the head at `scope`; where the file has no matrix, it is the embedding's, if the plan lets it.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &TextPlan, embedding: &Embedding) -> Result<Self> {
        let (d, vocab) = (plan.d, plan.vocab);
        let head = scope.role(Role::Head);
        if plan.head == HeadPlan::Plain {
            let matrix = if scope.exists() || !plan.tied {
                Linear::load(cx, &head, vocab, d, false)?
            } else {
                Linear::tied(scope.prefix(), embedding.weights().clone())
            };
            return Ok(Self { transform: None, matrix });
        }
        let decoder = head.at("decoder");
        let words = match decoder.has("weight") {
            true => cx.stream().place(&decoder.linear(vocab, d, false)?)?,
            false => embedding.weights().clone(),
        };
        // Both spellings of the one bias are in files.
        decoder.optional("bias", &[vocab])?;
        let bias = cx.stream().place_view(&head.take("bias", &[vocab])?)?;
        let planes = words.parts().iter().flat_map(|part| part.planes.iter().cloned());
        let words = Weights::new(words.format(), vocab, d, planes.collect::<Vec<_>>(), Some(bias))?;
        let dense = Linear::load(cx, &head.at("transform.dense"), d, d, true)?;
        let norm = Norm::layer(cx, &head.at("transform.LayerNorm"), d, plan.norm_eps)?;
        Ok(Self { transform: Some((dense, norm)), matrix: Linear::tied(decoder.prefix(), words) })
    }

    /// `x: [rows, d]  ->  logits: [rows, vocab]`; `norm` is that of the rows before the head, if they are not normalized.
    pub fn write_to(
        &self,
        cx: &mut Ctx,
        plan: &TextPlan,
        norm: Option<&Norm>,
        x: &Tensor,
        logits: &Tensor,
    ) -> Result<()> {
        if let Some((dense, after)) = &self.transform {
            let x = dense.forward_act(cx, x, plan.act)?;
            after.write_to(cx, &x, &x)?;
            return self.matrix.write_to(cx, &x, logits);
        }
        match norm {
            Some(norm) => self.matrix.write_normalized(cx, norm, x, logits),
            None => self.matrix.write_to(cx, x, logits),
        }
    }
}
