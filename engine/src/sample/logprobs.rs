//! Log probabilities of tokens, from logits as the model gave them.

use half::{bf16, f16};
use ocelli_kernels::DType;
use serde::Serialize;

/// Least log probability that is told: one that is minus infinity is no number in JSON.
const LEAST: f32 = -9999.0;

/// A token and how likely it was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Likely {
    /// Its id.
    pub token: u32,
    /// Natural logarithm of its probability, before any parameter of sampling; at least -9999.
    pub logprob: f32,
}

/// A token of an answer, and those that were likeliest at its place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Logprobs {
    /// The token that was chosen.
    pub chosen: Likely,
    /// The likeliest ones, in descending order, as many as were asked for.
    pub top: Vec<Likely>,
    /// Whether it is a part of the answer's text: neither a thought nor the end.
    pub shown: bool,
}

impl Logprobs {
    /// Of a token, by the bytes of its row of logits; `top` others with it.
    pub(crate) fn of(row: &[u8], dtype: DType, token: u32, top: usize) -> Self {
        let logits = read(row, dtype);
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
        let all = f64::from(most) + sum.ln();
        let likely = |token: usize| Likely {
            token: token as u32,
            logprob: logits.get(token).map_or(LEAST, |&logit| ((f64::from(logit) - all) as f32).max(LEAST)),
        };
        let before = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
        let mut order: Vec<usize> = (0..logits.len()).collect();
        let count = top.min(order.len());
        if count > 0 && count < order.len() {
            order.select_nth_unstable_by(count - 1, before);
        }
        order.truncate(count);
        order.sort_unstable_by(before);
        Self { chosen: likely(token as usize), top: order.into_iter().map(likely).collect(), shown: true }
    }
}

fn read(row: &[u8], dtype: DType) -> Vec<f32> {
    let halves = |of: fn([u8; 2]) -> f32| row.chunks_exact(2).map(|b| of([b[0], b[1]])).collect();
    match dtype {
        DType::BF16 => halves(|bytes| bf16::from_le_bytes(bytes).to_f32()),
        DType::F16 => halves(|bytes| f16::from_le_bytes(bytes).to_f32()),
        _ => row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_softmax_is_that_of_f64() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 37 % 101) as f32 - 50.0) / 3.0).collect();
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        let found = Logprobs::of(&bytes, DType::F32, 17, 5);
        // A quotient of f32 numbers near 40: half a unit in the last place each.
        let near = |likely: Likely| {
            let exact = f64::from(logits[likely.token as usize]) - sum.ln();
            (f64::from(likely.logprob) - exact).abs() <= exact.abs() * f64::from(f32::EPSILON)
        };
        assert!(near(found.chosen) && found.top.iter().all(|&likely| near(likely)), "{found:?}");
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let first: Vec<u32> = (0..1000).filter(|&i| logits[i as usize] == largest).take(5).collect();
        assert_eq!(found.top.iter().map(|likely| likely.token).collect::<Vec<_>>(), first);
        assert!(Logprobs::of(&bytes, DType::F32, 0, 0).top.is_empty());
    }

    #[test]
    fn halves_and_what_cannot_be() {
        let bytes: Vec<u8> =
            [1.0f32, f32::NEG_INFINITY].iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        let found = Logprobs::of(&bytes, DType::BF16, 1, 2);
        assert_eq!(found.chosen.logprob, LEAST);
        assert_eq!(found.top, [Likely { token: 0, logprob: 0.0 }, Likely { token: 1, logprob: LEAST }]);
        assert_eq!(Logprobs::of(&bytes, DType::BF16, 5, 1).chosen.logprob, LEAST);
    }
}
