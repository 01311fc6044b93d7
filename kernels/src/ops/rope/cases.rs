//! Conformance cases.

use super::{KvWrite, QkNorm, Rope, RopeStyle};
use crate::buffer::View;
use crate::conformance::{Case, CaseCx, Fill};
use crate::ops::kept_elements;
use crate::spec::DType;

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

#[derive(Clone)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) tokens: usize,
    pub(super) heads_q: usize,
    pub(super) heads_kv: usize,
    pub(super) head_dim: usize,
    pub(super) pairs: usize,
    pub(super) x: DType,
    /// Type of the pages and their size; without it keys stay in place.
    pub(super) pages: Option<(DType, usize)>,
    pub(super) style: RopeStyle,
    pub(super) norm: bool,
    /// Axes of positions; above 1 the pairs take them in turn, or in sections.
    pub(super) axes: usize,
    pub(super) sections: bool,
    /// Positions are below this.
    pub(super) limit: usize,
    pub(super) scaling: f32,
    pub(super) fill: Fill,
    /// Elements between the fused rows of queries, keys and values.
    pub(super) gap: usize,
}

impl Plan {
    pub(super) fn new(name: impl Into<String>, tokens: usize) -> Self {
        Self {
            name: name.into(),
            tokens,
            heads_q: 3,
            heads_kv: 1,
            head_dim: 64,
            pairs: 32,
            x: DType::F32,
            pages: None,
            style: RopeStyle::Half,
            norm: false,
            axes: 1,
            sections: false,
            limit: 5000,
            scaling: 1.0,
            fill: Fill::Normal(1.0),
            gap: 5,
        }
    }

    pub(super) fn head(self, head_dim: usize, pairs: usize) -> Self {
        Self { head_dim, pairs, ..self }
    }

