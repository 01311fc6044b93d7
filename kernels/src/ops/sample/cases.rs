//! Conformance cases.

use super::{Sample, params};
use crate::View;
use crate::conformance::{Case, CaseCx, Fill};
use crate::op::Op;
use crate::oracle::Oracle;
use crate::spec::DType;

/// Settings of a row: temperature, top-k, top-p, min-p, repetition penalty.
type Settings = [f32; 5];

const GREEDY: Settings = [0.0, 0.0, 1.0, 0.0, 1.0];

fn settings(cx: &mut CaseCx, rows: usize, each: &[Settings]) -> View {
    let mut all = Vec::new();
    for row in 0..rows {
        all.extend(each[row % each.len()].map(f64::from));
        all.push((cx.unit() as f32).min(0.999).into());
        all.push(0.0);
    }
    cx.values(&[rows, params::COUNT], DType::F32, &all)
}

/// Tokens of the vocabulary, some twice, and padding in between.
fn history(cx: &mut CaseCx, rows: usize, width: usize, vocab: usize) -> View {
    let ids: Vec<i32> = (0..rows * width)
        .map(|at| match at % 4 {
            3 => -1 - cx.below(5) as i32,
            2 => (at % vocab) as i32,
            _ => cx.below(vocab) as i32,
        })
        .collect();
    cx.ints(&[rows, width], &ids)
}

/// The same, each row with a mask of its own: row `n` of `masks`, or none where that has fewer.
fn masked_settings(cx: &mut CaseCx, rows: usize, each: &[Settings], masks: usize) -> View {
    let mut all = Vec::new();
    for row in 0..rows {
        all.extend(each[row % each.len()].map(f64::from));
        all.push((cx.unit() as f32).min(0.999).into());
        all.push(if row < masks { (row + 1) as f64 } else { 0.0 });
    }
    cx.values(&[rows, params::COUNT], DType::F32, &all)
}

/// A mask for each list of tokens.
fn mask(cx: &mut CaseCx, vocab: usize, allowed: &[Vec<usize>]) -> View {
    let words = vocab.div_ceil(32);
    let mut bits = vec![0u32; allowed.len() * words];
    for (row, tokens) in allowed.iter().enumerate() {
        tokens.iter().for_each(|&token| bits[row * words + token / 32] |= 1 << (token % 32));
    }
    let bits: Vec<i32> = bits.into_iter().map(u32::cast_signed).collect();
    cx.ints(&[allowed.len(), words], &bits)
}

/// Rows with masks that leave one token, few, all but the likeliest, none, all; and rows without.
fn masked(cx: &mut CaseCx, x: DType, vocab: usize, set: &[Settings]) -> Sample {
    let tokens = |keep: &dyn Fn(usize) -> bool| (0..vocab).filter(|&token| keep(token)).collect::<Vec<_>>();
    let allowed = [
        vec![vocab - 1],
        vec![0],
        tokens(&|token| token % 7 == 3 % vocab),
        tokens(&|token| token % 3 != 0 || token == 0),
        vec![],
        tokens(&|_| true),
        tokens(&|token| token >= vocab / 2),
        tokens(&|token| token / 32 % 2 == 0),
    ];
    let rows = 2 * allowed.len();
    sure(cx, |cx| Sample {
        logits: cx.random_gapped(&[rows, vocab], x, Fill::Normal(3.0), 3),
        params: masked_settings(cx, rows, set, allowed.len()),
        history: Some(history(cx, rows, 9, vocab)),
        mask: Some(mask(cx, vocab, &allowed)),
        out: cx.output(&[rows], DType::I32),
    })
}

/// The first of a few random ops whose tokens rounding cannot change, or the last of them.
fn sure(cx: &mut CaseCx, make: impl Fn(&mut CaseCx) -> Sample) -> Sample {
    let mut op = make(cx);
    for _ in 0..8 {
        let mut oracle = Oracle::new(cx.id(), false);
        let known = op.reference(&mut oracle).is_ok();
        if known && oracle.into_expected().iter().flat_map(|e| &e.bounds).all(|&bound| bound == 0.0) {
            break;
        }
        op = make(cx);
    }
    op
}

