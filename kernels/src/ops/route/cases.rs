//! Conformance cases.

use super::{Route, Scores};
use crate::View;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType;

/// Numbers `0 .. count` in random order.
fn shuffled(cx: &mut CaseCx, count: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..count).collect();
    for at in (1..count).rev() {
        all.swap(at, cx.below(at + 1));
    }
    all
}

/// Biases so far apart that no rounding of a score decides.
fn bias(cx: &mut CaseCx, experts: usize) -> View {
    let values: Vec<f64> = shuffled(cx, experts).into_iter().map(|place| place as f64 * 2.0).collect();
    cx.values(&[experts], DType::F32, &values)
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<Route>> {
    let mut all = Vec::new();
    for x in [DType::F32, DType::BF16, DType::F16] {
        for scores in [Scores::Softmax, Scores::Sigmoid] {
            for (rows, experts, top, gap) in [
                (0, 4, 2, 0),
                (1, 1, 1, 0),
                (3, 6, 6, 1),
                (5, 60, 4, 3),
                (9, 128, 8, 0),
                (2, 257, 10, 0),
                (2, 1024, 22, 0),
            ] {
                for with in [false, true] {
                    let factors = cx.random(&[experts], DType::F32, Fill::Normal(1.0));
                    let op = Route {
                        logits: cx.random_gapped(&[rows, experts], x, Fill::Normal(3.0), gap),
                        bias: with.then(|| bias(cx, experts)),
                        factors: with.then_some(factors),
                        scores,
                        normalize: with == (scores == Scores::Sigmoid),
                        scale: if with { 2.5 } else { 1.0 },
                        ids: cx.output(&[rows, top], DType::I32),
                        weights: cx.output(&[rows, top], DType::F32),
                    };
                    let tables = if with { ", with tables" } else { "" };
                    all.push(Case { name: format!("{rows}: {top} of {experts} {x} {scores:?}{tables}"), op });
                }
            }
        }
    }
    // Equal logits: those of lower numbers come first. Far ones: their weights vanish.
    for (values, top) in [(vec![1.0; 40], 7), ((0..9).map(|i| -40.0 * f64::from(i)).collect(), 4)] {
        let op = Route {
            logits: cx.values(&[1, values.len()], DType::F32, &values),
            bias: None,
            factors: None,
            scores: Scores::Softmax,
            normalize: true,
            scale: 1.0,
            ids: cx.output(&[1, top], DType::I32),
            weights: cx.output(&[1, top], DType::F32),
        };
        all.push(Case { name: format!("{top} of {values:?}"), op });
    }
    all
}
