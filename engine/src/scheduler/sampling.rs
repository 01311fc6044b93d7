//! From logits to tokens: parameters, histories and masks of the rows of a pass.

use ocelli_kernels::ops::{Sample, params as column};

use super::request::Live;
use crate::ctx::Ctx;
use crate::error::Result;
use crate::sample::uniform;
use crate::tensor::Tensor;

/// Chooses a token for each row of `logits: [rows, vocab]`, `out: i32 [rows]`: that after so many guessed ones. Tokens that are
/// still under way count.
pub(super) fn sample_rows(
    cx: &mut Ctx,
    logits: &Tensor,
    rows: &[(&Live, usize)],
    out: &Tensor,
) -> Result<()> {
    let mut settings = vec![0f32; rows.len() * column::COUNT];
    for (row, (live, guessed)) in settings.chunks_exact_mut(column::COUNT).zip(rows) {
        let params = &live.params;
        row[column::TEMPERATURE] = params.temperature;
        row[column::TOP_K] = params.top_k as f32;
        row[column::TOP_P] = params.top_p;
        row[column::MIN_P] = params.min_p;
        row[column::REPETITION_PENALTY] = params.repetition_penalty;
        row[column::UNIFORM] = uniform(params.seed, 0, (live.answer.len() + live.coming + guessed) as u64);
    }
    let penalized = rows.iter().any(|(live, _)| live.params.repetition_penalty != 1.0);
    let history = if penalized {
        let width = rows.iter().map(|(live, _)| live.prompt.len() + live.answer.len()).max().unwrap_or(0);
        let mut ids = vec![-1i32; rows.len() * width];
        for (row, (live, _)) in ids.chunks_exact_mut(width).zip(rows) {
            let seen = live.prompt.tokens.iter().chain(&live.answer);
            row.iter_mut().zip(seen).for_each(|(slot, &id)| *slot = id as i32);
        }
        let tensor = cx.upload(&[rows.len(), width], &ids)?;
        Some(cx.view(&tensor)?)
    } else {
        None
    };
    let mask = masks(logits.size(1), rows, &mut settings);
    let mask = match mask.is_empty() {
        true => None,
        false => {
            let words = logits.size(1).div_ceil(32);
            let tensor = cx.upload(&[mask.len() / words, words], &mask)?;
            Some(cx.view(&tensor)?)
        }
    };
    let settings = cx.upload(&[rows.len(), column::COUNT], &settings)?;
    let (logits, params, out) = (cx.view(logits)?, cx.view(&settings)?, cx.view(out)?);
    let op = Sample { logits, params, history, mask, out };
    cx.exec("sample", &op)
}

/// A mask for each row whose answer has a form, noted in the row's settings. Waits for those that are still being computed.
fn masks(vocab: usize, rows: &[(&Live, usize)], settings: &mut [f32]) -> Vec<i32> {
    let words = vocab.div_ceil(32);
    let mut all = Vec::new();
    for (row, (live, _)) in settings.chunks_exact_mut(column::COUNT).zip(rows) {
        let Some(guide) = live.guide() else { continue };
        let start = all.len();
        all.resize(start + words, 0);
        live.write_mask(guide, &mut all[start..]);
        row[column::MASK] = (all.len() / words) as f32;
    }
    all
}
