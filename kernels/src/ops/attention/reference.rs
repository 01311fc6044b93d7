//! Attention in f64, without the online softmax that kernels use.

use super::{Attention, AttentionKv, Seen, ascending};
use crate::buffer::View;
use crate::op::Op;
use crate::ops::kept;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

/// Keys and values with the row of each key of each sequence.
pub(super) struct Keys {
    pub(super) k: Vec<f64>,
    pub(super) v: Vec<f64>,
    /// Row of key `j` of sequence `s`, in units of `heads_kv * head_dim`.
    pub(super) rows: Vec<Vec<usize>>,
}

pub(super) fn keys(op: &Attention, io: &Oracle) -> Result<Keys, KernelError> {
    let bad = |what, index, limit| KernelError::Index { op: Attention::NAME, what, index, limit };
    match &op.kv {
        AttentionKv::Packed { k, v, kv_starts } => {
            let starts = io.ints(kv_starts)?;
            let mut rows = Vec::new();
            for pair in starts.windows(2) {
                if pair[0] < 0 || pair[1] < pair[0] || pair[1] as usize > k.size(0) {
                    return Err(bad("kv_starts", pair[1], k.size(0) + 1));
                }
                rows.push((pair[0] as usize..pair[1] as usize).collect());
            }
            Ok(Keys { k: io.read(k)?, v: io.read(v)?, rows })
        }
        AttentionKv::Paged { k, v, block_table, kv_lens } => {
            let (table, lens) = (io.ints(block_table)?, io.ints(kv_lens)?);
            let (pages, page, width) = (k.size(0), k.size(1), block_table.size(1));
            let mut rows = Vec::new();
            for (seq, &len) in lens.iter().enumerate() {
                if len < 0 || len as usize > width * page {
                    return Err(bad("kv_lens", len, width * page + 1));
                }
                let mut of_seq = Vec::with_capacity(len as usize);
                for j in 0..len as usize {
                    let block = table[seq * width + j / page];
                    if block < 0 || block as usize >= pages {
                        return Err(bad("page", block, pages));
                    }
                    of_seq.push(block as usize * page + j % page);
                }
                rows.push(of_seq);
            }
            Ok(Keys { k: kept(io, k)?, v: kept(io, v)?, rows })
        }
    }
}

/// Keys or values of pages, those of i8 times their scales.
fn kept(io: &Oracle, pages: &View) -> Result<Vec<f64>, KernelError> {
    if pages.dtype() != DType::I8 {
        return io.read(pages);
    }
    let (codes, scales) = kept::parts(pages)?;
    let (head_dim, mut values, scales) = (codes.size(3), io.read(&codes)?, io.read(&scales)?);
    for (head, scale) in values.chunks_exact_mut(head_dim.max(1)).zip(scales) {
        head.iter_mut().for_each(|value| *value *= scale);
    }
    Ok(values)
}

