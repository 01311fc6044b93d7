//! Conformance cases.

use std::ops::Range;

use super::{Attention, AttentionKv, Seen};
use crate::buffer::View;
use crate::conformance::{Case, CaseCx, Fill};
use crate::ops::{kept, kept_elements};
use crate::spec::DType;

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Which keys queries see.
#[derive(Clone)]
pub(super) enum Sees {
    All,
    /// With this window; 0 is none.
    Causal(usize),
    /// The ranges of all rows, the first sequence's first; whether memory says where they begin.
    Rows(Vec<(i32, i32)>, bool),
}

/// One case: lengths of the sequences and everything that is alike for all of them.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) name: String,
    /// Queries and keys of each sequence.
    pub(super) lens: Vec<(usize, usize)>,
    pub(super) heads_q: usize,
    pub(super) heads_kv: usize,
    pub(super) head_dim: usize,
    pub(super) x: DType,
    pub(super) kv: DType,
    /// Slots of a page; 0 packs the keys.
    pub(super) page: usize,
    pub(super) sees: Sees,
    pub(super) softcap: f32,
    pub(super) fill: Fill,
    /// Whether operands are slices of wider rows, as a fused projection gives them.
    pub(super) fused: bool,
}

impl Plan {
    pub(super) fn new(name: impl Into<String>, lens: &[(usize, usize)]) -> Self {
        Self {
            name: name.into(),
            lens: lens.to_vec(),
            heads_q: 1,
            heads_kv: 1,
            head_dim: 64,
            x: DType::F32,
            kv: DType::F32,
            page: 0,
            sees: Sees::Causal(0),
            softcap: 0.0,
            fill: Fill::Normal(1.0),
            fused: false,
        }
    }

    pub(super) fn heads(self, heads_q: usize, heads_kv: usize, head_dim: usize) -> Self {
        Self { heads_q, heads_kv, head_dim, ..self }
    }

    fn types(self, x: DType, kv: DType) -> Self {
        Self { x, kv, ..self }
    }

    pub(super) fn causal(self, causal: bool) -> Self {
        Self { sees: if causal { Sees::Causal(0) } else { Sees::All }, ..self }
    }

    pub(super) fn window(self, window: usize) -> Self {
        Self { sees: Sees::Causal(window), ..self }
    }

    /// Ranges of keys: `range` gives them for a sequence and a position in it.
    pub(super) fn ranges(self, range: impl Fn(usize, i32) -> (i32, i32)) -> Self {
        let position = |seq: usize, i: usize| self.lens[seq].1 as i32 - self.lens[seq].0 as i32 + i as i32;
        let rows = (0..self.lens.len()).flat_map(|seq| (0..self.lens[seq].0).map(move |i| (seq, i)));
        let rows = rows.map(|(seq, i)| range(seq, position(seq, i))).collect();
        Self { sees: Sees::Rows(rows, true), ..self }
    }

    /// Ranges from the first key of a sequence on.
    pub(super) fn up_to(self, to: impl Fn(usize, i32) -> i32) -> Self {
        let mut plan = self.ranges(|seq, position| (0, to(seq, position)));
        if let Sees::Rows(_, begin) = &mut plan.sees {
            *begin = false;
        }
        plan
    }

    /// Keys that query `i` of a sequence sees.
    pub(super) fn keys(&self, seq: usize, i: usize) -> Range<usize> {
        let (q_len, kv_len) = self.lens[seq];
        match &self.sees {
            Sees::All => 0..kv_len,
            Sees::Causal(window) => {
                let end = (kv_len + i + 1).saturating_sub(q_len);
                (if *window == 0 { 0 } else { end.saturating_sub(*window) })..end
            }
            Sees::Rows(rows, _) => {
                let before: usize = self.lens[..seq].iter().map(|&(q, _)| q).sum();
                let (from, to) = rows[before + i];
                let at = |bound: i32| (bound.max(0) as usize).min(kv_len);
                at(from)..at(to)
            }
        }
    }

    /// Keys from the first to the last that a sequence's queries see; nobody may look at others.
    fn hull(&self, seq: usize) -> Range<usize> {
        match self.lens[seq].0 {
            0 => 0..0,
            q_len => self.keys(seq, 0).start..self.keys(seq, q_len - 1).end,
        }
    }

    /// Pairs of a query and a key that it sees.
    fn pairs(&self) -> u64 {
        let rows = (0..self.lens.len()).flat_map(|seq| (0..self.lens[seq].0).map(move |i| (seq, i)));
        rows.map(|(seq, i)| self.keys(seq, i).len() as u64).sum()
    }

