//! Choosing the next token from logits: parameters, the reference implementation, and the random numbers.

mod params;
mod philox;

pub use params::{ParamError, SamplingParams};
pub use philox::{philox4x32, uniform};

use thiserror::Error;

/// Why no token can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SampleError {
    /// There are no logits.
    #[error("sample: logits: expected at least one, found none")]
    Empty,
    /// A logit is NaN or plus infinity.
    #[error("sample: logits[{index}]: expected a number below infinity, found {found}")]
    NotFinite {
        /// The token id.
        index: usize,
        /// The value as text.
        found: String,
    },
    /// Every logit is minus infinity.
    #[error("sample: logits: expected at least one above minus infinity, found none")]
    AllExcluded,
}

/// Chooses a token: `logits: [vocab]` -> id.
///
/// `history` holds the prompt's and the answer's ids so far (each id is penalized once); `uniform` is in `[0, 1)`, see
/// [`uniform()`]. A logit of minus infinity excludes its token.
///
/// The steps are transformers' (`RepetitionPenaltyLogitsProcessor`, then `TemperatureLogitsWarper`, `TopKLogitsWarper`,
/// `TopPLogitsWarper`, `MinPLogitsWarper`), in f64, the penalty in f32:
/// 1. repetition penalty: for ids in `history`, divide a positive logit by it, multiply a negative one;
/// 2. temperature 0: the lowest id among the largest logits, and nothing below applies;
/// 3. divide by the temperature;
/// 4. top-k: keep the logits that are at least the k-th largest (ties at the k-th are all kept);
/// 5. top-p: order by falling probability, ties by rising id; keep an id if the mass before it is below `top_p`;
/// 6. min-p: keep ids with at least `min_p` times the largest probability;
/// 7. softmax over what is kept; the answer is the first id, in rising order, at which the cumulative mass exceeds
///    `uniform`.
///
/// # Errors
/// When `logits` is empty, holds NaN or plus infinity, or excludes every token.
///
/// `params` is taken as valid ([`SamplingParams::validate`]).
pub fn sample(
    logits: &[f32],
    params: &SamplingParams,
    history: &[u32],
    uniform: f32,
) -> Result<u32, SampleError> {
    let penalized;
    let mut scores = logits;
    if params.repetition_penalty != 1.0 {
        let mut copy = logits.to_vec();
        penalize(&mut copy, params.repetition_penalty, history);
        penalized = copy;
        scores = &penalized;
    }
    let best = argmax(scores)?;
    if params.temperature == 0.0 {
        return Ok(best as u32);
    }
    let temperature = f64::from(params.temperature);
    let max = f64::from(scores[best]) / temperature;
    // (id, weight): weight is the probability relative to the largest one.
    let mut kept: Vec<(u32, f64)> = Vec::with_capacity(scores.len());
    let threshold = top_k_threshold(scores, params.top_k as usize);
    for (id, &score) in scores.iter().enumerate() {
        if score >= threshold && score > f32::NEG_INFINITY {
            kept.push((id as u32, (f64::from(score) / temperature - max).exp()));
        }
    }
    if params.top_p < 1.0 {
        keep_top_p(&mut kept, f64::from(params.top_p));
    }
    if params.min_p > 0.0 {
        let least = f64::from(params.min_p);
        kept.retain(|&(_, weight)| weight >= least);
    }
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let target = f64::from(uniform) * total;
    let mut mass = 0.0;
    for &(id, weight) in &kept {
        mass += weight;
        if mass > target {
            return Ok(id);
        }
    }
    // Reached only when `uniform` is not below 1.
    Ok(kept.iter().rev().find(|(_, weight)| *weight > 0.0).map_or(best as u32, |(id, _)| *id))
}

/// Applies the repetition penalty once to each id of `history`; ids without a logit are ignored.
pub fn penalize(logits: &mut [f32], penalty: f32, history: &[u32]) {
    let mut seen = vec![false; logits.len()];
    for &id in history {
        let id = id as usize;
        if id < logits.len() && !std::mem::replace(&mut seen[id], true) {
            let logit = &mut logits[id];
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// The lowest index among the largest values.
///
/// # Errors
/// As [`sample`].
pub fn argmax(logits: &[f32]) -> Result<usize, SampleError> {
    if logits.is_empty() {
        return Err(SampleError::Empty);
    }
    let mut best = 0;
    for (index, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(SampleError::NotFinite { index, found: logit.to_string() });
        }
        if logit > logits[best] {
            best = index;
        }
    }
    if logits[best] == f32::NEG_INFINITY {
        return Err(SampleError::AllExcluded);
    }
    Ok(best)
}

/// The k-th largest score, or minus infinity when nothing is cut off.
fn top_k_threshold(scores: &[f32], k: usize) -> f32 {
    if k == 0 || k >= scores.len() {
        return f32::NEG_INFINITY;
    }
    let mut copy = scores.to_vec();
    *copy.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// Keeps the ids, in rising order, whose preceding mass in falling order is below `top_p`; always the first.
fn keep_top_p(kept: &mut Vec<(u32, f64)>, top_p: f64) {
    kept.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let mut mass = 0.0;
    let count = kept
        .iter()
        .take_while(|(_, weight)| {
            let keep = mass < top_p * total;
            mass += weight;
            keep
        })
        .count();
    kept.truncate(count.max(1));
    kept.sort_unstable_by_key(|(id, _)| *id);
}

#[cfg(test)]
mod tests;
