//! Conformance cases.

use super::NormGrad;
use crate::buffer::View;
use crate::conformance::{Case, CaseCx, Fill};
use crate::ops::NormKind;
use crate::spec::DType::F32;

/// Sizes of a case.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    d: usize,
    kind: NormKind,
    fill: Fill,
    /// Elements between rows of every operand.
    gap: usize,
}

/// All gradients, each of which has a value before.
fn full(cx: &mut CaseCx, s: Shape) -> NormGrad {
    let normal = Fill::Normal(1.0);
    NormGrad {
        x: cx.random_gapped(&[s.rows, s.d], F32, s.fill, s.gap),
        weight: Some(cx.random(&[s.d], F32, normal)),
        kind: s.kind,
        weight_offset: 0.0,
        eps: 1e-6,
        d_out: cx.random_gapped(&[s.rows, s.d], F32, normal, s.gap),
        dx: Some(cx.random_gapped(&[s.rows, s.d], F32, normal, 2 * s.gap)),
        d_weight: Some(cx.random(&[s.d], F32, normal)),
        d_bias: Some(cx.random(&[s.d], F32, normal)),
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<NormGrad>> {
    use NormKind::{Layer, Rms};
    let mut all = Vec::new();
    let mut push = |name: String, op: NormGrad| all.push(Case { name, op });
    for kind in [Rms, Layer] {
        // Rows around those of a block of sums, and more blocks than have that many rows.
        for (rows, d) in [
            (0, 64),
            (3, 0),
            (1, 1),
            (2, 7),
            (5, 8),
            (3, 9),
            (15, 16),
            (16, 17),
            (17, 63),
            (33, 65),
            (13, 127),
            (1, 576),
            (67, 576),
            (19, 768),
            (1031, 31),
            (3, 1031),
            (2, 8193),
        ] {
            let shape = Shape { rows, d, kind, fill: Fill::Normal(1.0), gap: 0 };
            push(format!("{kind:?} {rows}x{d}"), full(cx, shape));
        }
        let shape = Shape { rows: 21, d: 83, kind, fill: Fill::Spiky, gap: 5 };
        push(format!("{kind:?} spiky, gaps"), full(cx, shape));
        let far = Shape { fill: Fill::Uniform(99.0, 101.0), ..shape };
        push(format!("{kind:?} far from zero"), full(cx, far));
        let op = full(cx, shape);
        push(format!("{kind:?} in place"), NormGrad { dx: Some(op.d_out.clone()), ..op });
        let op = full(cx, shape);
        push(format!("{kind:?} dx alone"), NormGrad { d_weight: None, d_bias: None, ..op });
        let op = full(cx, shape);
        push(format!("{kind:?} d_weight alone"), NormGrad { dx: None, d_bias: None, ..op });
        let op = full(cx, shape);
        push(format!("{kind:?} d_bias alone"), NormGrad { dx: None, d_weight: None, ..op });
        let op = full(cx, shape);
        push(format!("{kind:?} without weight"), NormGrad { weight: None, d_weight: None, ..op });
        push(format!("{kind:?} weight stored less one"), NormGrad { weight_offset: 1.0, ..full(cx, shape) });
        push(format!("{kind:?} large eps"), NormGrad { eps: 10.0, ..full(cx, shape) });
        let zeros = cx.values(&[2, 40], F32, &[0.0; 80]);
        let op = full(cx, Shape { rows: 2, d: 40, gap: 0, ..shape });
        push(format!("{kind:?} zeros"), NormGrad { x: zeros, ..op });
        // Heads of a packed projection: a window into wider rows.
        let narrow = |view: View| view.narrow(1, 64, 64).and_then(|view| view.narrow(0, 1, 3));
        let mut window = || narrow(cx.random(&[5, 192], F32, Fill::Normal(1.0)));
        if let (Ok(x), Ok(d_out), Ok(dx)) = (window(), window(), window()) {
            let op = full(cx, Shape { rows: 3, d: 64, gap: 0, ..shape });
            push(format!("{kind:?} a window"), NormGrad { x, d_out, dx: Some(dx), ..op });
        }
    }
    all
}