    /// Keys or values of the sequences, `[rows, heads, head_dim]`, two rows before them and one behind; NaN where nobody may look.
    fn packed_keys(&self, cx: &mut CaseCx, starts: &[i32]) -> View {
        let rows = starts[starts.len() - 1] as usize + 1;
        if self.fused {
            return self.packed(cx, rows, self.heads_kv, self.kv);
        }
        let mut seen = vec![false; rows];
        for (seq, &start) in starts[..self.lens.len()].iter().enumerate() {
            self.hull(seq).for_each(|j| seen[start as usize + j] = true);
        }
        let row = self.heads_kv * self.head_dim;
        let values: Vec<f64> =
            (0..rows * row).map(|at| if seen[at / row] { cx.value(self.fill) } else { f64::NAN }).collect();
        cx.values(&[rows, self.heads_kv, self.head_dim], self.kv, &values)
    }

    /// A tensor `[tokens, heads, head_dim]`; fused ones lie in the middle of wider rows.
    fn packed(&self, cx: &mut CaseCx, tokens: usize, heads: usize, dtype: DType) -> View {
        let width = heads * self.head_dim;
        let wide = if self.fused {
            cx.random_gapped(&[tokens, width + 24], dtype, self.fill, 7)
        } else {
            cx.random(&[tokens, width], dtype, self.fill)
        };
        let part = wide.narrow(1, if self.fused { 11 } else { 0 }, width).expect("a part of the row");
        part.reshape(&[tokens, heads, self.head_dim]).expect("heads of a row")
    }

    /// Pages with the keys of all sequences in shuffled blocks. Every slot without a key, or with one where nobody may look, is
    /// NaN; the entries of pages wholly without others name a page of NaN.
    fn paged(&self, cx: &mut CaseCx) -> AttentionKv {
        let blocks: Vec<usize> = self.lens.iter().map(|&(_, kv)| kv.div_ceil(self.page)).collect();
        let width = blocks.iter().copied().max().unwrap_or(0) + 1;
        let pages = blocks.iter().sum::<usize>() + 2;
        let mut order: Vec<usize> = (0..pages).collect();
        for i in (1..pages).rev() {
            order.swap(i, cx.below(i + 1));
        }
        let row = self.heads_kv * self.head_dim;
        let mut used = vec![false; pages * self.page];
        let mut table = Vec::new();
        let mut next = 0;
        for (seq, &count) in blocks.iter().enumerate() {
            let hull = self.hull(seq);
            for block in 0..width {
                let Some(page) = (block < count).then(|| order[next + block]) else {
                    // Entries beyond a sequence's pages may hold anything.
                    table.push(if block % 2 == 0 { -1 } else { i32::MAX });
                    continue;
                };
                let seen = hull.start.max(block * self.page)..hull.end.min((block + 1) * self.page);
                table.push(if seen.is_empty() { order[pages - 1] } else { page } as i32);
                seen.for_each(|j| used[page * self.page + j % self.page] = true);
            }
            next += count;
        }
        let shape = [pages, self.page, self.heads_kv, kept_elements(self.head_dim, self.kv)];
        let pool = |cx: &mut CaseCx| {
            let values: Vec<f64> = (0..pages * self.page * row)
                .map(|at| if used[at / row] { cx.value(self.fill) } else { f64::NAN })
                .collect();
            match self.kv {
                DType::I8 => cx.values(&shape, self.kv, &kept::elements(&values, self.head_dim)),
                dtype => cx.values(&shape, dtype, &values),
            }
        };
        let lens: Vec<i32> = self.lens.iter().map(|&(_, kv)| kv as i32).collect();
        AttentionKv::Paged {
            k: pool(cx),
            v: pool(cx),
            block_table: cx.ints(&[self.lens.len(), width], &table),
            kv_lens: cx.ints(&[lens.len()], &lens),
        }
    }

