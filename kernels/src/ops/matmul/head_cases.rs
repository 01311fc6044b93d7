//! Conformance cases of products whose columns are heads.

use super::cases::Shape;
use super::{Heads, Matmul};
use crate::conformance::{CaseCx, Fill};
use crate::ops::kept_elements;
use crate::ops::rope::RopeStyle;
use crate::spec::DType;

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Heads of a product, and what they become.
#[derive(Clone, Copy)]
struct Plan {
    m: usize,
    k: usize,
    heads_q: usize,
    heads_kv: usize,
    head_dim: usize,
    pairs: usize,
    w: &'static str,
    x: DType,
    out: DType,
    kv: DType,
    page: usize,
    style: RopeStyle,
    norm: bool,
    bias: bool,
    axes: usize,
    scaling: f32,
    gaps: [usize; 3],
    /// Stored tensors of the weights.
    parts: usize,
    fill: Fill,
}

const PLAIN: Plan = Plan {
    m: 1,
    k: 96,
    heads_q: 3,
    heads_kv: 1,
    head_dim: 16,
    pairs: 8,
    w: "bf16",
    x: DType::F32,
    out: DType::F32,
    kv: DType::F32,
    page: 16,
    style: RopeStyle::Half,
    norm: true,
    bias: false,
    axes: 1,
    scaling: 1.0,
    gaps: [0; 3],
    parts: 1,
    fill: Fill::Normal(1.0),
};

impl Plan {
    fn op(self, cx: &mut CaseCx) -> Matmul {
        let Self { m, heads_q, heads_kv, head_dim, pairs, page, axes, .. } = self;
        let n = (heads_q + 2 * heads_kv) * head_dim;
        let shares: &[usize] =
            if self.parts == 1 { &[1] } else { &[heads_q, heads_kv, heads_kv].map(|share| share.max(1)) };
        let shape = Shape {
            x: self.x,
            out: self.out,
            fill: self.fill,
            gaps: self.gaps,
            bias: self.bias,
            norm: self.norm,
            ..Shape::plain(m, n, self.k)
        };
        let mut op = shape.op(cx, super::cases::format(self.w), shares);
        let pages = m.div_ceil(page) + 2;
        let mut slots: Vec<i32> = (0..(pages * page) as i32).collect();
        for i in (1..slots.len()).rev() {
            slots.swap(i, cx.below(i + 1));
        }
        slots.truncate(m);
        for (i, slot) in slots.iter_mut().enumerate() {
            if i % 5 == 3 {
                *slot = -1 - i as i32;
            }
        }
        let positions: Vec<i32> = (0..axes * m).map(|_| cx.below(5000) as i32).collect();
        let inv_freq: Vec<f64> = (0..pairs).map(|p| 1e4f64.powf(-(p as f64) / pairs as f64)).collect();
        let axis: Vec<i32> = (0..pairs).map(|p| (p % axes) as i32).collect();
        let of_pages = [pages, page, heads_kv, kept_elements(head_dim, self.kv)];
        op.heads = Some(Box::new(Heads {
            heads_q,
            heads_kv,
            positions: cx.ints(&[axes, m], &positions),
            inv_freq: cx.values(&[pairs], DType::F32, &inv_freq),
            pair_axis: (axes > 1).then(|| cx.ints(&[pairs], &axis)),
            style: self.style,
            attention_scaling: self.scaling,
            k_pages: cx.random(&of_pages, self.kv, Fill::Normal(1.0)),
            v_pages: cx.random(&of_pages, self.kv, Fill::Normal(1.0)),
            slots: cx.ints(&[m], &slots),
        }));
        // Queries lie in rows as wide as all heads.
        op.out = cx.output_gapped(&[m, heads_q * head_dim], self.out, self.gaps[1] + 2 * heads_kv * head_dim);
        op
    }
}

/// Products whose columns are heads: of a step of text.
pub(super) fn heads(cx: &mut CaseCx, add: &mut dyn FnMut(String, Matmul)) {
    let formats = ["bf16", "f32", "int4g32", "int8g32z", "fp8g32.f32", "f16", "nf4g32.f16", "int4g64zo"];
    let mut all: Vec<(String, Plan)> = Vec::new();
    for (i, w) in formats.into_iter().enumerate() {
        for (j, m) in [1, 3, 8].into_iter().enumerate() {
            let plan = Plan {
                m,
                w,
                k: [576, 64, 320][(i + j) % 3],
                x: FLOATS[(i + j) % 3],
                out: FLOATS[i % 3],
                kv: FLOATS[j],
                style: [RopeStyle::Half, RopeStyle::Interleaved][(i + j) % 2],
                norm: (i + j) % 4 != 3,
                bias: j != 1,
                gaps: [[0, 0, 0], [8, 3, 0], [3, 0, 5]][(i + j) % 3],
                fill: if j == 1 { Fill::Spiky } else { Fill::Normal(1.0) },
                ..PLAIN
            };
            all.push((format!("m {m} {w}"), plan));
        }
    }
    for (head_dim, pairs) in
        [(2, 1), (64, 32), (64, 0), (64, 7), (80, 40), (80, 16), (128, 64), (33, 11), (34, 17)]
    {
        for style in [RopeStyle::Half, RopeStyle::Interleaved] {
            let plan = Plan { m: 2, head_dim, pairs, style, heads_kv: 2, page: 7, ..PLAIN };
            all.push((format!("{style:?} {head_dim}/{pairs}"), plan));
        }
    }
    let sections = Plan { m: 4, axes: 3, head_dim: 32, pairs: 16, scaling: 1.190_207_7, bias: true, ..PLAIN };
    all.push(("three axes".into(), sections));
    all.push(("codes of 8 bits".into(), Plan { m: 2, kv: DType::I8, ..PLAIN }));
    all.push(("three matrices".into(), Plan { m: 2, parts: 3, ..PLAIN }));
    all.push(("no rows".into(), Plan { m: 0, ..PLAIN }));
    all.push(("no keys".into(), Plan { m: 2, heads_kv: 0, ..PLAIN }));
    // More columns than the blocks of a device make at once.
    all.push(("rounds".into(), Plan { heads_q: 70, heads_kv: 2, head_dim: 64, pairs: 32, k: 64, ..PLAIN }));
    let smolvlm = Plan { heads_q: 9, heads_kv: 3, head_dim: 64, pairs: 32, k: 576, x: DType::BF16, ..PLAIN };
    all.push(("SmolVLM-256M".into(), Plan { out: DType::BF16, kv: DType::BF16, ..smolvlm }));
    for (name, plan) in all {
        add(format!("heads, {name}"), plan.op(cx));
    }
    // Weights that no load of 16 bytes reads: columns of a wider matrix.
    let mut op = Plan { m: 2, w: "f32", k: 64, ..PLAIN }.op(cx);
    let columns = cx.random(&[op.w.n(), 73], DType::F32, Fill::Normal(0.1)).narrow(1, 1, 64);
    if let Ok(w) = columns.and_then(|view| crate::buffer::Weights::dense(view, None)) {
        op.w = w;
        add("heads, columns of a matrix".into(), op);
    }
}
