//! CPU kernels: `flash` for many queries of a sequence, `split` for few.

mod cut;
mod flash;
pub(super) mod operands;
mod pack;
mod row;
pub(super) mod softmax;
mod split;
pub(super) mod tasks;

use super::{Attention, AttentionSpec};
use crate::cpu::isa::{Isa, Level};
use crate::cpu::{CpuOp, CpuRows};
use crate::select::{Reject, Variant};
use crate::spec::{Caps, DType};

impl CpuOp for Attention {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        const ROWS: CpuRows<Attention> = &[
            Variant { name: "flash", reject: |_, _| None, est_us: flash_us, launch: flash::launch },
            Variant { name: "flash-bf16", reject: bf16_reject, est_us: bf16_us, launch: flash::launch_bf16 },
            Variant { name: "flash-amx", reject: amx_reject, est_us: amx_us, launch: flash::launch_amx },
            Variant { name: "split", reject: split_reject, est_us: split_us, launch: split::launch },
        ];
        ROWS
    }
}

/// Query rows of one key head of one sequence.
fn rows(spec: &AttentionSpec) -> u32 {
    spec.q * (spec.heads_q / spec.heads_kv.max(1))
}

fn lanes(caps: &Caps) -> f32 {
    match caps.isa {
        Level::Scalar | Level::Avx2 => 8.0,
        Level::Avx512 => 16.0,
        Level::Neon => 4.0,
    }
}

/// Time of `per_key` vector operations for each key, on as many threads as there are tasks for.
fn estimate(spec: &AttentionSpec, caps: &Caps, per_key: f32, tasks: f32) -> f32 {
    let keys = (spec.seqs * spec.heads_kv) as f32 * spec.kv as f32;
    // Two vector operations a cycle at 2.5 GHz.
    1.0 + keys * per_key / (5000.0 * tasks.clamp(1.0, caps.units.max(1) as f32))
}

/// Products of `head` vector operations for each key and vector of rows, softmax, and for each task packing.
fn blocks_us(spec: &AttentionSpec, caps: &Caps, head: f32) -> f32 {
    let (hd, vectors) = (spec.head_dim as f32, (rows(spec) as f32 / lanes(caps)).ceil());
    let per_key = vectors * (head + 20.0) + (vectors / 24.0).ceil() * hd;
    estimate(spec, caps, per_key, (spec.seqs * spec.heads_kv) as f32 * (vectors / 3.0).ceil())
}

fn flash_us(spec: &AttentionSpec, caps: &Caps) -> f32 {
    blocks_us(spec, caps, 2.0 * spec.head_dim as f32)
}

fn bf16_reject(spec: &AttentionSpec, caps: &Caps) -> Option<Reject> {
    if (spec.x, spec.kv_dtype) != (DType::BF16, DType::BF16) {
        return Some("for queries, keys and values of bf16".into());
    }
    (!caps.bf16_dot).then(|| "the CPU has no AVX512_BF16".into())
}

fn bf16_us(spec: &AttentionSpec, caps: &Caps) -> f32 {
    // Half as many operations; where each takes twice as long, rounding the weights is lost.
    let gains = Isa::at(caps.isa).is_ok_and(Isa::bf16_gains);
    blocks_us(spec, caps, spec.head_dim as f32 * if gains { 1.0 } else { 2.2 })
}

fn amx_reject(spec: &AttentionSpec, caps: &Caps) -> Option<Reject> {
    if (spec.x, spec.kv_dtype) != (DType::BF16, DType::BF16) {
        return Some("for queries, keys and values of bf16".into());
    }
    if spec.head_dim < 32 {
        return Some(format!("for heads of at least 32, found {}", spec.head_dim).into());
    }
    (!caps.amx).then(|| "the CPU has no AMX, or not for this process".into())
}

fn amx_us(spec: &AttentionSpec, caps: &Caps) -> f32 {
    // A product of tiles of 32 elements takes 16 cycles for 16 keys and a vector of rows; there are two.
    blocks_us(spec, caps, 0.2 * spec.head_dim as f32)
}

fn split_reject(spec: &AttentionSpec, _: &Caps) -> Option<Reject> {
    let rows = rows(spec) as usize;
    (rows > split::MOST_ROWS)
        .then(|| format!("at most {} query rows of a key head, found up to {rows}", split::MOST_ROWS).into())
}

fn split_us(spec: &AttentionSpec, caps: &Caps) -> f32 {
    let per_key = (rows(spec) as f32 + 1.0) * (2.0 * spec.head_dim as f32 / lanes(caps) + 6.0);
    estimate(spec, caps, per_key, spec.seqs as f32 * spec.heads_kv as f32 * (spec.kv as f32 / 256.0).ceil())
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conformance::run_cpu;
    use crate::cpu::isa::Isa;
    use crate::cpu::pool::Pool;

    #[test]
    fn conforms() {
        let report = run_cpu::<Attention>(&Isa::available(), &Arc::new(Pool::new(3)), 7);
        assert!(report.failed.is_empty(), "{} failed:\n{}", report.failed.len(), report.failed.join("\n"));
        assert!(report.passed > 0);
    }
}

#[cfg(test)]
mod estimates {
    use super::*;

    #[test]
    fn a_device_of_unknown_size_is_one() {
        let spec = AttentionSpec {
            seqs: 1,
            q: 4,
            kv: 64,
            heads_q: 4,
            heads_kv: 2,
            head_dim: 16,
            ..Default::default()
        };
        let one = Caps { units: 1, ..Caps::default() };
        for row in Attention::cpu_variants() {
            let (unknown, known) = ((row.est_us)(&spec, &Caps::default()), (row.est_us)(&spec, &one));
            assert!(unknown.is_finite() && unknown == known, "{}: {unknown} and {known}", row.name);
        }
    }
}