    pub(super) fn build(self, cx: &mut CaseCx) -> Case<Attention> {
        let starts = |first: i32, lens: &mut dyn Iterator<Item = usize>| {
            let mut all = vec![first];
            lens.for_each(|len| all.push(all[all.len() - 1] + len as i32));
            all
        };
        let q_starts = starts(0, &mut self.lens.iter().map(|&(q, _)| q));
        let tokens = q_starts[q_starts.len() - 1] as usize;
        let q = self.packed(cx, tokens, self.heads_q, self.x);
        let kv = if self.page > 0 {
            self.paged(cx)
        } else {
            // The first sequence need not begin at the first row.
            let kv_starts = starts(2, &mut self.lens.iter().map(|&(_, kv)| kv));
            AttentionKv::Packed {
                k: self.packed_keys(cx, &kv_starts),
                v: self.packed_keys(cx, &kv_starts),
                kv_starts: cx.ints(&[kv_starts.len()], &kv_starts),
            }
        };
        let op = Attention {
            q,
            kv,
            q_starts: cx.ints(&[q_starts.len()], &q_starts),
            seen: match &self.sees {
                Sees::All => Seen::All,
                Sees::Causal(window) => Seen::Causal { window: *window },
                Sees::Rows(rows, begin) => {
                    let (from, to): (Vec<i32>, Vec<i32>) = rows.iter().copied().unzip();
                    Seen::Ranges {
                        from: begin.then(|| cx.ints(&[tokens], &from)),
                        to: cx.ints(&[tokens], &to),
                    }
                }
            },
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            softcap: self.softcap,
            out: cx.output_gapped(
                &[tokens, self.heads_q, self.head_dim],
                self.x,
                if self.fused { 3 } else { 0 },
            ),
            max_q: self.lens.iter().map(|&(q, _)| q).max().unwrap_or(0),
            max_kv: self.lens.iter().map(|&(_, kv)| kv).max().unwrap_or(0),
            pairs: self.pairs(),
        };
        Case { name: self.name, op }
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<Attention>> {
    let mut plans = Vec::new();
    edges(&mut plans);
    shapes(&mut plans);
    masks(&mut plans);
    batches(&mut plans);
    models(&mut plans);
    few_queries(&mut plans);
    sixteen_bits(&mut plans);
    eight_bits(&mut plans);
    let mut all: Vec<_> = plans.into_iter().map(|plan| plan.build(cx)).collect();
    all.push(lone_head(cx));
    all
}

/// One head of keys, cut from two: its tokens lie as a copy engine takes them, its heads would not.
fn lone_head(cx: &mut CaseCx) -> Case<Attention> {
    let plan = Plan::new("bf16, a head cut from two", &[(70, 200), (1, 30)]).heads(2, 1, 64);
    let mut case = plan.types(DType::BF16, DType::BF16).build(cx);
    if let AttentionKv::Packed { k, v, .. } = &mut case.op.kv {
        for view in [k, v] {
            let (rows, width) = (view.size(0), view.size(2));
            let wide = cx.random(&[rows, 2, width + 4], DType::BF16, Fill::Normal(1.0));
            *view = wide.narrow(1, 0, 1).and_then(|one| one.narrow(2, 0, width)).expect("a head");
        }
    }
    case
}

fn edges(plans: &mut Vec<Plan>) {
    for kv_len in
        [0, 1, 2, 7, 8, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 255, 256, 257, 509, 512, 513, 1031]
    {
        plans.push(Plan::new(format!("decode {kv_len}"), &[(1, kv_len)]));
    }
    for len in
        [0, 1, 2, 11, 12, 13, 15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 48, 49, 97, 144, 145, 191, 193, 257]
    {
        plans.push(Plan::new(format!("square {len}"), &[(len, len)]));
        plans.push(Plan::new(format!("full {len}"), &[(len, len)]).causal(false));
    }
    // Early queries of a sequence with fewer keys than queries see nothing: their result is zero.
    plans.push(Plan::new("more queries than keys", &[(5, 3)]));
    plans.push(Plan::new("no sequence", &[]));
    plans.push(Plan::new("cross", &[(10, 77), (3, 0), (50, 1)]).causal(false));
}

fn shapes(plans: &mut Vec<Plan>) {
    for head_dim in [1, 5, 16, 32, 33, 64, 72, 80, 96, 128, 256] {
        for (what, lens) in [("prefill", (37, 61)), ("decode", (1, 133))] {
            let plan = Plan::new(format!("{what} head_dim {head_dim}"), &[lens]).heads(4, 2, head_dim);
            plans.push(Plan { page: 16, ..plan.clone() });
            plans.push(Plan { fused: true, name: format!("{} fused", plan.name), ..plan });
        }
    }
    for (heads_q, heads_kv) in [(3, 3), (9, 3), (8, 2), (8, 1), (16, 1), (32, 2)] {
        for lens in [(1, 150), (2, 70), (5, 300), (29, 64)] {
            let plan =
                Plan::new(format!("gqa {heads_q}/{heads_kv} {lens:?}"), &[lens]).heads(heads_q, heads_kv, 64);
            plans.push(Plan { page: 32, ..plan });
        }
    }
    for x in FLOATS {
        for kv in FLOATS {
            for lens in [(1, 300), (50, 99)] {
                for head_dim in [64, 72] {
                    let plan = Plan::new(format!("{x} on {kv} {lens:?}"), &[lens])
                        .heads(6, 2, head_dim)
                        .types(x, kv);
                    plans.push(Plan { page: 16, ..plan.clone() });
                    plans.push(Plan {
                        fused: true,
                        fill: Fill::Spiky,
                        name: format!("{} spiky", plan.name),
                        ..plan
                    });
                }
            }
        }
    }
}

fn masks(plans: &mut Vec<Plan>) {
    let lens = [(40, 300), (1, 290), (3, 3), (130, 130)];
    let plan = |name: String| Plan { page: 16, ..Plan::new(name, &lens).heads(6, 2, 32) };
    for window in [1, 2, 16, 63, 129, 5000] {
        plans.push(plan(format!("window {window}")).window(window));
    }
    ranges(plans, plan);
    ranges(plans, |name| Plan { page: 0, ..plan(format!("packed, {name}")) });
    ranges(plans, |name| Plan {
        fused: true,
        page: 0,
        softcap: 20.0,
        ..plan(format!("fused, capped, {name}"))
    });
    for prefix in [[0, 0, 0, 0], [1, 290, 3, 129], [300, 5, 1, 128], [280, 17, 3, 999]] {
        let plan = plan(format!("prefix {prefix:?}"));
        plans.push(plan.up_to(|seq, position| prefix[seq].max(position + 1)));
    }
    for softcap in [0.5, 30.0] {
        plans.push(Plan { softcap, ..plan(format!("softcap {softcap}")) });
        let spiky = plan(format!("softcap {softcap}, spiky"));
        plans.push(Plan { softcap, fill: Fill::Spiky, ..spiky.window(40) });
    }
    plans.push(Plan { fill: Fill::Spiky, ..plan("spiky".into()) });
    plans.push(Plan { fill: Fill::Normal(0.0), ..plan("all zero".into()) });
}

/// Masks that are ranges, of several sequences.
pub(super) fn ranges(plans: &mut Vec<Plan>, plan: impl Fn(String) -> Plan) {
    let lens = plan(String::new()).lens;
    let plan = |name: &str| plan(format!("ranges: {name}"));
    // Which of `parts` parts of its sequence's queries one is in.
    let part = |seq: usize, position: i32, parts: i32| {
        let (q_len, kv_len) = (lens[seq].0 as i32, lens[seq].1 as i32);
        (position - (kv_len - q_len)) * parts / q_len
    };
    let keys = |seq: usize| lens[seq].1 as i32;
    // Pictures of 20 tokens, every 50 of them, that see themselves.
    let block = |position: i32| {
        let first = position.div_euclid(50) * 50 + 10;
        (first..first + 20).contains(&position).then_some((first, first + 20))
    };
    plans.push(plan("pictures").up_to(|_, p| block(p).map_or(p + 1, |(_, end)| end)));
    plans.push(plan("pictures and a window").ranges(|_, p| match block(p) {
        Some((first, end)) => (first.min(p - 11), end),
        None => (p - 11, p + 1),
    }));
    plans.push(plan("a window alone").ranges(|_, p| (p - 30, p + 1)));
    plans.push(plan("a window to both sides, cut off").ranges(|_, p| (p - 37, p + 38)));
    plans.push(plan("nothing, then one picture, then the other").ranges(|seq, p| match part(seq, p, 3) {
        0 => (0, 0),
        1 => (3.min(keys(seq) / 2), keys(seq) / 2),
        _ => (keys(seq) / 2, keys(seq)),
    }));
    plans.push(plan("nothing").ranges(|_, _| (60, 10)));
    plans.push(plan("nothing in between").ranges(|seq, p| match part(seq, p, 3) {
        0 => (5, 9),
        1 => (99, 99),
        _ => (100, 290),
    }));
    plans.push(plan("neither the first nor the last").ranges(|seq, _| (keys(seq) / 3, keys(seq) * 2 / 3)));
    plans.push(plan("far apart").ranges(|seq, p| match part(seq, p, 2) {
        0 => (0, 20.min(keys(seq) - 10)),
        _ => ((keys(seq) - 30).max(0), keys(seq) - 10),
    }));
}

fn batches(plans: &mut Vec<Plan>) {
    let ragged = [(5, 9), (1, 40), (0, 7), (33, 33), (2, 130), (0, 0), (1, 1), (64, 513)];
    for page in [0, 1, 7, 16, 64] {
        plans.push(Plan { page, ..Plan::new(format!("ragged, page {page}"), &ragged).heads(9, 3, 64) });
    }
    let decode: Vec<(usize, usize)> = (0..17).map(|i| (1, 1 + i * i * 3)).collect();
    plans.push(Plan { page: 16, ..Plan::new("17 decoding", &decode).heads(9, 3, 64) });
    plans.push(Plan {
        page: 16,
        ..Plan::new("17 decoding", &decode).heads(4, 4, 128).types(DType::BF16, DType::BF16)
    });
    let segments: Vec<(usize, usize)> = (0..60).map(|i| (i * 7 % 40, i * 7 % 40)).collect();
    for fused in [false, true] {
        plans.push(Plan { fused, ..Plan::new("segments", &segments).heads(4, 4, 72).causal(false) });
    }
}

fn models(plans: &mut Vec<Plan>) {
    let tower = Plan::new("siglip base, one tile", &[(1024, 1024)]).heads(12, 12, 64).causal(false);
    plans.push(tower.clone());
    plans.push(Plan { fused: true, ..tower.types(DType::BF16, DType::BF16) });
    let so400m = Plan::new("siglip so400m", &[(729, 729)]).heads(2, 2, 72);
    plans.push(Plan { fused: true, ..so400m.causal(false) });
    plans.push(Plan { page: 16, ..Plan::new("smolvlm prefill", &[(1157, 1157)]).heads(9, 3, 64) });
    plans.push(Plan { page: 16, ..Plan::new("smolvlm second turn", &[(37, 1201)]).heads(9, 3, 64) });
    let decode = Plan { page: 16, ..Plan::new("smolvlm decode", &[(1, 1237)]).heads(9, 3, 64) };
    plans.push(decode.clone());
    plans.push(decode.types(DType::BF16, DType::BF16));
    for x in [DType::F32, DType::BF16] {
        // A part of a prompt: a picture of 256 tokens that sees itself, in a layer with a window of 1024.
        let gemma3 = Plan::new(format!("gemma 3, {x}"), &[(300, 1100)]).heads(2, 1, 256).types(x, x);
        plans.push(Plan { page: 16, ..gemma3 }.ranges(|_, p| match (820..1076).contains(&p) {
            true => (820.min(p - 1023), 1076),
            false => (p - 1023, p + 1),
        }));
        let paligemma = Plan::new(format!("paligemma, {x}"), &[(280, 280)]).heads(8, 1, 256).types(x, x);
        plans.push(Plan { page: 16, ..paligemma }.up_to(|_, p| (p + 1).max(256)));
        // Text before the first of two pictures, after it, and after the second.
        let mllama = Plan::new(format!("mllama, {x}"), &[(40, 3202)]).heads(8, 2, 128).types(x, x);
        plans.push(Plan { page: 16, ..mllama }.ranges(|_, p| match p - 3162 {
            0..5 => (0, 0),
            5..20 => (0, 1601),
            _ => (1601, 3202),
        }));
        // A step behind a window, whose older pages are gone.
        let windowed = Plan::new(format!("decode behind a window, {x}"), &[(1, 1333)]).heads(4, 1, 256);
        plans.push(Plan { page: 16, ..windowed.types(x, x).window(512) });
    }
}

/// Masks of sequences that go on.
fn few_queries(plans: &mut Vec<Plan>) {
    let lens = [(4, 300), (1, 290), (3, 3), (1, 1000)];
    let plan = |name: String| Plan { page: 16, ..Plan::new(name, &lens).heads(6, 2, 32) };
    for window in [1, 63, 129] {
        plans.push(plan(format!("few queries, window {window}")).window(window));
    }
    ranges(plans, |name| plan(format!("few queries, {name}")));
    ranges(plans, |name| Plan {
        page: 0,
        softcap: 30.0,
        ..plan(format!("few queries, packed, capped, {name}"))
    });
    let capped = plan("few queries, softcap, spiky".into());
    plans.push(Plan { softcap: 30.0, fill: Fill::Spiky, ..capped });
    plans.push(plan("few queries, full".into()).causal(false));
}

/// Types of tensor cores: heads, masks, sequences that follow one another in packed keys.
fn sixteen_bits(plans: &mut Vec<Plan>) {
    let (bf16, f16) = (DType::BF16, DType::F16);
    let lens = [(70, 200), (0, 9), (5, 3), (130, 130), (1, 300)];
    for head_dim in [64, 72, 96, 128, 256] {
        for causal in [false, true] {
            let name = format!("bf16 packed, head_dim {head_dim}, causal {causal}");
            plans.push(Plan::new(name, &lens).heads(4, 2, head_dim).types(bf16, bf16).causal(causal));
        }
        let name = format!("f16 pages, head_dim {head_dim}");
        plans.push(Plan { page: 16, ..Plan::new(name, &lens).heads(4, 2, head_dim).types(f16, f16) });
    }
    let segments: Vec<(usize, usize)> = (0..60).map(|i| (i * 7 % 40, i * 7 % 40)).collect();
    let segments = Plan::new("bf16 segments", &segments).heads(4, 4, 64).types(bf16, bf16);
    plans.push(segments.causal(false));
    // As many heads as keep a large device busy with wide tiles.
    for (head_dim, rows) in [(64, 192), (96, 128), (128, 128), (256, 128)] {
        for causal in [false, true] {
            let name = format!("many heads of {head_dim}, causal {causal}");
            let plan = Plan::new(name, &[(rows, 200)]).heads(100, 100, head_dim).types(bf16, bf16);
            plans.push(Plan { page: if causal { 16 } else { 0 }, ..plan.causal(causal) });
        }
    }
    for lens in [[(40, 300), (1, 290), (3, 3), (150, 150)], [(4, 300), (1, 290), (3, 3), (1, 1000)]] {
        let plan = |name: &str| Plan {
            page: 16,
            ..Plan::new(format!("bf16 {name}, {lens:?}"), &lens).heads(6, 2, 64).types(bf16, bf16)
        };
        plans.push(plan("window 63").window(63));
        plans.push(plan("prefix").up_to(|seq, p| [280, 17, 3, 99][seq].max(p + 1)));
        ranges(plans, |name| plan(&name));
        ranges(plans, |name| Plan { page: 0, ..plan(&format!("packed, {name}")).types(f16, f16) });
        plans.push(Plan { softcap: 30.0, fill: Fill::Spiky, ..plan("softcap, spiky").window(40) });
        plans.push(Plan { fill: Fill::Spiky, ..plan("spiky") }.types(f16, f16));
    }
}

/// Pages of codes with scales.
fn eight_bits(plans: &mut Vec<Plan>) {
    let i8 = DType::I8;
    for x in FLOATS {
        for (number, lens) in [(1, 300), (5, 77), (50, 99)].into_iter().enumerate() {
            for head_dim in [4, 16, 64, 72, 100, 128, 256] {
                let plan = Plan::new(format!("{x} on i8 {lens:?} of {head_dim}"), &[lens]);
                let fill = if head_dim == 64 { Fill::Spiky } else { Fill::Normal(1.0) };
                let page = [16, 7, 32][number];
                plans.push(Plan { page, fill, ..plan.heads(6, 2, head_dim).types(x, i8) });
            }
        }
    }
    let ragged = [(5, 9), (1, 40), (0, 7), (33, 33), (2, 130), (0, 0), (1, 1), (64, 513)];
    for x in [DType::F32, DType::BF16] {
        for page in [1, 7, 16, 64] {
            let plan = Plan::new(format!("{x} ragged on i8, page {page}"), &ragged).heads(9, 3, 64);
            plans.push(Plan { page, ..plan.types(x, i8) });
        }
        for lens in [[(40, 300), (1, 290), (3, 3), (130, 130)], [(4, 300), (1, 290), (3, 3), (1, 1000)]] {
            let plan = |name: &str| Plan {
                page: 16,
                ..Plan::new(format!("{x} on i8, {name}, {lens:?}"), &lens).heads(6, 2, 32).types(x, i8)
            };
            plans.push(plan("window 63").window(63));
            plans.push(plan("full").causal(false));
            plans.push(Plan { softcap: 30.0, fill: Fill::Spiky, ..plan("softcap, spiky").window(40) });
            plans.push(Plan { fill: Fill::Normal(0.0), ..plan("all zero") });
            ranges(plans, |name| plan(&name));
        }
        for (name, lens) in [("prefill", (1157, 1157)), ("second turn", (37, 1201)), ("decode", (1, 1237))] {
            let plan = Plan::new(format!("smolvlm {name}, {x} on i8"), &[lens]).heads(9, 3, 64);
            plans.push(Plan { page: 16, ..plan.types(x, i8) });
        }
    }
}
