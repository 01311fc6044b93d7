//! Token embeddings.

use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::Weights;
use ocelli_kernels::ops::GatherRows;

/// A table of token embeddings.
#[derive(Clone, Debug)]
pub struct Embedding {
    path: String,
    table: Weights,
    /// What rows are multiplied with.
    scale: f32,
}

impl Embedding {
    /// Loads the table at `scope`, `[vocab, d]`, whose rows are multiplied with `scale`.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, vocab: usize, d: usize, scale: f32) -> Result<Self> {
        let table = cx.stream().place(&scope.embedding(vocab, d)?)?;
        Ok(Self { path: scope.prefix().to_owned(), table, scale })
    }

    /// Loads a table of position embeddings at `scope`, `[first + positions, d]`, whose row `first` is that of position 0.
    pub fn positions(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        (first, positions): (usize, usize),
        d: usize,
    ) -> Result<Self> {
        let table = scope.take("weight", &[first + positions, d])?.narrow(0, first, positions)?;
        let table = Weights::dense(cx.stream().place_view(&table)?, None)?;
        Ok(Self::of(scope.prefix(), table))
    }

    /// A table that is on the device; `path` names it in errors.
    #[must_use]
    pub fn of(path: impl Into<String>, table: Weights) -> Self {
        Self { path: path.into(), table, scale: 1.0 }
    }

    /// The table.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.table
    }

    /// `ids: [tokens]  ->  [tokens, d]`.
    pub fn forward(&self, cx: &mut Ctx, ids: &Tensor) -> Result<Tensor> {
        let out = cx.alloc(&[ids.size(0), self.table.k()], cx.dtype())?;
        let op = GatherRows {
            table: self.table.clone(),
            ids: cx.view(ids)?,
            scale: self.scale,
            out: cx.view(&out)?,
        };
        cx.exec(&self.path, &op)?;
        Ok(out)
    }
}
