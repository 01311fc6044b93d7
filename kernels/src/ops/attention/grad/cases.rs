//! Conformance cases.

use super::AttentionGrad;
use crate::buffer::View;
use crate::conformance::{Case, CaseCx, Fill};
use crate::ops::attention::cases::{Plan, ranges};
use crate::ops::attention::{Attention, AttentionKv};
use crate::spec::DType;

/// Which of the gradients of queries, keys and values are wanted.
type Wanted = [bool; 3];

const ALL: Wanted = [true; 3];

/// The gradients of an op, which are added to random numbers; heads of theirs and of `d_out` are `gap` elements apart.
pub(super) fn gradients(cx: &mut CaseCx, of: &Attention, wanted: Wanted, gap: usize) -> AttentionGrad {
    let (AttentionKv::Packed { k, v, .. } | AttentionKv::Paged { k, v, .. }) = &of.kv;
    let mut like =
        |view: &View, gap: usize| cx.random_gapped(view.shape(), DType::F32, Fill::Normal(1.0), gap);
    AttentionGrad {
        d_out: like(&of.q, gap),
        dq: wanted[0].then(|| like(&of.q, 2 * gap)),
        dk: wanted[1].then(|| like(k, gap)),
        dv: wanted[2].then(|| like(v, 3 * gap)),
        q: of.q.clone(),
        kv: of.kv.clone(),
        q_starts: of.q_starts.clone(),
        seen: of.seen.clone(),
        scale: of.scale,
        softcap: of.softcap,
        max_q: of.max_q,
        max_kv: of.max_kv,
        pairs: of.pairs,
    }
}

fn case(cx: &mut CaseCx, plan: Plan, wanted: Wanted) -> Case<AttentionGrad> {
    let seen = |seq: usize| (0..plan.lens[seq].0).map(move |i| (seq, i));
    let rows = (0..plan.lens.len()).flat_map(seen).map(|(seq, i)| !plan.keys(seq, i).is_empty());
    let (rows, gap) = (rows.collect::<Vec<bool>>(), if plan.fused { 3 } else { 0 });
    let Case { name, op } = plan.build(cx);
    let mut op = gradients(cx, &op, wanted, gap);
    if gap == 0 {
        // Rows that see nothing may have anything.
        let row = op.q.size(1) * op.q.size(2);
        let seen = |at: usize| rows[at / row];
        let values: Vec<f64> = (0..op.d_out.len())
            .map(|at| if seen(at) { cx.value(Fill::Normal(1.0)) } else { f64::NAN })
            .collect();
        op.d_out = cx.values(op.q.shape(), DType::F32, &values);
    }
    Case { name: format!("{name}, {wanted:?}"), op }
}

