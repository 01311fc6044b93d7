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
    /// The table as ids are looked up in it, where some have another's row.
    looked_up: Option<Weights>,
    /// What rows are multiplied with.
    scale: f32,
}

impl Embedding {
    /// Loads the table at `scope`, `[vocab, d]`, whose rows are multiplied with `scale`.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, vocab: usize, d: usize, scale: f32) -> Result<Self> {
        let table = cx.stream().place(&scope.embedding(vocab, d)?)?;
        Ok(Self { path: scope.prefix().to_owned(), table, looked_up: None, scale })
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
        Self { path: path.into(), table, looked_up: None, scale: 1.0 }
    }

    /// Has tokens `ids` read as the token `by` is: the table becomes parts, none of which is a copy. A format whose rows cannot be taken
    /// apart there stays as it is.
    #[must_use]
    pub fn with_stand_in(mut self, ids: &[u32], by: u32) -> Self {
        let mut ids: Vec<usize> =
            ids.iter().map(|&id| id as usize).filter(|&id| id < self.table.n()).collect();
        ids.sort_unstable();
        ids.dedup();
        let (table, by) = (&self.table, by as usize);
        let mut first = 0;
        let mut parts = Vec::new();
        for id in ids {
            parts.extend((first < id).then_some((first, id - first)));
            parts.push((by, 1));
            first = id + 1;
        }
        if !parts.is_empty() {
            parts.extend((first < table.n()).then(|| (first, table.n() - first)));
            let parts: Result<Vec<_>, _> = parts.into_iter().map(|(first, n)| table.rows(first, n)).collect();
            self.looked_up = parts.and_then(Weights::stack).ok();
        }
        self
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
            table: self.looked_up.as_ref().unwrap_or(&self.table).clone(),
            ids: cx.view(ids)?,
            scale: self.scale,
            out: cx.view(&out)?,
        };
        cx.exec(&self.path, &op)?;
        Ok(out)
    }
}
