//! Tiles of queries and keys by cooperative matrices: `flash_coop.wgsl`.

use super::params::{self, Params, heads_kv};
use super::rows;
use crate::op::Op;
use crate::ops::attention::{Attention, AttentionSpec};
use crate::select::Reject;
use crate::spec::{Caps, DType, KernelError, WgpuCaps};
use crate::wgpu::WgpuCx;

/// The largest head whose matrices fit the registers of a subgroup.
const MOST_HEAD_DIM: u32 = 256;
/// Keys of a tile.
const TILE_K: u32 = 32;

/// Sizes of `flash_coop.wgsl`, which explains them.
#[derive(Clone, Copy, Debug)]
struct Tiles {
    side: u32,
    lanes: u32,
    blocks: u32,
}

impl Tiles {
    fn of(spec: &AttentionSpec, caps: &WgpuCaps) -> Self {
        let mut tiles = Self { side: caps.matrix, lanes: (4 * caps.subgroup.1).max(128), blocks: 1 };
        loop {
            let wider = Self { blocks: 2 * tiles.blocks, ..tiles };
            let fits = wider.bytes(spec.head_dim) <= caps.workgroup_memory
                && wider.registers(spec.head_dim) <= 112
                && wider.tile_q() <= 128
                && tiles.tile_q() < rows(spec);
            if !fits {
                return tiles;
            }
            tiles = wider;
        }
    }

    /// Query rows of a workgroup: four subgroups with `blocks` matrices of rows each.
    fn tile_q(&self) -> u32 {
        4 * self.blocks * self.side
    }

    /// Registers of an invocation for queries (f16) and sums (f32), in subgroups of 32.
    fn registers(&self, head_dim: u32) -> u32 {
        self.blocks * self.side * head_dim.next_multiple_of(self.side) * 3 / 64
    }

    fn bytes(&self, head_dim: u32) -> u32 {
        let kv = 2 * TILE_K * (head_dim.next_multiple_of(self.side) + 8);
        let scores_and_powers = self.tile_q() * (4 * (TILE_K + 4) + 2 * (TILE_K + 8));
        kv + scores_and_powers + 8 * TILE_K + 4 * self.lanes + 64
    }
}

pub(super) fn reject(spec: &AttentionSpec, caps: &Caps) -> Option<Reject> {
    let caps = &caps.wgpu;
    if caps.matrix == 0 || caps.subgroup.1 == 0 {
        return Some("the device has no cooperative matrices of f16 with f32 sums".into());
    }
    if (spec.x, spec.kv_dtype) != (DType::F16, DType::F16) {
        return Some(format!("f16 throughout is needed, found {} on {}", spec.x, spec.kv_dtype).into());
    }
    if spec.head_dim > MOST_HEAD_DIM {
        return Some(format!("head_dim of at most {MOST_HEAD_DIM}, found {}", spec.head_dim).into());
    }
    let tiles = Tiles::of(spec, caps);
    let (need, have) = (tiles.bytes(spec.head_dim), caps.workgroup_memory);
    if need > have {
        return Some(format!("{need} bytes of workgroup memory are needed, the device has {have}").into());
    }
    (tiles.lanes > caps.invocations).then(|| {
        format!("{} invocations are needed, the device has {}", tiles.lanes, caps.invocations).into()
    })
}

pub(super) fn estimate(spec: &AttentionSpec, caps: &Caps) -> f32 {
    let tile_q = Tiles::of(spec, &caps.wgpu).tile_q();
    let groups = (spec.seqs * spec.heads_kv * rows(spec).div_ceil(tile_q)) as f32;
    // A device of 128 units; each does 300 products a nanosecond in these tiles.
    let one = 2.0 * tile_q as f32 * spec.kv as f32 * spec.head_dim as f32 / 300e3;
    5.0 + one * (groups / 128.0).max(1.0)
}

pub(super) fn launch(op: &Attention, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    if op.q.is_empty() || op.seqs() == 0 || op.max_q == 0 {
        return Ok(());
    }
    let tiles = Tiles::of(&op.spec()?, &cx.caps().wgpu);
    let ranges = params::ranges(op, cx)?;
    let mut kernel = cx.kernel("ops/attention/flash_coop.wgsl");
    let mut params = Params::bind(op, ranges.as_ref(), &mut kernel)?;
    params.bind_out(op, &mut kernel)?;
    kernel
        .define("SIDE", tiles.side)
        .define("WG", tiles.lanes)
        .define("BLOCKS", tiles.blocks)
        .params(&params);
    let heads_kv = heads_kv(op);
    let rows = op.max_q * (op.q.size(1) / heads_kv);
    let blocks = rows.div_ceil(tiles.tile_q() as usize);
    kernel.dispatch([blocks as u32, heads_kv as u32, op.seqs() as u32])
}