/// Greedy, drawing and penalized rows with NaN or infinities at the ends and inside, good rows between them.
fn strange(cx: &mut CaseCx, x: DType, vocab: usize) -> Sample {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let good: Vec<f64> = (0..vocab).map(|i| (i * 7 % 31) as f64 / 4.0).collect();
    let with = |changes: &[(usize, f64)]| {
        let mut row = good.clone();
        changes.iter().for_each(|&(at, value)| row[at] = value);
        row
    };
    let (last, middle) = (vocab - 1, vocab / 2);
    let rows = [
        with(&[(0, nan)]),
        good.clone(),
        with(&[(last, nan)]),
        with(&[(middle, -nan)]),
        with(&[(middle, inf), (last, nan)]),
        with(&[(0, -inf), (last, -inf)]),
        with(&[(1, nan), (middle, -inf)]),
        with(&[(middle, inf)]),
        vec![nan; vocab],
        vec![-inf; vocab],
        vec![inf; vocab],
        (0..vocab).map(|i| if i % 3 == 0 { nan } else { -(i as f64) }).collect(),
        good.clone(),
    ];
    let set = [GREEDY, [0.5, 0.0, 1.0, 0.0, 1.0], [1.0, 3.0, 0.9, 0.05, 1.3], [0.0, 0.0, 1.0, 0.0, 1.3]];
    // Each row with each of the settings.
    let count = rows.len() * set.len();
    let values: Vec<f64> = rows.iter().flat_map(|row| row.repeat(set.len())).collect();
    sure(cx, |cx| Sample {
        logits: cx.values(&[count, vocab], x, &values),
        params: settings(cx, count, &set),
        history: Some(history(cx, count, 9, vocab)),
        mask: None,
        out: cx.output(&[count], DType::I32),
    })
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<Sample>> {
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    let mut push = |name: String, op: Sample| all.push(Case { name, op });
    let sizes =
        [(0, 5), (1, 1), (3, 2), (2, 7), (5, 15), (4, 16), (3, 17), (2, 63), (3, 65), (2, 1023), (2, 1025)];
    let sampled: [(&str, Settings); 9] = [
        ("temperature", [0.7, 0.0, 1.0, 0.0, 1.0]),
        ("hot", [1e4, 0.0, 1.0, 0.0, 1.0]),
        ("cold", [0.02, 0.0, 1.0, 0.0, 1.0]),
        ("top-k", [1.0, 5.0, 1.0, 0.0, 1.0]),
        ("top-k beyond", [1.0, 1e9, 1.0, 0.0, 1.0]),
        ("top-p", [1.3, 0.0, 0.8, 0.0, 1.0]),
        ("top-p none", [1.0, 0.0, 0.0, 0.0, 1.0]),
        ("min-p", [1.0, 0.0, 1.0, 0.05, 1.0]),
        ("all", [0.9, 40.0, 0.95, 0.02, 1.2]),
    ];
    for x in [F32, BF16, F16] {
        for (rows, vocab) in sizes {
            let op = sure(cx, |cx| Sample {
                logits: cx.random_gapped(&[rows, vocab], x, Fill::Normal(3.0), rows),
                params: settings(cx, rows, &[GREEDY]),
                history: None,
                mask: None,
                out: cx.output(&[rows], DType::I32),
            });
            push(format!("greedy {rows}x{vocab} {x}"), op);
        }
        for (name, set) in sampled {
            for (rows, vocab) in [(1, 1), (4, 30), (3, 1031)] {
                let op = sure(cx, |cx| Sample {
                    logits: cx.random_gapped(&[rows, vocab], x, Fill::Normal(3.0), 3),
                    params: settings(cx, rows, &[set]),
                    history: Some(history(cx, rows, 9, vocab)),
                    mask: None,
                    out: cx.output(&[rows], DType::I32),
                });
                push(format!("{name} {rows}x{vocab} {x}"), op);
            }
        }
    }
    // Ties: the lowest id wins, whichever lane or block it is in, and both zeros are one value.
    let least = f64::NEG_INFINITY;
    let rows: [(&str, Vec<f64>); 4] = [
        ("all equal", vec![2.5; 2100]),
        ("ties", (0..3000).map(|i| f64::from(i32::from(i == 1700 || i == 1031 || i == 2999))).collect()),
        ("one finite", (0..2100).map(|i| if i == 2049 { -9.0 } else { least }).collect()),
        ("zeros of both signs", (0..50).map(|i| if i < 20 { -0.0 } else { 0.0 }).collect()),
    ];
    for (name, values) in rows {
        for x in [F32, BF16] {
            for set in [GREEDY, [1.0, 1.0, 1.0, 0.0, 1.0], [0.5, 0.0, 1.0, 0.0, 1.0]] {
                let op = sure(cx, |cx| Sample {
                    logits: cx.values(&[1, values.len()], x, &values),
                    params: settings(cx, 1, &[set]),
                    history: None,
                    mask: None,
                    out: cx.output(&[1], DType::I32),
                });
                push(format!("{name}, {x}, temperature {}", set[params::TEMPERATURE]), op);
            }
        }
    }
    for (x, vocab) in [(F32, 5), (F32, 1027), (BF16, 2100), (F16, 4100)] {
        push(format!("no token, vocabulary of {vocab} {x}"), strange(cx, x, vocab));
    }
    let op = sure(cx, |cx| Sample {
        logits: cx.random(&[4, 99], F32, Fill::Normal(1.0)),
        params: settings(cx, 4, &[[0.0, 0.0, 1.0, 0.0, 1.7]]),
        history: Some(history(cx, 4, 60, 99)),
        mask: None,
        out: cx.output(&[4], DType::I32),
    });
    push("greedy with a penalty".into(), op);
    let op = sure(cx, |cx| Sample {
        logits: cx.random(&[2, 20], F32, Fill::Normal(1.0)),
        params: settings(cx, 2, &[GREEDY]),
        history: Some(cx.ints(&[2, 0], &[])),
        mask: None,
        out: cx.output(&[2], DType::I32),
    });
    push("empty history".into(), op);
    for (x, vocab) in [(F32, 1), (F32, 31), (BF16, 32), (F16, 33), (F32, 1030), (BF16, 4129), (F32, 8200)] {
        let all = [GREEDY, sampled[0].1, sampled[8].1, sampled[5].1, [0.0, 0.0, 1.0, 0.0, 1.3], sampled[3].1];
        push(format!("masks, vocabulary of {vocab} {x}"), masked(cx, x, vocab, &all));
        push(format!("masks of greedy rows, vocabulary of {vocab} {x}"), masked(cx, x, vocab, &[GREEDY]));
    }
    // What a mask leaves out may be infinite, but no NaN.
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let bad: Vec<f64> =
        [[1.0, inf, 3.0, 2.0], [1.0, nan, 3.0, 2.0], [inf, -inf, inf, -inf], [-inf, 1.0, 2.0, 9.0]]
            .concat()
            .repeat(2);
    let op = Sample {
        logits: cx.values(&[8, 4], F32, &bad),
        params: {
            let set: Vec<f64> =
                (0..8).flat_map(|row| [f64::from(row / 4), 0.0, 1.0, 0.0, 1.0, 0.5, 1.0]).collect();
            cx.values(&[8, params::COUNT], F32, &set)
        },
        history: None,
        mask: Some(mask(cx, 4, &[vec![0, 2], vec![1]])),
        out: cx.output(&[8], DType::I32),
    };
    push("masks over what is no number".into(), op);
    // Long ties: cuts that fall among hundreds of equal logits, and a top-k that reaches logits without weight.
    let levels: Vec<f64> = (0..5003).map(|_| (cx.value(Fill::Normal(2.0))).round()).collect();
    for (name, set) in [
        ("temperature", [0.9, 0.0, 1.0, 0.0, 1.0]),
        ("top-k", [1.1, 700.0, 1.0, 0.0, 1.0]),
        ("top-p", [1.4, 0.0, 0.6, 0.0, 1.0]),
        ("min-p", [1.0, 0.0, 1.0, 0.03, 1.0]),
        ("all", [1.0, 2000.0, 0.9, 0.004, 1.0]),
        ("top-k of a cold row", [0.02, 900.0, 0.5, 0.0, 1.0]),
        ("top-k of a hot row", [1e4, 900.0, 1.0, 0.0, 1.0]),
    ] {
        let op = sure(cx, |cx| Sample {
            logits: cx.values(&[1, levels.len()], BF16, &levels),
            params: settings(cx, 1, &[set]),
            history: None,
            mask: None,
            out: cx.output(&[1], DType::I32),
        });
        push(format!("long ties, {name}"), op);
    }
    // SmolVLM-256M: a batch whose rows have settings of their own.
    let op = sure(cx, |cx| Sample {
        logits: cx.random(&[7, 49280], F32, Fill::Normal(4.0)),
        params: settings(
            cx,
            7,
            &[GREEDY, sampled[0].1, sampled[3].1, sampled[5].1, sampled[7].1, sampled[8].1, sampled[2].1],
        ),
        history: Some(history(cx, 7, 64, 49280)),
        mask: None,
        out: cx.output(&[7], DType::I32),
    });
    push("a real vocabulary".into(), op);
    all
}
