//! Conformance cases.

use super::{KvRead, QkNormGrad, RopeGrad};
use crate::buffer::View;
use crate::conformance::{Case, CaseCx, Fill};
use crate::ops::rope::cases::Plan;
use crate::ops::rope::{Rope, RopeStyle};
use crate::spec::DType;

/// The gradients of an op. Those of queries, keys and values are slices of one row; rows are `gap` elements apart.
pub(super) fn gradients(cx: &mut CaseCx, of: &Rope, weights: bool, gap: usize) -> RopeGrad {
    let (tokens, head_dim) = (of.q.size(0), of.q.size(2));
    let (wide_q, wide_kv) = (of.q.size(1) * head_dim, of.k.size(1) * head_dim);
    let random = Fill::Normal(1.0);
    let fused = cx.random_gapped(&[tokens, wide_q + 2 * wide_kv], DType::F32, random, gap);
    let part = |start: usize, of: &View| -> View {
        let rows = fused.narrow(1, start, of.size(1) * head_dim).expect("a part of the row");
        rows.reshape(of.shape()).expect("heads of a row")
    };
    let mut weight = || weights.then(|| cx.random(&[head_dim], DType::F32, random));
    let norm = of.norm.as_ref().map(|norm| QkNormGrad {
        q: of.q.clone(),
        k: of.k.clone(),
        norm: norm.clone(),
        d_q: weight(),
        d_k: weight(),
    });
    let kv = of.kv.as_ref().map(|kv| KvRead {
        dk_pages: cx.random_gapped(kv.k_pages.shape(), DType::F32, random, gap),
        dv_pages: cx.random(kv.v_pages.shape(), DType::F32, random),
        slots: kv.slots.clone(),
        dv: Some(part(wide_q + wide_kv, &kv.v)),
    });
    RopeGrad {
        dq: part(0, &of.q),
        dk: part(wide_q, &of.k),
        positions: of.positions.clone(),
        inv_freq: of.inv_freq.clone(),
        pair_axis: of.pair_axis.clone(),
        style: of.style,
        attention_scaling: of.attention_scaling,
        norm,
        kv,
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<RopeGrad>> {
    let mut plans = Vec::new();
    let pages = |page: usize| Some((DType::F32, page));
    for tokens in [0, 1, 2, 3, 17, 64, 131] {
        plans.push(Plan::new(format!("{tokens} tokens"), tokens));
        plans.push(Plan { pages: pages(16), ..Plan::new(format!("{tokens} tokens of pages"), tokens) });
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
            (80, 16),
            (96, 48),
            (128, 64),
            (256, 32),
            (33, 11),
            (0, 0),
        ] {
            for norm in [false, true] {
                let plan = Plan::new(format!("{style:?} {head_dim}/{pairs}"), 9).head(head_dim, pairs);
                plans.push(Plan { style, norm, ..plan.clone() });
                plans.push(Plan { style, norm, heads_kv: 2, pages: pages(7), ..plan });
            }
        }
    }
    for sections in [false, true] {
        let plan = Plan::new("three axes", 40).head(128, 64);
        plans.push(Plan { axes: 3, sections, ..plan.clone() });
        plans.push(Plan { axes: 3, sections, norm: true, pages: pages(16), ..plan });
    }
    for limit in [100_000, i32::MAX as usize] {
        plans.push(Plan { limit, ..Plan::new(format!("positions to {limit}"), 60) });
    }
    plans.push(Plan { scaling: 1.190_207_7, norm: true, ..Plan::new("scaled", 30) });
    for norm in [false, true] {
        plans.push(Plan { norm, heads_kv: 0, ..Plan::new("no key heads", 19) });
        plans.push(Plan { norm, fill: Fill::Spiky, pages: pages(16), ..Plan::new("spiky", 33) });
        plans.push(Plan { norm, fill: Fill::Normal(0.0), ..Plan::new("all zero", 5) });
        // More tokens than tasks: each has several.
        plans.push(Plan { norm, heads_q: 1, ..Plan::new("many tokens", 1031).head(8, 4) });
    }
    let smolvlm = Plan { heads_q: 9, heads_kv: 3, gap: 0, ..Plan::new("smolvlm", 1157) };
    plans.push(Plan { pages: pages(16), ..smolvlm.clone() });
    plans.push(Plan { heads_q: 16, heads_kv: 8, norm: true, ..Plan::new("qwen 3", 517).head(128, 64) });
    let mut all = Vec::new();
    for (number, plan) in plans.into_iter().enumerate() {
        let gap = plan.gap;
        let Case { name, op } = plan.build(cx);
        all.push(Case { name, op: gradients(cx, &op, number % 7 != 0, gap) });
    }
    all
}
