//! Learned queries that attend to the rows of a picture: BLIP-2's Q-Former, and the layer from it to the decoder.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Result, Stage, Tensor};

use crate::layers::{Linear, constant, copy_rows};
use crate::text::{Encoder, EncoderPlan};
use crate::vision::Connect;

/// The queries, the encoder that they go through with each tile's rows as memory, and a layer after it.
pub struct QFormer {
    /// `[queries, d]`
    queries: Tensor,
    encoder: Encoder,
    projection: Linear,
    /// Rows of a tile before its patches.
    extra: usize,
}

impl QFormer {
    /// Loads `query_tokens`, `qformer` and `language_projection` below `scope`: `count` queries, results of `out` features; `extra` rows
    /// of a tile come before its patches.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        plan: EncoderPlan,
        (count, out, extra): (usize, usize, usize),
    ) -> Result<Self> {
        let (scope, d) = (scope.role(Role::Connector), plan.d);
        scope.take("query_tokens", &[1, count, d])?;
        let queries = scope.checkpoint().floats(&scope.path("query_tokens"))?;
        Ok(Self {
            queries: constant(cx, &[count, d], &queries)?,
            encoder: Encoder::load(cx, &scope.at("qformer"), plan, None)?,
            projection: Linear::load(cx, &scope.at("language_projection"), out, d, true)?,
            extra,
        })
    }
}

impl Connect for QFormer {
    fn rows(&self, _: (usize, usize)) -> Result<usize> {
        Ok(self.queries.size(0))
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let (queries, rows) = (self.queries.size(0), self.extra + grid.0 * grid.1);
        let tiles = x.size(0) / rows.max(1);
        if tiles * rows != x.size(0) || tiles * queries != out.size(0) {
            let what = format!("expected {rows} rows a tile, found {} of {tiles}", x.size(0));
            return Err(Error::Request(format!("Q-Former: {what}")));
        }
        let h = cx.alloc(&[tiles * queries, self.queries.size(1)], cx.dtype())?;
        for tile in 0..tiles {
            copy_rows(cx, "query_tokens", &self.queries, &h.narrow(0, tile * queries, queries)?)?;
        }
        let starts = |each: usize| -> Vec<usize> { (0..=tiles).map(|tile| tile * each).collect() };
        let (own, seen) = (starts(queries), starts(rows));
        self.encoder.run(cx, &h, &own, Some((x, &seen)), &mut |_, _| Ok(()))?;
        cx.stage(Stage::of("qformer_last_hidden"), &h)?;
        self.projection.write_to(cx, &h, out)
    }
}