pub(super) fn reference(op: &Attention, io: &mut Oracle) -> Result<(), KernelError> {
    let (tokens, heads_q, head_dim) = (op.q.size(0), op.q.size(1), op.q.size(2));
    let q = io.read(&op.q)?;
    let starts = io.ints(&op.q_starts)?;
    let (from, to) = match &op.seen {
        Seen::Ranges { from, to } => {
            (from.as_ref().map(|from| io.ints(from)).transpose()?, Some(io.ints(to)?))
        }
        Seen::All | Seen::Causal { .. } => (None, None),
    };
    for (what, bounds) in [("seen from", &from), ("seen to", &to)] {
        ascending(what, bounds.as_deref().unwrap_or_default(), &starts)?;
    }
    let Keys { k, v, rows } = keys(op, io)?;
    let heads_kv = match &op.kv {
        AttentionKv::Packed { k, .. } => k.size(1),
        AttentionKv::Paged { k, .. } => k.size(2),
    };
    let u = DType::F32.roundoff();
    // Kernels may store probabilities in the type of the queries between the two products.
    let p_roundoff = if op.q.dtype() == DType::F32 { 0.0 } else { op.q.dtype().roundoff() };
    // Powers of differences from the largest score are such probabilities before they are divided by their sum. In f16 those below
    // 2^-14 are subnormal: off by up to 2^-25, whatever their size. In f32 and bf16 those below 2^-126 are, and may be zero: that shows
    // where other values are exactly zero, as codes of 8 bits often are.
    let p_subnormal =
        f64::from(if op.q.dtype() == DType::F16 { 2.0f32.powi(-25) } else { f32::MIN_POSITIVE });

    let seq_of = |token: usize| {
        (0..op.seqs()).rfind(|&s| starts[s] as usize <= token && (token as i64) < starts[s + 1])
    };
    let picked = io.pick(tokens * heads_q, 2 * op.max_kv * head_dim);
    let (mut values, mut errors, mut indices) = (Vec::new(), Vec::new(), Vec::new());
    for &index in &picked {
        let (token, head) = (index / heads_q, index % heads_q);
        indices.extend((0..head_dim).map(|d| index * head_dim + d));
        let Some(seq) = seq_of(token) else {
            return Err(KernelError::Index {
                op: Attention::NAME,
                what: "row of q",
                index: token as i64,
                limit: 0,
            });
        };
        let (q_len, kv_len) = ((starts[seq + 1] - starts[seq]) as usize, rows[seq].len());
        let position = (kv_len + token - starts[seq] as usize) as i64 - q_len as i64;
        let visible = |j: usize| {
            let j = j as i64;
            match &op.seen {
                Seen::All => true,
                Seen::Causal { window } => j <= position && (*window == 0 || j > position - *window as i64),
                Seen::Ranges { .. } => {
                    from.as_ref().is_none_or(|from| j >= from[token])
                        && to.as_ref().is_none_or(|to| j < to[token])
                }
            }
        };
        let head_kv = head * heads_kv / heads_q;
        let row_of = |j: usize| (rows[seq][j] * heads_kv + head_kv) * head_dim;
        let query = &q[index * head_dim..][..head_dim];

        let mut scores = Vec::new();
        let mut score_error = 0.0f64;
        for j in (0..kv_len).filter(|&j| visible(j)) {
            let key = &k[row_of(j)..][..head_dim];
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for (a, b) in query.iter().zip(key) {
                sum += a * b;
                magnitude += (a * b).abs();
            }
            let scale = f64::from(op.scale);
            let mut score = sum * scale;
            let error = tolerance::dot(head_dim, magnitude * scale.abs()) + 4.0 * u * score.abs();
            if op.softcap > 0.0 {
                let cap = f64::from(op.softcap);
                score = cap * (score / cap).tanh();
            }
            score_error = score_error.max(error + 8.0 * u * score.abs());
            scores.push((j, score));
        }
        let most = scores.iter().fold(f64::NEG_INFINITY, |most, &(_, score)| most.max(score));
        let total: f64 = scores.iter().map(|&(_, score)| (score - most).exp()).sum();
        let (mut out, mut magnitude) = (vec![0.0; head_dim], vec![0.0; head_dim]);
        let mut subnormal = vec![0.0; head_dim];
        for &(j, score) in &scores {
            let p = (score - most).exp() / total;
            for (d, value) in v[row_of(j)..][..head_dim].iter().enumerate() {
                out[d] += p * value;
                magnitude[d] += (p * value).abs();
                subnormal[d] += p_subnormal / total * value.abs();
            }
        }
        // A probability is off by the error of its own score and that of the normalizer, and by exp and the division.
        let relative = 2.0 * score_error + 16.0 * u + p_roundoff;
        let error =
            |(&m, &absolute): (&f64, &f64)| relative * m + absolute + tolerance::dot(scores.len(), 2.0 * m);
        errors.extend(magnitude.iter().zip(&subnormal).map(error));
        values.extend(out);
    }
    let indices = (picked.len() < tokens * heads_q).then_some(indices);
    io.expect_some(&op.out, indices, values, errors);
    Ok(())
}
