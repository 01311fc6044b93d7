//! Conformance cases.

use super::{Attention, AttentionKv, Mask};
use crate::buffer::View;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType;

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// One case: lengths of the sequences and everything that is alike for all of them.
#[derive(Clone)]
struct Plan {
    name: String,
    /// Queries and keys of each sequence.
    lens: Vec<(usize, usize)>,
    heads_q: usize,
    heads_kv: usize,
    head_dim: usize,
    x: DType,
    kv: DType,
    /// Slots of a page; 0 packs the keys.
    page: usize,
    causal: bool,
    window: usize,
    prefix: Option<Vec<i32>>,
    softcap: f32,
    fill: Fill,
    /// Whether operands are slices of wider rows, as a fused projection gives them.
    fused: bool,
}

impl Plan {
    fn new(name: impl Into<String>, lens: &[(usize, usize)]) -> Self {
        Self {
            name: name.into(),
            lens: lens.to_vec(),
            heads_q: 1,
            heads_kv: 1,
            head_dim: 64,
            x: DType::F32,
            kv: DType::F32,
            page: 0,
            causal: true,
            window: 0,
            prefix: None,
            softcap: 0.0,
            fill: Fill::Normal(1.0),
            fused: false,
        }
    }

    fn heads(self, heads_q: usize, heads_kv: usize, head_dim: usize) -> Self {
        Self { heads_q, heads_kv, head_dim, ..self }
    }

    fn types(self, x: DType, kv: DType) -> Self {
        Self { x, kv, ..self }
    }

    /// Pairs of query and key that the mask keeps.
    fn pairs(&self) -> u64 {
        let mut pairs = 0;
        for (seq, &(q_len, kv_len)) in self.lens.iter().enumerate() {
            let prefix = self.prefix.as_ref().map_or(0, |prefix| i64::from(prefix[seq]));
            for i in 0..q_len {
                let position = (kv_len + i) as i64 - q_len as i64;
                let seen = |j: &usize| {
                    let j = *j as i64;
                    let in_window = self.window == 0 || j > position - self.window as i64;
                    !self.causal || j < prefix || (j <= position && in_window)
                };
                pairs += (0..kv_len).filter(seen).count() as u64;
            }
        }
        pairs
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

    /// Pages with the keys of all sequences in shuffled blocks; every slot without a key is NaN.
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
        for (&(_, kv_len), &count) in self.lens.iter().zip(&blocks) {
            for block in 0..width {
                let Some(page) = (block < count).then(|| order[next + block]) else {
                    // Entries beyond a sequence's pages may hold anything.
                    table.push(if block % 2 == 0 { -1 } else { i32::MAX });
                    continue;
                };
                table.push(page as i32);
                let first = page * self.page;
                used[first..first + self.page.min(kv_len - block * self.page)].fill(true);
            }
            next += count;
        }
        let shape = [pages, self.page, self.heads_kv, self.head_dim];
        let pool = |cx: &mut CaseCx| {
            let values: Vec<f64> = (0..pages * self.page * row)
                .map(|at| if used[at / row] { cx.value(self.fill) } else { f64::NAN })
                .collect();
            cx.values(&shape, self.kv, &values)
        };
        let lens: Vec<i32> = self.lens.iter().map(|&(_, kv)| kv as i32).collect();
        AttentionKv::Paged {
            k: pool(cx),
            v: pool(cx),
            block_table: cx.ints(&[self.lens.len(), width], &table),
            kv_lens: cx.ints(&[lens.len()], &lens),
        }
    }

    fn build(self, cx: &mut CaseCx) -> Case<Attention> {
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
            let rows = kv_starts[kv_starts.len() - 1] as usize + 1;
            AttentionKv::Packed {
                k: self.packed(cx, rows, self.heads_kv, self.kv),
                v: self.packed(cx, rows, self.heads_kv, self.kv),
                kv_starts: cx.ints(&[kv_starts.len()], &kv_starts),
            }
        };
        let op = Attention {
            q,
            kv,
            q_starts: cx.ints(&[q_starts.len()], &q_starts),
            mask: Mask {
                causal: self.causal,
                window: self.window,
                prefix: self.prefix.as_ref().map(|prefix| cx.ints(&[prefix.len()], prefix)),
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
    plans.into_iter().map(|plan| plan.build(cx)).collect()
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
        plans.push(Plan { causal: false, ..Plan::new(format!("full {len}"), &[(len, len)]) });
    }
    // Early queries of a sequence with fewer keys than queries see nothing: their result is zero.
    plans.push(Plan::new("more queries than keys", &[(5, 3)]));
    plans.push(Plan::new("no sequence", &[]));
    plans.push(Plan { causal: false, ..Plan::new("cross", &[(10, 77), (3, 0), (50, 1)]) });
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
        plans.push(Plan { window, ..plan(format!("window {window}")) });
        let prefix = Some(vec![9, 140, 2, 70]);
        plans.push(Plan { window, prefix, ..plan(format!("window {window} with prefix")) });
    }
    for prefix in [[0, 0, 0, 0], [1, 290, 3, 129], [300, 5, 1, 128], [280, 17, 3, 999]] {
        plans.push(Plan { prefix: Some(prefix.to_vec()), ..plan(format!("prefix {prefix:?}")) });
    }
    for softcap in [0.5, 30.0] {
        plans.push(Plan { softcap, ..plan(format!("softcap {softcap}")) });
        let spiky = plan(format!("softcap {softcap}, spiky"));
        plans.push(Plan { softcap, fill: Fill::Spiky, window: 40, ..spiky });
    }
    plans.push(Plan { fill: Fill::Spiky, ..plan("spiky".into()) });
    plans.push(Plan { fill: Fill::Normal(0.0), ..plan("all zero".into()) });
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
        plans.push(Plan { causal: false, fused, ..Plan::new("segments", &segments).heads(4, 4, 72) });
    }
}

