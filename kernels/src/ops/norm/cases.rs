//! Conformance cases.

use super::{Norm, NormKind};
use crate::buffer::View;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType;

/// Sizes and types of a case.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    d: usize,
    kind: NormKind,
    x: DType,
    out: DType,
    fill: Fill,
    /// Elements between rows of every operand.
    gap: usize,
}

fn plain(cx: &mut CaseCx, s: Shape, weight: Option<DType>, bias: bool) -> Norm {
    let vector = |cx: &mut CaseCx, dtype| cx.random(&[s.d], dtype, Fill::Normal(1.0));
    Norm {
        x: cx.random_gapped(&[s.rows, s.d], s.x, s.fill, s.gap),
        add: None,
        sum: None,
        weight: weight.map(|dtype| vector(cx, dtype)),
        bias: bias.then(|| vector(cx, weight.unwrap_or(DType::F32))),
        kind: s.kind,
        weight_offset: 0.0,
        eps: 1e-6,
        out: cx.output_gapped(&[s.rows, s.d], s.out, s.gap),
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<Norm>> {
    use DType::{BF16, F16, F32};
    use NormKind::{Layer, Rms};
    let mut all = Vec::new();
    let mut push = |name: String, op: Norm| all.push(Case { name, op });

    for (rows, d) in [
        (0, 64),
        (3, 0),
        (1, 1),
        (2, 7),
        (5, 8),
        (3, 9),
        (4, 15),
        (7, 16),
        (2, 17),
        (3, 63),
        (5, 64),
        (2, 65),
        (13, 127),
        (1, 576),
        (67, 576),
        (19, 768),
        (3, 1031),
        (2, 3072),
        (2, 8193),
        (1, 12288),
    ] {
        for kind in [Rms, Layer] {
            let shape = Shape { rows, d, kind, x: F32, out: F32, fill: Fill::Normal(1.0), gap: 0 };
            push(format!("{kind:?} {rows}x{d}"), plain(cx, shape, Some(F32), kind == Layer));
        }
    }
    for x in [F32, BF16, F16] {
        for out in [F32, BF16, F16] {
            for (kind, fill) in
                [(Rms, Fill::Spiky), (Layer, Fill::Spiky), (Layer, Fill::Uniform(99.0, 101.0))]
            {
                let shape = Shape { rows: 3, d: 83, kind, x, out, fill, gap: 5 };
                push(format!("{kind:?} {x} to {out}, {fill:?}"), plain(cx, shape, Some(x), true));
            }
        }
    }
    let shape = Shape { rows: 5, d: 97, kind: Rms, x: F32, out: F32, fill: Fill::Spiky, gap: 3 };
    push("neither weight nor bias".into(), plain(cx, shape, None, false));
    push("bias alone".into(), plain(cx, Shape { kind: Layer, ..shape }, None, true));
    push("weight stored less one".into(), Norm { weight_offset: 1.0, ..plain(cx, shape, Some(BF16), false) });
    push("large eps".into(), Norm { eps: 10.0, ..plain(cx, shape, Some(F32), false) });
    let zeros = cx.values(&[2, 40], F32, &[0.0; 80]);
    push(
        "zeros".into(),
        Norm { x: zeros, ..plain(cx, Shape { rows: 2, d: 40, gap: 0, ..shape }, Some(F32), true) },
    );

    // With something added; the sum kept apart, in the place of either operand, or not at all; the result in place.
    for (kind, x, out) in [(Rms, F32, F32), (Layer, BF16, BF16), (Rms, F16, F32), (Layer, F32, BF16)] {
        let shape = Shape { rows: 6, d: 131, kind, x, out, fill: Fill::Spiky, gap: 7 };
        let with_add = |cx: &mut CaseCx| {
            let op = plain(cx, shape, Some(x), kind == Layer);
            Norm { add: Some(cx.random_gapped(&[6, 131], x, Fill::Normal(2.0), 7)), ..op }
        };
        push(format!("{kind:?} {x} add"), with_add(cx));
        let op = with_add(cx);
        let sum = Some(cx.output_gapped(&[6, 131], x, 2));
        push(format!("{kind:?} {x} add, sum"), Norm { sum, ..op });
        let op = with_add(cx);
        push(format!("{kind:?} {x} add, sum in x"), Norm { sum: Some(op.x.clone()), ..op });
        let op = with_add(cx);
        push(format!("{kind:?} {x} add, sum in add"), Norm { sum: op.add.clone(), ..op });
        if x == out {
            let op = with_add(cx);
            push(format!("{kind:?} {x} in place"), Norm { out: op.x.clone(), ..op });
            let op = with_add(cx);
            let (sum, out) = (Some(op.x.clone()), op.add.clone());
            push(format!("{kind:?} {x} both in place"), Norm { sum, out: out.unwrap_or(op.out), ..op });
        }
    }
    // Rows that all begin at 16 bytes.
    for (kind, x, out, d) in
        [(Rms, BF16, BF16, 576), (Layer, F16, F16, 768), (Layer, BF16, F32, 3072), (Rms, F16, BF16, 8200)]
    {
        let shape = Shape { rows: 5, d, kind, x, out, fill: Fill::Spiky, gap: 8 };
        push(format!("{kind:?} 5x{d} {x} to {out}, aligned"), plain(cx, shape, Some(x), kind == Layer));
        let op = plain(cx, shape, Some(x), kind == Layer);
        let (add, sum) = (cx.random(&[5, d], x, Fill::Normal(2.0)), Some(op.x.clone()));
        push(format!("{kind:?} 5x{d} {x} to {out}, aligned add"), Norm { add: Some(add), sum, ..op });
    }
    // Heads of a packed projection: a window into wider rows.
    let narrow = |view: View| view.narrow(1, 64, 64).and_then(|view| view.narrow(0, 1, 3));
    let (x, out) = (cx.random(&[4, 192], F32, Fill::Normal(1.0)), cx.output(&[4, 192], F32));
    if let (Ok(x), Ok(out)) = (narrow(x), narrow(out)) {
        let shape = Shape { rows: 3, d: 64, gap: 0, ..shape };
        push("a window".into(), Norm { x, out, ..plain(cx, shape, Some(F32), false) });
    }
    all
}
