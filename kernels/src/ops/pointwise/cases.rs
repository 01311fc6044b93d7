//! Conformance cases.

use super::Pointwise;
use crate::conformance::{Case, CaseCx, Fill};
use crate::ops::Activation;
use crate::spec::DType;

/// Sizes, types and gaps between rows of a case.
#[derive(Clone, Copy)]
struct Shape(usize, usize, DType, DType, usize);

fn plain(cx: &mut CaseCx, Shape(rows, d, x, out, gap): Shape) -> Pointwise {
    let x = cx.random_gapped(&[rows, d], x, Fill::Spiky, gap);
    Pointwise::new(x, cx.output_gapped(&[rows, d], out, gap))
}

fn full(cx: &mut CaseCx, shape: Shape, col: DType) -> Pointwise {
    let Shape(rows, d, x, out, gap) = shape;
    Pointwise {
        scale: 0.75,
        col: Some(cx.random(&[d], col, Fill::Normal(1.0))),
        row: Some(cx.random(&[rows], DType::F32, Fill::Normal(1.0))),
        by: Some(cx.random_gapped(&[rows, d], x, Fill::Normal(1.0), gap)),
        add: Some(cx.random_gapped(&[rows, d], out, Fill::Normal(1.0), 2 * gap)),
        ..plain(cx, shape)
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<Pointwise>> {
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    let mut push = |name: String, op: Pointwise| all.push(Case { name, op });
    for (rows, d) in
        [(0, 8), (3, 0), (1, 1), (2, 7), (5, 64), (3, 65), (7, 513), (2, 1031), (67, 576), (1, 32_003)]
    {
        push(format!("{rows}x{d}"), full(cx, Shape(rows, d, F32, F32, 0), F32));
    }
    for x in [F32, BF16, F16] {
        for out in [F32, BF16, F16] {
            push(format!("{x} to {out}"), full(cx, Shape(3, 83, x, out, 5), x));
            let op = full(cx, Shape(4, 96, x, out, 0), F32);
            push(
                format!("{x} to {out}, in place of add"),
                Pointwise { out: op.add.clone().unwrap_or(op.out), ..op },
            );
        }
        let op = full(cx, Shape(4, 71, x, x, 3), BF16);
        push(format!("{x} in place"), Pointwise { out: op.x.clone(), ..op });
        let op = full(cx, Shape(4, 71, x, x, 3), F16);
        push(format!("{x} in place of by"), Pointwise { out: op.by.clone().unwrap_or(op.out), ..op });
    }
    let shape = Shape(5, 97, F32, F32, 3);
    push("a copy".into(), plain(cx, shape));
    push("a factor".into(), Pointwise { scale: -0.0625, ..plain(cx, shape) });
    for softcap in [30.0, 0.5] {
        push(format!("capped at {softcap}"), Pointwise { softcap, ..plain(cx, shape) });
        push(format!("capped at {softcap}, and the rest"), Pointwise { softcap, ..full(cx, shape, F32) });
    }
    let bounds = Some([-0.5, 1.25]);
    for x in [F32, BF16, F16] {
        push(format!("{x} within bounds"), Pointwise { bounds, ..plain(cx, Shape(4, 88, x, x, 8)) });
    }
    push("one value alone".into(), Pointwise { bounds: Some([0.25; 2]), ..plain(cx, shape) });
    push("within bounds, and the rest".into(), Pointwise { bounds, softcap: 0.75, ..full(cx, shape, F32) });
    for act in
        [Activation::GeluTanh, Activation::GeluErf, Activation::QuickGelu, Activation::Silu, Activation::Relu]
    {
        push(format!("{act:?}"), Pointwise { act, ..plain(cx, shape) });
        let by = Some(cx.random(&[5, 97], F32, Fill::Normal(1.0)));
        push(format!("{act:?} as a gate"), Pointwise { act, by, ..plain(cx, shape) });
    }
    // The halves of wider rows.
    let wide = cx.random(&[6, 100], BF16, Fill::Normal(2.0));
    if let (Ok(up), Ok(gate)) = (wide.narrow(1, 0, 50), wide.narrow(1, 50, 50)) {
        let out = cx.output(&[6, 50], BF16);
        let op = Pointwise { act: Activation::Silu, by: Some(up), ..Pointwise::new(gate, out) };
        push("halves of rows".into(), op);
    }
    all
}