fn models(plans: &mut Vec<Plan>) {
    let tower =
        Plan { causal: false, ..Plan::new("siglip base, one tile", &[(1024, 1024)]).heads(12, 12, 64) };
    plans.push(tower.clone());
    plans.push(Plan { fused: true, ..tower.types(DType::BF16, DType::BF16) });
    let so400m = Plan::new("siglip so400m", &[(729, 729)]).heads(2, 2, 72);
    plans.push(Plan { causal: false, fused: true, ..so400m });
    plans.push(Plan { page: 16, ..Plan::new("smolvlm prefill", &[(1157, 1157)]).heads(9, 3, 64) });
    plans.push(Plan { page: 16, ..Plan::new("smolvlm second turn", &[(37, 1201)]).heads(9, 3, 64) });
    let decode = Plan { page: 16, ..Plan::new("smolvlm decode", &[(1, 1237)]).heads(9, 3, 64) };
    plans.push(decode.clone());
    plans.push(decode.types(DType::BF16, DType::BF16));
}

/// Masks of sequences that go on.
fn few_queries(plans: &mut Vec<Plan>) {
    let lens = [(4, 300), (1, 290), (3, 3), (1, 1000)];
    let plan = |name: String| Plan { page: 16, ..Plan::new(name, &lens).heads(6, 2, 32) };
    for window in [1, 63, 129] {
        plans.push(Plan { window, ..plan(format!("few queries, window {window}")) });
        let prefix = Some(vec![9, 140, 2, 500]);
        plans.push(Plan { window, prefix, ..plan(format!("few queries, window {window} with prefix")) });
    }
    let capped = plan("few queries, softcap, spiky".into());
    plans.push(Plan { softcap: 30.0, fill: Fill::Spiky, ..capped });
    plans.push(Plan { causal: false, ..plan("few queries, full".into()) });
}

/// Types of tensor cores: heads, masks, sequences that follow one another in packed keys.
fn sixteen_bits(plans: &mut Vec<Plan>) {
    let (bf16, f16) = (DType::BF16, DType::F16);
    let lens = [(70, 200), (0, 9), (5, 3), (130, 130), (1, 300)];
    for head_dim in [64, 72, 96, 128, 256] {
        for causal in [false, true] {
            let name = format!("bf16 packed, head_dim {head_dim}, causal {causal}");
            plans.push(Plan { causal, ..Plan::new(name, &lens).heads(4, 2, head_dim).types(bf16, bf16) });
        }
        let name = format!("f16 pages, head_dim {head_dim}");
        plans.push(Plan { page: 16, ..Plan::new(name, &lens).heads(4, 2, head_dim).types(f16, f16) });
    }
    let segments: Vec<(usize, usize)> = (0..60).map(|i| (i * 7 % 40, i * 7 % 40)).collect();
    let segments = Plan::new("bf16 segments", &segments).heads(4, 4, 64).types(bf16, bf16);
    plans.push(Plan { causal: false, ..segments });
    // As many heads as keep a large device busy with wide tiles.
    for (head_dim, rows) in [(64, 192), (96, 128), (128, 128), (256, 128)] {
        for causal in [false, true] {
            let name = format!("many heads of {head_dim}, causal {causal}");
            let plan = Plan::new(name, &[(rows, 200)]).heads(100, 100, head_dim).types(bf16, bf16);
            plans.push(Plan { causal, page: if causal { 16 } else { 0 }, ..plan });
        }
    }
    for lens in [[(40, 300), (1, 290), (3, 3), (150, 150)], [(4, 300), (1, 290), (3, 3), (1, 1000)]] {
        let plan = |name: &str| Plan {
            page: 16,
            ..Plan::new(format!("bf16 {name}, {lens:?}"), &lens).heads(6, 2, 64).types(bf16, bf16)
        };
        plans.push(Plan { window: 63, ..plan("window 63") });
        plans.push(Plan { window: 16, prefix: Some(vec![9, 140, 2, 70]), ..plan("window 16 with prefix") });
        plans.push(Plan { prefix: Some(vec![280, 17, 3, 99]), ..plan("prefix") });
        plans.push(Plan { softcap: 30.0, fill: Fill::Spiky, window: 40, ..plan("softcap, spiky") });
        plans.push(Plan { fill: Fill::Spiky, ..plan("spiky") }.types(f16, f16));
    }
}
