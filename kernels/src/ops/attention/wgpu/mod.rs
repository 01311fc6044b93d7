//! WGSL kernels: `flash` for many queries of a sequence, `split` for few.

mod flash;
mod flash_coop;
mod params;
mod split;

use super::{Attention, AttentionSpec};
use crate::select::Variant;
use crate::wgpu::{WgpuLaunch, WgpuOp, WgpuRows};

impl WgpuOp for Attention {
    fn wgpu_variants() -> WgpuRows<Self> {
        const ROWS: &[Variant<AttentionSpec, WgpuLaunch<Attention>>] = &[
            Variant { name: "flash", reject: flash::reject, est_us: flash::estimate, launch: flash::launch },
            Variant {
                name: "flash-coop",
                reject: flash_coop::reject,
                est_us: flash_coop::estimate,
                launch: flash_coop::launch,
            },
            Variant { name: "split", reject: split::reject, est_us: split::estimate, launch: split::launch },
            Variant {
                name: "split-subgroup",
                reject: split::reject_subgroups,
                est_us: split::estimate_subgroups,
                launch: split::launch_subgroups,
            },
        ];
        Ok(ROWS)
    }
}

/// The largest head of these kernels: four of its rows of values fit the workgroup memory of every device.
const MOST_HEAD_DIM: u32 = 512;

/// Query rows of one key head of one sequence.
fn rows(spec: &AttentionSpec) -> u32 {
    spec.q * (spec.heads_q / spec.heads_kv.max(1))
}

/// Elements of a head, four a column.
fn columns(head_dim: u32) -> u32 {
    head_dim.div_ceil(4).max(1)
}
