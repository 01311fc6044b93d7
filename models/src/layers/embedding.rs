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

#[cfg(test)]
mod tests {
    use ocelli_engine::Precision;
    use ocelli_kernels::{Backend, DeviceOptions};

    use super::*;

    #[test]
    fn tokens_are_read_as_their_stand_in() {
        let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
        let mut cx = Ctx::new(&*device, Precision::default()).expect("a context");
        let values: Vec<f32> = (0..24u8).map(f32::from).collect();
        let table = cx.upload(&[6, 4], &values).expect("a table");
        let dense = Weights::dense(cx.view(&table).expect("a view"), None).expect("weights");
        let first = |cx: &mut Ctx, of: &Embedding, ids: &[i32]| -> Vec<f32> {
            let ids = cx.upload(&[ids.len()], ids).expect("ids");
            let rows = of.forward(cx, &ids).expect("rows");
            cx.download(&rows).expect("values").chunks(4).map(|row| row[0]).collect()
        };
        let ids = [0, 3, 4, 5, 1, 0];
        // In any order, twice, beyond the table; neighbours, and at its ends.
        for (marks, wanted) in [
            (&[4, 3, 4, 9][..], [0., 4., 4., 20., 4., 0.]),
            (&[0, 5], [4., 12., 16., 4., 4., 4.]),
            (&[], [0., 12., 16., 20., 4., 0.]),
        ] {
            let embedding = Embedding::of("table", dense.clone()).with_stand_in(marks, 1);
            assert_eq!(first(&mut cx, &embedding, &ids), wanted, "{marks:?}");
            // What the head multiplies with is the table.
            assert_eq!((embedding.weights().n(), embedding.weights().parts().len()), (6, 1));
        }
    }
}
