//! Conformance cases.

use super::PointwiseGrad;
use crate::conformance::{Case, CaseCx, Fill};
use crate::ops::Activation;
use crate::spec::DType::F32;

/// Sizes and gaps between rows of a case.
#[derive(Clone, Copy)]
struct Shape(usize, usize, usize);

fn plain(cx: &mut CaseCx, Shape(rows, d, gap): Shape) -> PointwiseGrad {
    let x = cx.random_gapped(&[rows, d], F32, Fill::Spiky, gap);
    let d_out = cx.random_gapped(&[rows, d], F32, Fill::Normal(1.0), gap);
    PointwiseGrad::new(x, d_out, cx.random_gapped(&[rows, d], F32, Fill::Normal(1.0), 2 * gap))
}

/// All factors and all gradients.
fn full(cx: &mut CaseCx, shape: Shape) -> PointwiseGrad {
    let Shape(rows, d, gap) = shape;
    let normal = Fill::Normal(1.0);
    PointwiseGrad {
        scale: 0.75,
        col: Some(cx.random(&[d], F32, normal)),
        row: Some(cx.random(&[rows], F32, normal)),
        by: Some(cx.random_gapped(&[rows, d], F32, normal, gap)),
        d_col: Some(cx.random(&[d], F32, normal)),
        d_by: Some(cx.random_gapped(&[rows, d], F32, normal, gap)),
        d_add: Some(cx.random_gapped(&[rows, d], F32, normal, 2 * gap)),
        ..plain(cx, shape)
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<PointwiseGrad>> {
    let mut all = Vec::new();
    let mut push = |name: String, op: PointwiseGrad| all.push(Case { name, op });
    for (rows, d, gap) in [
        (0, 8, 0),
        (3, 0, 0),
        (1, 1, 0),
        (2, 7, 1),
        (5, 64, 0),
        (15, 65, 3),
        (17, 513, 0),
        (67, 576, 0),
        (1031, 33, 0),
        (2, 4099, 5),
        (1, 32_003, 0),
    ] {
        push(format!("{rows}x{d}, gap {gap}"), full(cx, Shape(rows, d, gap)));
    }
    let shape = Shape(19, 97, 3);
    push("a copy".into(), plain(cx, shape));
    push("a factor".into(), PointwiseGrad { scale: -0.0625, ..plain(cx, shape) });
    let op = full(cx, shape);
    push("in place of dx".into(), PointwiseGrad { dx: Some(op.d_out.clone()), ..op });
    let op = full(cx, shape);
    push("in place of d_by".into(), PointwiseGrad { d_by: Some(op.d_out.clone()), ..op });
    let op = full(cx, shape);
    push("in place of d_add".into(), PointwiseGrad { d_add: Some(op.d_out.clone()), ..op });
    let op = full(cx, shape);
    push("dx alone".into(), PointwiseGrad { d_col: None, d_by: None, d_add: None, ..op });
    let op = full(cx, shape);
    push("d_col alone".into(), PointwiseGrad { dx: None, d_by: None, d_add: None, ..op });
    let op = full(cx, shape);
    push("d_by alone".into(), PointwiseGrad { dx: None, d_col: None, d_add: None, ..op });
    let op = full(cx, shape);
    push("d_add alone".into(), PointwiseGrad { dx: None, d_col: None, d_by: None, ..op });
    let op = full(cx, shape);
    push("without by".into(), PointwiseGrad { by: None, d_by: None, ..op });
    let op = full(cx, shape);
    push("without col and row".into(), PointwiseGrad { col: None, d_col: None, row: None, ..op });
    for softcap in [30.0, 0.5] {
        push(format!("capped at {softcap}"), PointwiseGrad { softcap, ..plain(cx, shape) });
        push(format!("capped at {softcap}, and the rest"), PointwiseGrad { softcap, ..full(cx, shape) });
    }
    let bounds = Some([-0.5, 1.25]);
    push("within bounds".into(), PointwiseGrad { bounds, ..plain(cx, shape) });
    push("within bounds, and the rest".into(), PointwiseGrad { bounds, softcap: 0.75, ..full(cx, shape) });
    // The bounds themselves belong to what has a gradient.
    let x = cx.values(&[1, 5], F32, &[-0.625, -0.5, 0.0, 1.25, 1.5]);
    push("at the bounds".into(), PointwiseGrad { x, bounds, ..plain(cx, Shape(1, 5, 0)) });
    for act in
        [Activation::GeluTanh, Activation::GeluErf, Activation::QuickGelu, Activation::Silu, Activation::Relu]
    {
        push(format!("{act:?}"), PointwiseGrad { act, ..plain(cx, shape) });
        push(format!("{act:?} and the rest"), PointwiseGrad { act, ..full(cx, shape) });
    }
    push(
        "capped, then an activation".into(),
        PointwiseGrad { act: Activation::Silu, softcap: 2.0, ..full(cx, shape) },
    );
    // The halves of wider rows.
    let wide = cx.random(&[6, 100], F32, Fill::Normal(2.0));
    let grads = cx.random(&[6, 100], F32, Fill::Normal(1.0));
    if let (Ok(up), Ok(gate), Ok(d_up), Ok(d_gate)) =
        (wide.narrow(1, 0, 50), wide.narrow(1, 50, 50), grads.narrow(1, 0, 50), grads.narrow(1, 50, 50))
    {
        let d_out = cx.random(&[6, 50], F32, Fill::Normal(1.0));
        let op = PointwiseGrad {
            act: Activation::Silu,
            by: Some(up),
            d_by: Some(d_up),
            ..PointwiseGrad::new(gate, d_out, d_gate)
        };
        push("halves of rows".into(), op);
    }
    all
}
