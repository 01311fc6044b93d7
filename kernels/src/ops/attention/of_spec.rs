//! The op of a spec: sequences of one length, whose queries are their last tokens.

use super::{Attention, AttentionKv, AttentionSpec, Seen};
use crate::buffer::View;
use crate::operands::Operands;
use crate::ops::{SCALE_BYTES, kept_elements};
use crate::spec::{DType, KernelError, Layout};

pub(super) fn attention(spec: &AttentionSpec, operands: &mut dyn Operands) -> Result<Attention, KernelError> {
    let (seqs, q_len, kv_len) = (spec.seqs as usize, spec.q as usize, spec.kv as usize);
    let (heads_q, heads_kv, d) = (spec.heads_q as usize, spec.heads_kv as usize, spec.head_dim as usize);
    let page = spec.page as usize;
    let kv = if page == 0 {
        let shape = [seqs * kv_len, heads_kv, d];
        AttentionKv::Packed {
            k: operands.table(&shape, spec.kv_dtype)?,
            v: operands.table(&shape, spec.kv_dtype)?,
            kv_starts: operands.ints(&[seqs + 1], &|i| (i * kv_len) as i32)?,
        }
    } else {
        let per_seq = kv_len.div_ceil(page);
        let pages = seqs * per_seq;
        let shape = [pages, page, heads_kv, kept_elements(d, spec.kv_dtype)];
        let mut pool = || match spec.kv_dtype {
            DType::I8 => codes(operands, &shape),
            dtype => operands.table(&shape, dtype),
        };
        AttentionKv::Paged {
            k: pool()?,
            v: pool()?,
            // Pages lie in another order than their sequence, as they do after some requests.
            block_table: operands.ints(&[seqs, per_seq], &|i| (pages - 1 - i) as i32)?,
            kv_lens: operands.ints(&[seqs], &|_| kv_len as i32)?,
        }
    };
    let before = kv_len.saturating_sub(q_len);
    let seen = |i: usize| match spec.window as usize {
        0 => before + i + 1,
        window => (before + i + 1).min(window),
    };
    let pairs = if spec.causal || spec.ranges { (0..q_len).map(seen).sum() } else { q_len * kv_len };
    let sees = if spec.ranges {
        // As a causal mask: a spec does not tell the ranges.
        let end = |row: usize| (before + row % q_len.max(1) + 1) as i32;
        Seen::Ranges { from: None, to: operands.ints(&[seqs * q_len], &end)? }
    } else if spec.causal {
        Seen::Causal { window: spec.window as usize }
    } else {
        Seen::All
    };
    Ok(Attention {
        q: operands.activations(&[seqs * q_len, heads_q, d], spec.x)?,
        kv,
        q_starts: operands.ints(&[seqs + 1], &|i| (i * q_len) as i32)?,
        seen: sees,
        scale: 1.0 / (d as f32).sqrt(),
        softcap: if spec.softcap { 50.0 } else { 0.0 },
        out: operands.output(&[seqs * q_len, heads_q, d], spec.x)?,
        max_q: q_len,
        max_kv: kv_len,
        pairs: (seqs * pairs) as u64,
    })
}

/// Pages of codes of all sizes, and of scales.
fn codes(operands: &mut dyn Operands, shape: &[usize]) -> Result<View, KernelError> {
    let words = shape[3] / SCALE_BYTES;
    let value = |word: usize| match (word + 1).is_multiple_of(words) {
        true => 0.02,
        // No byte is that of an exponent of NaN.
        false => f32::from_bits((word as u32).wrapping_mul(0x9E37_79B9) & 0x3f3f_3f3f),
    };
    let floats = operands.floats(&[shape[0], shape[1], shape[2], words], &value)?;
    Ok(View::new(floats.storage().clone(), floats.offset(), Layout::dense(shape)?, DType::I8)?)
}
