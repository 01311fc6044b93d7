//! Conformance cases.

use super::ExpertMatmul;
use crate::Weights;
use crate::conformance::{Case, CaseCx, Fill};
use crate::ops::Activation;
use crate::spec::{Code, DType, Format, Grouped, Zero};

struct Shape {
    rows: usize,
    share: usize,
    experts: usize,
    n: usize,
    gated: bool,
    gap: usize,
}

fn case(cx: &mut CaseCx, shape: &Shape, w: Weights, x: DType, out: DType) -> Case<ExpertMatmul> {
    let &Shape { rows, share, experts, n, gated, gap } = shape;
    let (choices, k) = (rows * share, w.k());
    let ids: Vec<i32> =
        (0..choices).map(|i| if i == 1 { experts as i32 - 1 } else { cx.below(experts) as i32 }).collect();
    let op = ExpertMatmul {
        x: cx.random_gapped(&[rows, k], x, Fill::Spiky, gap),
        experts,
        ids: cx.ints(&[choices], &ids),
        share,
        act: if gated { Activation::Silu } else { Activation::None },
        gated,
        out: cx.output_gapped(&[choices, if gated { n / 2 } else { n }], out, gap),
        w,
    };
    let kind = if gated { ", gated" } else { "" };
    let name = format!("{rows} rows x {share} of {experts} x {n}x{k} {} {x} to {out}{kind}", op.w.format());
    Case { name, op }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<ExpertMatmul>> {
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    let small = |gated| Shape { rows: 3, share: 2, experts: 5, n: 14, gated, gap: 1 };
    for x in [F32, BF16, F16] {
        for w in [F32, BF16, F16].map(Format::Dense) {
            for gated in [false, true] {
                let weights = cx.weights(w, 5 * 14, 67, false);
                all.push(case(cx, &small(gated), weights, x, x));
            }
        }
    }
    let codes = |code, group, zero, scale| Format::Grouped(Grouped { code, group, zero, scale });
    for format in [
        codes(Code::Int4, 32, Zero::None, BF16),
        codes(Code::Int4, 32, Zero::Codes, F16),
        codes(Code::Int8, 0, Zero::None, F32),
        codes(Code::Int8, 128, Zero::Codes, BF16),
        codes(Code::Fp8, 64, Zero::None, F32),
        codes(Code::Fp4, 32, Zero::None, DType::E8M0),
        codes(Code::Int4, 64, Zero::Offset, BF16),
    ] {
        for gated in [false, true] {
            let shape = Shape { n: 16, gap: 0, ..small(gated) };
            let weights = cx.weights(format, 5 * 16, 128, false);
            all.push(case(cx, &shape, weights, F32, BF16));
        }
    }
    for (rows, share, experts, n, k) in
        [(0, 2, 3, 4, 8), (1, 1, 1, 2, 1), (1, 4, 4, 2, 0), (2, 3, 7, 130, 33)]
    {
        for gated in [false, true] {
            let weights = cx.weights(Format::Dense(BF16), experts * n, k, false);
            all.push(case(cx, &Shape { rows, share, experts, n, gated, gap: 0 }, weights, F32, F32));
        }
    }
    // Experts that are stored one by one, their parts too.
    for format in [Format::Dense(BF16), codes(Code::Int4, 32, Zero::None, BF16)] {
        let parts = [8; 6].map(|rows| cx.weights(format, rows, 64, false));
        if let Ok(w) = Weights::stack(parts) {
            let shape = Shape { rows: 4, share: 2, experts: 3, n: 16, gated: true, gap: 0 };
            let case = case(cx, &shape, w, BF16, F32);
            all.push(Case { name: format!("stacked: {}", case.name), ..case });
        }
    }
    // Qwen3-VL-30B-A3B: a step's gates, of fewer experts.
    let weights = cx.weights(Format::Dense(BF16), 9 * 1536, 2048, false);
    let shape = Shape { rows: 1, share: 8, experts: 9, n: 1536, gated: true, gap: 0 };
    all.push(case(cx, &shape, weights, BF16, BF16));
    all
}
