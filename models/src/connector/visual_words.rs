//! Ovis 2's connector: each block of patches becomes probabilities of the words of a visual vocabulary, and a token the mean of their
//! embeddings by these.
//!
//! After `Ovis2VisionModel` and `Ovis2VisualEmbeddingTable` of transformers.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Result, Stage, Tensor};
use ocelli_kernels::ops::{MergeOrder, MergePatches, Softmax};

use crate::layers::{Linear, Norm, constant};
use crate::vision::Connect;

/// Added to variances by the norm of logits.
const NORM_EPS: f32 = 1e-5;

/// Sizes of the connector.
#[derive(Clone, Copy, Debug)]
pub struct VisualWordsPlan {
    /// Features of a patch.
    pub d_vision: usize,
    /// Features of a token.
    pub d_text: usize,
    /// Side of the blocks of patches that become one token.
    pub block: usize,
    /// Words that patches may be.
    pub words: usize,
    /// Words behind those, which tokens around pictures stand for.
    pub marks: usize,
}

/// Head over the visual vocabulary, and its table of embeddings.
pub struct VisualWords {
    path: String,
    plan: VisualWordsPlan,
    head: Linear,
    norm: Norm,
    /// The words' embeddings, one a column.
    table: Linear,
    /// Embeddings of the marks `[marks, d_text]`.
    marks: Tensor,
}

impl VisualWords {
    /// Loads `head_linear` and `head_norm` below `tower`, and the table `[words + marks, d_text]` at `table`.
    pub fn load(cx: &mut Ctx, tower: &Scope<'_>, table: &Scope<'_>, plan: VisualWordsPlan) -> Result<Self> {
        let (tower, table) = (tower.role(Role::Connector), table.role(Role::Connector));
        let VisualWordsPlan { d_text, words, marks, .. } = plan;
        table.take("weight", &[words + marks, d_text])?;
        let stored = table.checkpoint().floats(&table.path("weight"))?;
        let (of_words, of_marks) = stored.split_at(words * d_text);
        Ok(Self {
            path: table.prefix().to_owned(),
            head: Linear::load(
                cx,
                &tower.at("head_linear"),
                words,
                plan.d_vision * plan.block * plan.block,
                false,
            )?,
            norm: Norm::layer(cx, &tower.at("head_norm"), words, NORM_EPS)?,
            table: Linear::columns(cx, table.path("weight"), of_words, d_text)?,
            marks: constant(cx, &[marks, d_text], of_marks)?,
            plan,
        })
    }
}

impl Connect for VisualWords {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        super::blocks(grid, self.plan.block)
    }

    fn behind(&self) -> Option<&Tensor> {
        Some(&self.marks)
    }

    fn connect(
        &self,
        cx: &mut Ctx,
        x: &Tensor,
        (grid_h, grid_w): (usize, usize),
        out: &Tensor,
    ) -> Result<()> {
        let (factor, area) = (self.plan.block, self.plan.block * self.plan.block);
        let blocks = cx.alloc(&[x.size(0) / area, x.size(1) * area], cx.dtype())?;
        let order = MergeOrder::RowFirst;
        let op = MergePatches { x: cx.view(x)?, grid_h, grid_w, factor, order, out: cx.view(&blocks)? };
        cx.exec(&self.path, &op)?;
        cx.stage(Stage::TOWER, &blocks)?;
        let logits = self.head.forward(cx, &blocks)?;
        self.norm.write_to(cx, &logits, &logits)?;
        let shares = cx.alloc(logits.shape(), cx.dtype())?;
        let op = Softmax { x: cx.view(&logits)?, out: cx.view(&shares)? };
        cx.exec(&self.path, &op)?;
        self.table.write_to(cx, &shares, out)
    }
}