/// Two sequences whose first pages are the same ones.
pub(super) fn shared(cx: &mut CaseCx, lens: [(usize, usize); 2], pages: usize) -> Case<AttentionGrad> {
    let plan = Plan { page: 8, ..Plan::new("shared pages", &lens).heads(4, 2, 20) };
    let mut case = case(cx, plan, ALL);
    if let AttentionKv::Paged { block_table, .. } = &mut case.op.kv {
        let width = block_table.size(1);
        let mut table: Vec<i32> = (0..block_table.len()).map(|at| cx.get(block_table, at) as i32).collect();
        table.copy_within(..pages, width);
        *block_table = cx.ints(&[2, width], &table);
    }
    case
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<AttentionGrad>> {
    let mut plans: Vec<Plan> = Vec::new();
    for len in [0, 1, 2, 5, 6, 7, 8, 9, 15, 16, 17, 23, 47, 48, 49, 97, 129] {
        plans.push(Plan::new(format!("square {len}"), &[(len, len)]));
        plans.push(Plan::new(format!("full {len}"), &[(len, len)]).causal(false));
        plans.push(Plan::new(format!("one query, {len} keys"), &[(1, len)]).heads(3, 1, 16));
    }
    plans.push(Plan::new("more queries than keys", &[(5, 3)]));
    plans.push(Plan::new("no sequence", &[]));
    plans.push(Plan::new("cross", &[(10, 77), (3, 0), (50, 1)]).causal(false));
    for head_dim in [1, 5, 8, 16, 31, 32, 33, 64, 72, 80, 96, 128, 256] {
        let plan = Plan::new(format!("head_dim {head_dim}"), &[(37, 61)]).heads(4, 2, head_dim);
        plans.push(Plan { page: 16, ..plan.clone() });
        plans.push(Plan { fused: true, name: format!("{} fused", plan.name), ..plan });
    }
    for (heads_q, heads_kv) in [(3, 3), (9, 3), (8, 1), (7, 1)] {
        for lens in [(2, 70), (29, 64)] {
            let name = format!("heads {heads_q}/{heads_kv} {lens:?}");
            plans.push(Plan { page: 32, ..Plan::new(name, &[lens]).heads(heads_q, heads_kv, 64) });
        }
    }
    let lens = [(40, 170), (1, 90), (3, 3), (65, 65)];
    let plan = |name: String| Plan { page: 16, ..Plan::new(name, &lens).heads(6, 2, 32) };
    for window in [1, 2, 16, 63, 129, 5000] {
        plans.push(plan(format!("window {window}")).window(window));
    }
    ranges(&mut plans, plan);
    ranges(&mut plans, |name| Plan { page: 0, softcap: 20.0, ..plan(format!("packed, capped, {name}")) });
    for softcap in [0.5, 30.0] {
        plans.push(Plan { softcap, ..plan(format!("softcap {softcap}")) });
        let spiky = plan(format!("softcap {softcap}, spiky"));
        plans.push(Plan { softcap, fill: Fill::Spiky, ..spiky.window(40) });
    }
    plans.push(Plan { fill: Fill::Spiky, ..plan("spiky".into()) });
    plans.push(Plan { fill: Fill::Normal(0.0), ..plan("all zero".into()) });
    let ragged = [(5, 9), (1, 40), (0, 7), (33, 33), (2, 130), (0, 0), (1, 1), (64, 313)];
    for page in [0, 1, 7, 64] {
        plans.push(Plan { page, ..Plan::new(format!("ragged, page {page}"), &ragged).heads(9, 3, 64) });
    }
    let segments: Vec<(usize, usize)> = (0..30).map(|i| (i * 7 % 40, i * 7 % 40)).collect();
    plans.push(Plan { fused: true, ..Plan::new("segments", &segments).heads(4, 4, 72).causal(false) });
    // Several parts of a head, which see other keys each.
    let long = Plan::new("parts", &[(300, 310)]).heads(3, 1, 24);
    plans.push(long.clone());
    plans.push(Plan { page: 16, ..long.clone().window(50) });
    plans.push(Plan { lens: vec![(600, 600), (3, 9)], ..long.clone() });
    plans.push(Plan { lens: vec![(450, 450)], name: "parts without keys".into(), ..long }.ranges(|_, p| {
        match p {
            0..200 => (0, 0),
            200..300 => (20, 90),
            _ => (300, 400),
        }
    }));
    // Real models: a decoder's row and a tower's.
    plans.push(Plan { page: 16, ..Plan::new("smolvlm", &[(230, 230)]).heads(9, 3, 64) });
    plans.push(Plan {
        fused: true,
        ..Plan::new("siglip so400m", &[(196, 196)]).heads(2, 2, 72).causal(false)
    });

    let mut all: Vec<Case<AttentionGrad>> = plans.into_iter().map(|plan| case(cx, plan, ALL)).collect();
    for some in 0..7 {
        let wanted = [some & 1 > 0, some & 2 > 0, some & 4 > 0];
        let plan = Plan { softcap: if some % 2 == 0 { 5.0 } else { 0.0 }, ..plan("some".into()) };
        all.push(case(cx, plan, wanted));
    }
    all.push(shared(cx, [(17, 40), (9, 40)], 2));
    all.push(shared(cx, [(150, 170), (170, 170)], 20));
    all
}
