//! Conformance cases.

use super::{MatmulGrad, PartGrad};
use crate::buffer::Weights;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::{DType, Format};

/// Which gradients are wanted.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    dx: bool,
    weight: bool,
    bias: bool,
}

const ALL: Wanted = Wanted { dx: true, weight: true, bias: true };

fn op(
    cx: &mut CaseCx,
    (m, n, k): (usize, usize, usize),
    format: Format,
    parts: &[usize],
    wanted: Wanted,
    (fill, gap): (Fill, usize),
) -> MatmulGrad {
    let all: usize = parts.iter().sum();
    let mut rows: Vec<usize> = parts.iter().map(|share| n * share / all).collect();
    rows[0] += n - rows.iter().sum::<usize>();
    let w: Vec<Weights> = rows.iter().map(|&rows| cx.weights(format, rows, k, true)).collect();
    let w = Weights::stack(w).expect("parts of one format and k");
    let mut grads = Vec::new();
    for &rows in &rows {
        let weight = wanted.weight.then(|| cx.random_gapped(&[rows, k], DType::F32, Fill::Normal(1.0), gap));
        let bias = wanted.bias.then(|| cx.random(&[rows], DType::F32, Fill::Normal(1.0)));
        grads.push(PartGrad { weight, bias });
    }
    MatmulGrad {
        dz: cx.random_gapped(&[m, n], DType::F32, fill, gap),
        x: cx.random_gapped(&[m, k], DType::F32, fill, 2 * gap),
        w,
        dx: wanted.dx.then(|| cx.random_gapped(&[m, k], DType::F32, Fill::Normal(1.0), gap)),
        parts: grads.into_iter().collect(),
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<MatmulGrad>> {
    let dense = Format::Dense(DType::F32);
    let mut all = Vec::new();
    let normal = Fill::Normal(1.0);
    for (m, n, k) in [
        (0, 8, 8),
        (3, 0, 8),
        (3, 8, 0),
        (1, 1, 1),
        (2, 3, 5),
        (7, 17, 31),
        (14, 32, 64),
        (15, 33, 65),
        (33, 63, 97),
        (6, 16, 1030),
        (300, 24, 40),
        (5, 1100, 48),
        (1100, 37, 21),
        (64, 576, 192),
    ] {
        for (fill, gap) in [(normal, 0), (Fill::Spiky, 3)] {
            let op = op(cx, (m, n, k), dense, &[1], ALL, (fill, gap));
            all.push(Case { name: format!("{m}x{n}x{k}, {fill:?}, gap {gap}"), op });
        }
    }
    for wanted in [
        Wanted { weight: false, bias: false, ..ALL },
        Wanted { dx: false, bias: false, ..ALL },
        Wanted { dx: false, weight: false, ..ALL },
    ] {
        for parts in [&[1][..], &[3, 1, 1]] {
            let op = op(cx, (21, 70, 44), dense, parts, wanted, (normal, 1));
            all.push(Case { name: format!("{wanted:?}, parts {parts:?}"), op });
        }
    }
    // Gradients of rows through weights that are not trained.
    for format in
        ["bf16", "f16", "int8g32", "int4g32z", "int4g64.f16", "fp8g32.e8m0", "fp4g16.e4m3", "nf4g32.f16"]
    {
        let format: Format = format.parse().expect("a format");
        for (m, n, k) in [(9, 40, 96), (20, 64, 160)] {
            let wanted = Wanted { weight: false, bias: true, ..ALL };
            let op = op(cx, (m, n, k), format, &[2, 1], wanted, (normal, 0));
            all.push(Case { name: format!("{format}, {m}x{n}x{k}"), op });
        }
    }
    for _ in 0..6 {
        let shape = (1 + cx.below(90), 1 + cx.below(200), 1 + cx.below(150));
        let op = op(cx, shape, dense, &[1, 2], ALL, (normal, 0));
        all.push(Case { name: format!("{shape:?}"), op });
    }
    all
}
