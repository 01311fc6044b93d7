//! Tiles of queries and keys: `flash.wgsl`.

use super::params::{self, Params, heads_kv};
use super::{MOST_HEAD_DIM, columns, rows};
use crate::op::Op;
use crate::ops::attention::{Attention, AttentionSpec};
use crate::select::Reject;
use crate::spec::{Caps, KernelError};
use crate::wgpu::WgpuCx;

/// Sizes of `flash.wgsl`, which explains them.
#[derive(Clone, Copy, Debug)]
struct Tiles {
    tx: u32,
    ty: u32,
    rows: u32,
    chunk: u32,
    v_rows: u32,
}

impl Tiles {
    /// The largest tiles that fit `memory` bytes: of eight rows an invocation, or four where `rows`, the query rows of a key
    /// head, are few.
    fn pick(head_dim: u32, rows: u32, memory: u32) -> Self {
        let columns = columns(head_dim);
        // Columns divide evenly among 8 to 16 invocations where they can.
        let tx =
            (8..=16).rev().find(|tx| columns.is_multiple_of(*tx)).unwrap_or(if columns < 8 { 8 } else { 16 });
        let chunk = columns.div_ceil(columns.div_ceil(9));
        let least = Self { tx, ty: 128 / tx, rows: 1, chunk, v_rows: 4 };
        // Eight rows and more than two columns of an invocation are more sums than it has registers for.
        let most = if columns.div_ceil(tx) > 2 { 4 } else { 8 };
        let mut tiles = least;
        while tiles.rows < most && (tiles.rows < 4 || tiles.rows * tiles.ty < rows) {
            let wider = Self { rows: 2 * tiles.rows, ..tiles };
            if wider.bytes(columns) > memory {
                break;
            }
            tiles = wider;
        }
        let deeper = |v_rows: &u32| {
            (4 * tx).is_multiple_of(*v_rows) && Self { v_rows: *v_rows, ..tiles }.bytes(columns) <= memory
        };
        let v_rows = (4..=32.min(4 * tx)).step_by(4).filter(deeper).max().unwrap_or(4);
        Self { v_rows, ..tiles }
    }

    /// Workgroup memory for heads of this many columns.
    fn bytes(&self, columns: u32) -> u32 {
        let (tile_q, tile_k) = (self.rows * self.ty, 4 * self.tx);
        let qk = (tile_q + tile_k) * (self.chunk | 1);
        let pv = tile_q * (self.tx | 1) + self.v_rows * columns;
        // Two words a key, two numbers a row, the sequence and what the tile sees of it.
        16 * qk.max(pv) + 8 * (tile_k + tile_q) + 48
    }

    fn of(spec: &AttentionSpec, caps: &Caps) -> Self {
        // More than 32 KiB would leave room for few workgroups at once.
        Self::pick(spec.head_dim, rows(spec), caps.wgpu.workgroup_memory.min(32 << 10))
    }
}

pub(super) fn reject(spec: &AttentionSpec, _: &Caps) -> Option<Reject> {
    (spec.head_dim > MOST_HEAD_DIM)
        .then(|| format!("head_dim of at most {MOST_HEAD_DIM}, found {}", spec.head_dim).into())
}

pub(super) fn estimate(spec: &AttentionSpec, caps: &Caps) -> f32 {
    let tiles = Tiles::of(spec, caps);
    let tile_q = tiles.rows * tiles.ty;
    let groups = (spec.seqs * spec.heads_kv * rows(spec).div_ceil(tile_q)) as f32;
    // A device of 128 units; each does 80 products a nanosecond in these tiles.
    let one = 2.0 * tile_q as f32 * spec.kv as f32 * spec.head_dim as f32 / 80e3;
    5.0 + one * (groups / 128.0).max(1.0)
}

pub(super) fn launch(op: &Attention, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    if op.q.is_empty() || op.seqs() == 0 || op.max_q == 0 {
        return Ok(());
    }
    let tiles = Tiles::of(&op.spec()?, cx.caps());
    let ranges = params::ranges(op, cx)?;
    let mut kernel = cx.kernel("ops/attention/flash.wgsl");
    let mut params = Params::bind(op, ranges.as_ref(), &mut kernel)?;
    params.bind_out(op, &mut kernel)?;
    kernel
        .define("TX", tiles.tx)
        .define("TY", tiles.ty)
        .define("ROWS", tiles.rows)
        .define("CHUNK", tiles.chunk)
        .define("V_ROWS", tiles.v_rows)
        .params(&params);
    let heads_kv = heads_kv(op);
    let rows = op.max_q * (op.q.size(1) / heads_kv);
    let blocks = rows.div_ceil((tiles.rows * tiles.ty) as usize);
    kernel.dispatch([blocks as u32, heads_kv as u32, op.seqs() as u32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_every_head_fit_plain_webgpu() {
        for head_dim in 1..=MOST_HEAD_DIM {
            for rows in [1, 40, 5000] {
                let tiles = Tiles::pick(head_dim, rows, 16 << 10);
                assert!(tiles.bytes(columns(head_dim)) <= 16 << 10, "{head_dim}: {tiles:?}");
                assert!(tiles.tx * tiles.ty <= 128 && tiles.rows <= tiles.tx, "{head_dim}: {tiles:?}");
                assert!((4 * tiles.tx).is_multiple_of(tiles.v_rows), "{head_dim}: {tiles:?}");
            }
        }
    }
}