    pub(super) fn build(self, cx: &mut CaseCx) -> Case<Rope> {
        let (tokens, hd) = (self.tokens, self.head_dim);
        let (wide_q, wide_kv) = (self.heads_q * hd, self.heads_kv * hd);
        // Queries, keys and values are slices of one fused row.
        let fused = cx.random_gapped(&[tokens, wide_q + 2 * wide_kv], self.x, self.fill, self.gap);
        let part = |start: usize, heads: usize| -> View {
            let rows = fused.narrow(1, start, heads * hd).expect("a part of the row");
            rows.reshape(&[tokens, heads, hd]).expect("heads of a row")
        };
        let positions: Vec<i32> = (0..self.axes * tokens).map(|_| cx.below(self.limit) as i32).collect();
        let inv_freq: Vec<f64> =
            (0..self.pairs).map(|p| 1e4f64.powf(-(p as f64) / self.pairs as f64)).collect();
        let axis: Vec<i32> = (0..self.pairs)
            .map(|p| (if self.sections { p * self.axes / self.pairs } else { p % self.axes }) as i32)
            .collect();
        let norm = self.norm.then(|| QkNorm {
            q: cx.random(&[hd], DType::F32, Fill::Normal(0.5)),
            k: cx.random(&[hd], self.x, Fill::Uniform(0.5, 1.5)),
            weight_offset: if self.heads_kv == 2 { 1.0 } else { 0.0 },
            eps: 1e-6,
        });
        let kv = self.pages.map(|(dtype, page)| {
            let pages = tokens.div_ceil(page) + 2;
            let mut slots: Vec<i32> = (0..(pages * page) as i32).collect();
            for i in (1..slots.len()).rev() {
                slots.swap(i, cx.below(i + 1));
            }
            slots.truncate(tokens);
            for (i, slot) in slots.iter_mut().enumerate() {
                if i % 5 == 3 {
                    *slot = -1 - i as i32;
                }
            }
            let shape = [pages, page, self.heads_kv, kept_elements(hd, dtype)];
            KvWrite {
                v: part(wide_q + wide_kv, self.heads_kv),
                k_pages: cx.random(&shape, dtype, Fill::Normal(1.0)),
                v_pages: cx.random(&shape, dtype, Fill::Normal(1.0)),
                slots: cx.ints(&[tokens], &slots),
            }
        });
        let op = Rope {
            q: part(0, self.heads_q),
            k: part(wide_q, self.heads_kv),
            positions: cx.ints(&[self.axes, tokens], &positions),
            inv_freq: cx.values(&[self.pairs], DType::F32, &inv_freq),
            pair_axis: (self.axes > 1).then(|| cx.ints(&[self.pairs], &axis)),
            style: self.style,
            attention_scaling: self.scaling,
            norm,
            kv,
        };
        Case { name: self.name, op }
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<Rope>> {
    let mut plans = Vec::new();
    for tokens in [0, 1, 2, 3, 17, 64, 131] {
        plans.push(Plan::new(format!("{tokens} tokens"), tokens));
        let pages = Some((DType::F32, 16));
        plans.push(Plan { pages, ..Plan::new(format!("{tokens} tokens to pages"), tokens) });
    }
    for style in [RopeStyle::Half, RopeStyle::Interleaved] {
        for (head_dim, pairs) in [
            (2, 1),
            (16, 8),
            (32, 16),
            (64, 32),
            (64, 0),
            (64, 7),
            (72, 36),
            (80, 40),
            (80, 16),
            (96, 48),
            (128, 64),
            (256, 32),
            (256, 128),
            (33, 11),
        ] {
            for norm in [false, true] {
                let plan = Plan::new(format!("{style:?} {head_dim}/{pairs}"), 9).head(head_dim, pairs);
                plans.push(Plan { style, norm, ..plan.clone() });
                plans.push(Plan { style, norm, heads_kv: 2, pages: Some((DType::BF16, 7)), ..plan });
            }
        }
    }
    for x in FLOATS {
        for kv in FLOATS {
            for norm in [false, true] {
                let plan = Plan::new(format!("{x} to pages of {kv}"), 21).head(80, 40);
                plans.push(Plan { x, norm, pages: Some((kv, 16)), fill: Fill::Spiky, ..plan });
            }
        }
        plans.push(Plan { x, ..Plan::new(format!("{x} in place"), 21) });
    }
    for sections in [false, true] {
        let plan = Plan::new("three axes", 40).head(128, 64);
        plans.push(Plan { axes: 3, sections, ..plan.clone() });
        plans.push(Plan { axes: 3, sections, norm: true, pages: Some((DType::F16, 16)), ..plan });
        let vision = Plan::new("two axes", 50).head(72, 36);
        plans.push(Plan { axes: 2, sections, heads_q: 4, heads_kv: 4, ..vision });
    }
    for limit in [100_000, 10_000_000, i32::MAX as usize] {
        plans.push(Plan { limit, ..Plan::new(format!("positions to {limit}"), 60) });
    }
    plans.push(Plan { scaling: 1.190_207_7, ..Plan::new("scaled", 30) });
    // Heads that all begin at 16 bytes.
    for style in [RopeStyle::Half, RopeStyle::Interleaved] {
        for (head_dim, pairs) in [(64, 32), (64, 0), (80, 40), (80, 16), (96, 48), (128, 64), (256, 128)] {
            let name = format!("{style:?} {head_dim}/{pairs}, aligned");
            let plan = Plan { style, gap: 8, ..Plan::new(name, 7).head(head_dim, pairs) };
            let norm = Plan { norm: true, x: DType::BF16, ..plan.clone() };
            plans.push(Plan { pages: Some((DType::BF16, 4)), heads_kv: 2, ..norm.clone() });
            plans.push(if head_dim == 64 { plan } else { norm });
        }
    }
    for x in FLOATS {
        for (head_dim, pairs) in
            [(4, 2), (64, 32), (64, 7), (72, 36), (80, 40), (100, 25), (128, 64), (256, 32)]
        {
            let fill = if head_dim == 64 { Fill::Spiky } else { Fill::Normal(1.0) };
            let plan = Plan::new(format!("{x} to pages of i8, {head_dim}/{pairs}"), 21).head(head_dim, pairs);
            let plan = Plan { x, fill, heads_kv: 2, pages: Some((DType::I8, 16)), ..plan };
            plans.push(Plan { style: RopeStyle::Interleaved, norm: true, ..plan.clone() });
            plans.push(plan);
        }
        let pages = Some((DType::I8, 7));
        plans.push(Plan { x, pages, fill: Fill::Normal(0.0), ..Plan::new("zeros to pages of i8", 9) });
    }
    // Queries alone: what a layer turns that reads another's keys, and heads that are normalized and not turned.
    for pairs in [32, 0] {
        for norm in [false, true] {
            let name = format!("no key heads, {pairs} pairs");
            plans.push(Plan { norm, heads_kv: 0, ..Plan::new(name, 19).head(64, pairs) });
        }
    }
    let smolvlm = Plan { heads_q: 9, heads_kv: 3, gap: 0, ..Plan::new("smolvlm", 1157) };
    plans.push(Plan { pages: Some((DType::F32, 16)), ..smolvlm.clone() });
    plans.push(Plan { x: DType::BF16, pages: Some((DType::BF16, 16)), ..smolvlm });
    plans.into_iter().map(|plan| plan.build(cx)).collect()
}
