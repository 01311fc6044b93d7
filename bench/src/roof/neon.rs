//! Roofs of NEON.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::hint::black_box;

use super::{Loop, Loops};

pub(super) fn loops() -> Loops {
    // SAFETY: NEON is part of the aarch64 target.
    let fma_f32 = vec![Loop { ops: (2 * 4 * 24) as f64, run: |n| unsafe { fma(n) } }];
    let mut int8 = vec![
        // SAFETY: as above.
        Loop { ops: (2 * 16 * 16) as f64, run: |n| unsafe { widening(n) } },
    ];
    if is_aarch64_feature_detected!("dotprod") {
        // SAFETY: the instruction was just looked for.
        int8 = vec![Loop { ops: (2 * 16 * 24) as f64, run: |n| unsafe { sdot(n) } }];
    }
    Loops { fma_f32, int8, bf16: vec![] }
}

#[target_feature(enable = "neon")]
fn fma(iterations: u64) -> f32 {
    let a = vdupq_n_f32(black_box(0.01));
    let mut acc = [vdupq_n_f32(0.0); 24];
    for (i, v) in acc.iter_mut().enumerate() {
        *v = vdupq_n_f32(i as f32);
    }
    for _ in 0..iterations {
        for v in &mut acc {
            *v = vfmaq_f32(*v, a, a);
        }
    }
    acc.into_iter().map(|v| vaddvq_f32(v)).sum()
}

/// Products in 16 bits, added in pairs to 32-bit sums: what NEON has without the dot product.
#[target_feature(enable = "neon")]
fn widening(iterations: u64) -> f32 {
    let mut acc = [vdupq_n_s32(0); 16];
    for (i, v) in acc.iter_mut().enumerate() {
        *v = vdupq_n_s32(i as i32);
    }
    let x = vdupq_n_s8(black_box(3));
    for _ in 0..iterations {
        for v in &mut acc {
            let y = vreinterpretq_s8_s32(*v);
            let low = vmull_s8(vget_low_s8(x), vget_low_s8(y));
            *v = vpadalq_s16(*v, vmlal_high_s8(low, x, y));
        }
    }
    acc.into_iter().map(|v| (vaddvq_s32(v) & 0xffff) as f32).sum()
}

#[target_feature(enable = "neon,dotprod")]
fn sdot(iterations: u64) -> f32 {
    let mut acc = [vdupq_n_s32(0); 24];
    for (i, v) in acc.iter_mut().enumerate() {
        *v = vdupq_n_s32(i as i32);
    }
    let x = vdupq_n_s8(black_box(3));
    for _ in 0..iterations {
        for v in &mut acc {
            // SAFETY: reads and writes registers only; the function's feature has the instruction.
            unsafe {
                asm!("sdot {0:v}.4s, {1:v}.16b, {1:v}.16b", inout(vreg) *v, in(vreg) x,
                     options(pure, nomem, nostack, preserves_flags));
            }
        }
    }
    acc.into_iter().map(|v| (vaddvq_s32(v) & 0xffff) as f32).sum()
}
