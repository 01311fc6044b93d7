//! Conformance cases.

use super::GatedDelta;
use crate::conformance::{Case, CaseCx, Fill};
use crate::ops::short_conv::sequences;
use crate::spec::DType;

/// Sizes and types of a case.
#[derive(Clone, Copy)]
struct Shape {
    heads_k: usize,
    heads_v: usize,
    d_k: usize,
    d_v: usize,
    x: DType,
    out: DType,
    fill: Fill,
    /// Elements between rows.
    gap: usize,
}

fn delta(cx: &mut CaseCx, s: Shape, lens: &[usize]) -> GatedDelta {
    let rows = lens.iter().sum();
    let Shape { heads_k, heads_v, d_k, d_v, .. } = s;
    let decay: Vec<f64> = (0..2 * heads_v)
        .map(|i| cx.value(if i < heads_v { Fill::Uniform(0.01, 3.0) } else { Fill::Normal(1.0) }))
        .collect();
    GatedDelta {
        qkv: cx.random_gapped(&[rows, 2 * heads_k * d_k + heads_v * d_v], s.x, s.fill, s.gap),
        gates: cx.random_gapped(&[rows, 2 * heads_v], s.x, Fill::Normal(2.0), s.gap),
        decay: cx.values(&[2, heads_v], DType::F32, &decay),
        state: cx.random(&[lens.len() + 2, heads_v * d_k, d_v], DType::F32, Fill::Normal(1.0)),
        seqs: sequences(cx, lens),
        out: cx.output_gapped(&[rows, heads_v * d_v], s.out, s.gap),
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<GatedDelta>> {
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    let fill = Fill::Normal(1.0);
    let base = Shape { heads_k: 2, heads_v: 4, d_k: 16, d_v: 24, x: F32, out: F32, fill, gap: 0 };
    let ragged: &[&[usize]] = &[&[], &[1], &[2, 1, 1, 3, 1, 2], &[1; 17], &[41], &[2, 30, 1, 9]];
    for lens in ragged {
        for (heads_k, heads_v, d_k, d_v) in
            [(1, 1, 1, 1), (2, 4, 16, 24), (1, 3, 7, 33), (3, 3, 65, 32), (2, 2, 33, 70)]
        {
            let shape = Shape { heads_k, heads_v, d_k, d_v, ..base };
            let name = format!("{heads_k} by {heads_v} heads of {d_k} by {d_v}, {lens:?}");
            all.push(Case { name, op: delta(cx, shape, lens) });
        }
    }
    for x in [F32, BF16, F16] {
        for out in [F32, BF16, F16] {
            for fill in [Fill::Spiky, Fill::Normal(0.02)] {
                let shape = Shape { x, out, fill, gap: 5, d_v: 27, ..base };
                all.push(Case {
                    name: format!("{x} to {out}, {fill:?}"),
                    op: delta(cx, shape, &[6, 1, 13, 1]),
                });
            }
        }
    }
    // Heads of real models, a prompt and steps.
    for lens in [&[24][..], &[1, 1][..]] {
        let shape = Shape { heads_k: 2, heads_v: 4, d_k: 128, d_v: 128, x: BF16, out: BF16, ..base };
        all.push(Case { name: format!("heads of 128, {lens:?}"), op: delta(cx, shape, lens) });
    }
    let shape = Shape { heads_k: 1, heads_v: 1, d_k: 256, d_v: 40, ..base };
    all.push(Case { name: "keys of 256".into(), op: delta(cx, shape, &[5, 3]) });
    all
}
