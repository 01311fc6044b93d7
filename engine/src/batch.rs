//! What one forward pass takes: chunks of ragged sequences, packed without padding.

use std::ops::Range;

use crate::ctx::{Ctx, ReplayKey};
use crate::error::{Error, Result};
use crate::kv::{Blocks, Keep, KvCache, KvGroup, PAGE, SeqId};
use crate::prompt::{Features, Prompt, Source};
use crate::tensor::Tensor;

/// New tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Chunk<'a> {
    /// The sequence in the cache; its length there is the number of the first new token.
    pub seq: SeqId,
    /// The prompt that the sequence begins with.
    pub prompt: &'a Prompt,
    /// Features of the prompt's media; those whose tokens are not among the new ones may be absent.
    pub features: &'a [Option<Features>],
    /// Ids of the new tokens.
    pub tokens: &'a [u32],
    /// Number of last tokens whose logits are wanted.
    pub want: usize,
}

/// New tokens of several sequences: those of one token (answers) first, so that attention serves them apart from prompts.
#[derive(Clone, Debug, Default)]
pub struct Batch<'a> {
    /// The chunks.
    pub chunks: Vec<Chunk<'a>>,
    /// Token ids that are on the device alone, i32 `[tokens]` in the order of the chunks; those of `chunks` then only say how
    /// many there are.
    pub ids: Option<Tensor>,
}

/// Which keys the rows of a run see in a group of layers.
#[derive(Clone, Debug)]
pub enum Sees {
    /// All there are.
    All,
    /// Each row those up to its own, of the last so many where that is not 0.
    Causal {
        /// Number of keys seen at most; 0 without a limit.
        window: usize,
    },
    /// Row `r` sees keys `from[r]..to[r]`, i32 `[rows]` each.
    Ranges {
        /// First key.
        from: Box<Tensor>,
        /// Key after the last.
        to: Box<Tensor>,
    },
}

/// How the rows of a run fall into parts that see the same memory: sequences, or pieces of such.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Their rows in [`PackedKv::block_table`] and [`PackedKv::kv_lens`].
    pub parts: Range<usize>,
    /// i32 `[parts + 1]`: first row of each part, counted from the run's first row.
    pub q_starts: Tensor,
    /// Most rows of a part.
    pub max_q: usize,
}

/// What the rows of a run attend to in a group of layers.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Which keys are seen.
    pub sees: Sees,
    /// Of groups that keep a memory, how the rows fall into parts; of others they do into the run's sequences.
    pub cut: Option<Cut>,
    /// Most keys of one sequence.
    pub most: usize,
    /// Pairs of query and key.
    pub pairs: u64,
}

/// Neighbouring rows whose attention is one call.
#[derive(Clone, Debug)]
pub struct Run {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Sequences of the batch.
    pub seqs: Range<usize>,
    /// i32 `[seqs + 1]`: first row of each sequence, counted from the run's first row.
    pub q_starts: Tensor,
    /// Most new tokens of one sequence.
    pub max_q: usize,
    /// For each group of layers, the keys.
    pub keys: Vec<Keys>,
}

/// What a batch has in one group of layers.
#[derive(Clone, Debug)]
pub struct PackedKv {
    /// i32: slots in the pages of the new tokens, `[tokens]`, or of the rows of memory that are new, `[rows]`; the slot of each
    /// sequence's state, `[seqs]`. A state is to be taken for zeros where all tokens of its sequence are new.
    pub slots: Tensor,
    /// i32 `[seqs, max_pages]`; of a memory, a row for each part of [`Cut`].
    pub block_table: Tensor,
    /// i32 `[seqs]`: keys of each sequence, the new ones included; of a memory likewise.
    pub kv_lens: Tensor,
}

/// What an encoder reads for a sequence whose first tokens are in a batch.
#[derive(Clone, Debug)]
pub struct PackedSource {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Features that replace the embeddings of neighbouring tokens, with the first of those.
    pub features: Vec<(Tensor, usize)>,
    /// Features that the encoder attends to, in the order of the media.
    pub memory: Vec<Tensor>,
}

/// A batch as the device sees it: everything that changes from step to step is in these buffers.
#[derive(Clone, Debug)]
pub struct Packed {
    /// i32 `[tokens]`.
    pub ids: Tensor,
    /// i32 `[axes, tokens]`.
    pub positions: Tensor,
    /// For each group of layers, where its keys and values are.
    pub kv: Vec<PackedKv>,
    /// Rows that attention takes together.
    pub runs: Vec<Run>,
    /// i32 `[rows]`: rows whose logits are wanted, in order; `None` if every row is.
    pub wanted: Option<Tensor>,
    /// Features that replace embeddings, with the rows of the batch that they replace, i32 `[rows]`.
    pub features: Vec<(Tensor, Tensor)>,
    /// For each text layer from the first on, rows that are added to its result, likewise.
    pub deep: Vec<Vec<(Tensor, Tensor)>>,
    /// Features that become memory, in the order of the slots: those of sequences whose first tokens are here.
    pub memory: Vec<Tensor>,
    /// What an encoder makes memory of, likewise, where a model has one.
    pub sources: Vec<PackedSource>,
    /// f32 `[tokens]`: 1 of tokens for which the memory that they attend to counts, else 0 ([`Prompt::reached`]); absent without a
    /// memory.
    pub reached: Option<Tensor>,
    /// Rows of the batch.
    pub tokens: usize,
    /// Rows whose logits are wanted, those of padding included.
    pub rows_wanted: usize,
}

impl Packed {
    /// Whether each step of this kind is the same launches: one token a sequence, and nothing put in its place.
    #[must_use]
    pub fn repeats(&self) -> bool {
        let same = |keys: &Keys| !matches!(keys.sees, Sees::Ranges { .. });
        matches!(&self.runs[..], [run] if run.max_q == 1 && run.keys.iter().all(same))
            && self.features.is_empty()
            && self.deep.is_empty()
            && self.memory.is_empty()
            && self.sources.is_empty()
    }

    /// What launches on this batch depend on.
    #[must_use]
    pub fn replay_key(&self) -> ReplayKey {
        let mut key = ReplayKey::default();
        for tensor in [&self.ids, &self.positions].into_iter().chain(&self.wanted).chain(&self.reached) {
            key.view(tensor.view());
        }
        for kv in &self.kv {
            key.view(kv.slots.view()).view(kv.block_table.view()).view(kv.kv_lens.view());
        }
        for run in &self.runs {
            key.view(run.q_starts.view()).number(run.max_q);
            for keys in &run.keys {
                key.number(keys.most);
                if let Some(cut) = &keys.cut {
                    key.view(cut.q_starts.view()).number(cut.max_q);
                }
            }
        }
        key.number(self.rows_wanted);
        key
    }
}

/// How a model wants its batches.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Axes of positions.
    pub axes: usize,
}

/// Numbers of a batch on their way to the device.
#[derive(Default)]
struct Lists {
    ids: Vec<i32>,
    positions: Vec<[i32; 3]>,
    wanted: Vec<i32>,
    /// Tokens of each sequence, the new ones included.
    tokens: Vec<i32>,
    /// Rows of memory of each part.
    memory: Vec<i32>,
    /// The chunk of each part.
    owners: Vec<usize>,
    /// Slots in each group.
    slots: Vec<Vec<i32>>,
}

impl Lists {
    /// Keys of each sequence in a group.
    fn keys(&self, keep: Keep) -> &[i32] {
        match keep {
            Keep::Memory => &self.memory,
            _ => &self.tokens,
        }
    }
}

/// A run before it is uploaded.
struct Plain {
    rows: Range<usize>,
    seqs: Range<usize>,
    q_starts: Vec<i32>,
    max_q: usize,
    parts: Range<usize>,
    part_starts: Vec<i32>,
    max_part: usize,
}

impl Plain {
    /// Rows that are to be added to no sequence yet.
    fn at(row: usize, seq: usize, part: usize) -> Self {
        Self {
            rows: row..row,
            seqs: seq..seq,
            q_starts: vec![0],
            max_q: 0,
            parts: part..part,
            part_starts: vec![0],
            max_part: 0,
        }
    }

    /// Adds a sequence of so many rows, in parts.
    fn add(&mut self, rows: usize, parts: &[usize]) {
        for part in parts {
            self.rows.end += part;
            self.parts.end += 1;
            self.part_starts.push(self.rows.len() as i32);
            self.max_part = self.max_part.max(*part);
        }
        self.seqs.end += 1;
        self.q_starts.push(self.rows.len() as i32);
        self.max_q = self.max_q.max(rows);
    }
}

impl Batch<'_> {
    /// Takes slots in the cache for the new tokens and uploads what the device needs.
    ///
    /// Errors name the sequence and what was wrong with it; the cache is then as it was, but for pages behind windows and states.
    pub fn pack(&self, cx: &mut Ctx, kv: &mut KvCache, packing: Packing) -> Result<Packed> {
        let before: Vec<usize> = self.chunks.iter().map(|chunk| kv.len(chunk.seq)).collect();
        let packed = self.pack_over(cx, kv, packing, &before);
        if packed.is_err() {
            for (chunk, &len) in self.chunks.iter().zip(&before) {
                kv.truncate(chunk.seq, len);
            }
        }
        packed
    }

    fn pack_over(
        &self,
        cx: &mut Ctx,
        kv: &mut KvCache,
        packing: Packing,
        before: &[usize],
    ) -> Result<Packed> {
        let groups: Vec<Keep> = kv.groups().map(|group| group.keep).collect();
        let mut lists = Lists { slots: vec![Vec::new(); groups.len()], ..Lists::default() };
        let mut runs: Vec<Plain> = Vec::new();
        for (index, (chunk, &past)) in self.chunks.iter().zip(before).enumerate() {
            let (first, new) = (lists.ids.len(), chunk.tokens.len());
            let bad = |what: String| Error::Request(format!("sequence {index}: {what}"));
            if new == 0 {
                return Err(bad("expected at least one token, found none".into()));
            }
            if let Some(id) = chunk.tokens.iter().find(|&&id| id as usize >= packing.vocab) {
                return Err(bad(format!("token id: expected below {}, found {id}", packing.vocab)));
            }
            for (slots, placed) in lists.slots.iter_mut().zip(kv.extend(chunk.seq, new)?) {
                slots.extend(placed);
            }
            lists.ids.extend(chunk.tokens.iter().map(|&id| id as i32));
            lists.positions.extend((past..past + new).map(|token| chunk.prompt.position(token)));
            lists.tokens.push((past + new) as i32);
            let parts = parts(chunk.prompt, past..past + new);
            let before = lists.memory.len();
            lists.memory.extend(parts.iter().map(|_| chunk.prompt.memory_rows() as i32));
            lists.owners.extend(parts.iter().map(|_| index));
            lists.wanted.extend((first + new - chunk.want.min(new)..first + new).map(|row| row as i32));
            // Answers and prompts are runs of their own.
            let alone = new == 1 && chunk.prompt.block_of(past).is_none();
            if runs.last().is_none_or(|run| (run.max_q == 1) != alone) {
                runs.push(Plain::at(first, index, before));
            }
            if let Some(run) = runs.last_mut() {
                run.add(new, &parts);
                // More than one, so that the next answer begins a run.
                run.max_q = if alone { 1 } else { run.max_q.max(2) };
            }
        }
        // Where steps are recorded, few sizes serve all of them.
        let padded = cx.records() && runs.len() == 1 && runs[0].max_q == 1;
        if padded {
            pad(&mut lists, &groups, &mut runs[0]);
        }
        self.upload(cx, kv, packing, before, &groups, &lists, runs, padded)
    }

    fn upload(
        &self,
        cx: &mut Ctx,
        kv: &KvCache,
        packing: Packing,
        before: &[usize],
        groups: &[Keep],
        lists: &Lists,
        runs: Vec<Plain>,
        padded: bool,
    ) -> Result<Packed> {
        let tokens = lists.ids.len();
        let axis = |axis: usize| lists.positions.iter().map(move |at| at[axis]);
        let positions: Vec<i32> = (0..packing.axes).flat_map(axis).collect();
        let every = lists.wanted.len() == tokens;
        let remembers = groups.contains(&Keep::Memory);
        let mut all: Vec<Vec<i32>> = vec![
            if self.ids.is_some() { vec![] } else { lists.ids.clone() },
            positions,
            if every { vec![] } else { lists.wanted.clone() },
            lists.tokens.clone(),
            if remembers { lists.memory.clone() } else { vec![] },
        ];
        let mut widths = Vec::with_capacity(groups.len());
        for (group, (&keep, slots)) in groups.iter().zip(&lists.slots).enumerate() {
            let width = match keep {
                Keep::State => 1,
                _ => most(lists.keys(keep), padded).div_ceil(PAGE).max(1),
            };
            let every: Vec<usize> = (0..self.chunks.len()).collect();
            let owners = if keep == Keep::Memory { &lists.owners } else { &every };
            let mut table = vec![0i32; lists.keys(keep).len() * width];
            for (row, chunk) in table.chunks_exact_mut(width).zip(owners.iter().map(|&i| &self.chunks[i])) {
                for (slot, page) in row.iter_mut().zip(kv.pages(chunk.seq, group)) {
                    *slot = page as i32;
                }
            }
            widths.push(width);
            all.extend([slots.clone(), table]);
        }
        all.extend(runs.iter().map(|run| run.q_starts.clone()));
        if remembers {
            all.extend(runs.iter().map(|run| run.part_starts.clone()));
        }
        let mut seen = Vec::new();
        for run in &runs {
            let of_run: Vec<Seen> = kv.groups().map(|group| self.seen(group, run, before)).collect();
            for (from, to) in of_run.iter().filter_map(|seen| seen.ranges.as_ref()) {
                all.extend([from.clone(), to.clone()]);
            }
            seen.push(of_run);
        }

        let mut parts = cx.upload_ids(&all)?.into_iter();
        let mut next = || parts.next().ok_or_else(|| Error::Request("a list of the batch was lost".into()));
        let (ids, positions, wanted) = (next()?, next()?, next()?);
        let (token_lens, memory_lens) = (next()?, next()?);
        let mut packed_kv = Vec::with_capacity(groups.len());
        for (keep, width) in groups.iter().zip(widths) {
            let kv_lens = if *keep == Keep::Memory { &memory_lens } else { &token_lens };
            let (slots, block_table) = (next()?, next()?.reshape(&[lists.keys(*keep).len(), width])?);
            packed_kv.push(PackedKv { slots, block_table, kv_lens: kv_lens.clone() });
        }
        let starts = runs.iter().map(|_| next()).collect::<Result<Vec<_>>>()?;
        let mut part_starts = Vec::new();
        if remembers {
            part_starts = runs.iter().map(|_| next()).collect::<Result<Vec<_>>>()?;
        }
        let mut part_starts = part_starts.into_iter();
        let mut packed_runs = Vec::with_capacity(runs.len());
        for ((run, q_starts), seen) in runs.into_iter().zip(starts).zip(seen) {
            let Plain { rows, seqs, max_q, parts, max_part, .. } = run;
            let cut = part_starts.next().map(|q_starts| Cut { parts, q_starts, max_q: max_part });
            let mut keys = Vec::with_capacity(seen.len());
            for (Seen { same, pairs, ranges }, &keep) in seen.into_iter().zip(groups) {
                let sees = match ranges {
                    None => same,
                    Some(_) => Sees::Ranges { from: next()?.into(), to: next()?.into() },
                };
                let cut = cut.clone().filter(|_| keep == Keep::Memory);
                let of_run = cut.as_ref().map_or(seqs.clone(), |cut| cut.parts.clone());
                let of_run = lists.keys(keep).get(of_run).unwrap_or_default();
                keys.push(Keys { sees, cut, most: most(of_run, padded), pairs });
            }
            packed_runs.push(Run { rows, seqs, q_starts, max_q, keys });
        }
        let reached = if remembers { Some(self.reached(cx, before, tokens)?) } else { None };
        let gathered = self.features(cx, before, remembers)?;
        Ok(Packed {
            ids: match &self.ids {
                Some(known) => known.narrow(0, 0, tokens)?,
                None => ids,
            },
            positions: positions.reshape(&[packing.axes, tokens])?,
            kv: packed_kv,
            runs: packed_runs,
            wanted: (!every).then_some(wanted),
            features: gathered.replaced,
            deep: gathered.deep,
            memory: gathered.memory,
            sources: gathered.sources,
            reached,
            tokens,
            rows_wanted: lists.wanted.len(),
        })
    }

    /// Which keys the rows of a run see in a group.
    fn seen(&self, group: KvGroup, run: &Plain, before: &[usize]) -> Seen {
        let chunks = || self.chunks.iter().zip(before).skip(run.seqs.start).take(run.seqs.len());
        let new = |(chunk, past): (&Chunk<'_>, &usize)| *past..past + chunk.tokens.len();
        let window = match group.keep {
            Keep::All | Keep::Chunk(_) => 0,
            Keep::Window(window) => window,
            Keep::Memory => {
                let whole = |(chunk, past): (&Chunk<'_>, &usize)| {
                    let all = 0..chunk.prompt.memory_rows();
                    new((chunk, past)).all(|token| chunk.prompt.reach(token) == all)
                };
                let reach = |chunk: &Chunk<'_>, token| chunk.prompt.reach(token);
                return Seen::of(Sees::All, chunks().all(whole), chunks(), reach).padded(run.rows.len());
            }
            Keep::State => return Seen { same: Sees::All, pairs: 0, ranges: None },
        };
        let blocks = group.blocks;
        let in_block = |(chunk, past): (&Chunk<'_>, &usize)| {
            let new = new((chunk, past));
            let among_new = |block: &Range<usize>| block.start < new.end && block.end > new.start;
            blocks != Blocks::Nothing && chunk.prompt.blocks.iter().any(among_new)
        };
        // Of sequences in their first chunk every token before is seen.
        let ended = |(chunk, past): (&Chunk<'_>, &usize)| match group.keep {
            Keep::Chunk(size) => past + chunk.tokens.len() > size,
            _ => false,
        };
        let suffices = !chunks().any(|both| in_block(both) || ended(both));
        let seen = Seen::of(Sees::Causal { window }, suffices, chunks(), |chunk, token| {
            let first = match group.keep {
                Keep::Window(window) if window > 0 => (token + 1).saturating_sub(window),
                Keep::Chunk(size) => token - token % size.max(1),
                _ => 0,
            };
            match (chunk.prompt.block_of(token), blocks) {
                (Some(block), Blocks::Whole) => first.min(block.start)..block.end,
                (Some(block), Blocks::Ahead) => first..block.end,
                _ => first..token + 1,
            }
        });
        seen.padded(run.rows.len())
    }

    /// Whether each of `rows` rows attends to memory that is before it, [`Packed::reached`].
    fn reached(&self, cx: &mut Ctx, before: &[usize], rows: usize) -> Result<Tensor> {
        let of_chunk = |(chunk, &past): (&Chunk<'_>, &usize)| {
            let prompt = chunk.prompt;
            (past..past + chunk.tokens.len())
                .map(|token| f32::from(u8::from(prompt.reached(token))))
                .collect::<Vec<_>>()
        };
        let mut values: Vec<f32> = self.chunks.iter().zip(before).flat_map(of_chunk).collect();
        values.resize(rows, 0.0);
        cx.upload(&[rows], &values)
    }

    /// Features of the new tokens with the rows of the batch that they belong to.
    fn features(&self, cx: &mut Ctx, before: &[usize], remembers: bool) -> Result<Gathered> {
        let mut gathered = Gathered::default();
        let mut first = 0;
        for (index, (chunk, &past)) in self.chunks.iter().zip(before).enumerate() {
            let bad = |what: String| Error::Request(format!("sequence {index}: {what}"));
            let of = |media: usize| {
                let features = chunk.features.get(media).and_then(Option::as_ref);
                features.ok_or_else(|| bad(format!("no features of picture {}", media + 1)))
            };
            let new = past..past + chunk.tokens.len();
            for span in &chunk.prompt.spans {
                let tokens = span.tokens();
                let (start, end) = (tokens.start.max(new.start), tokens.end.min(new.end));
                if start >= end {
                    continue;
                }
                let features = of(span.media)?;
                if features.len() < span.rows.end {
                    return Err(bad(format!(
                        "picture {}: expected at least {} rows of features, found {}",
                        span.media + 1,
                        span.rows.end,
                        features.len()
                    )));
                }
                let from = span.rows.start + (start - span.at);
                let rows: Vec<i32> = (start..end).map(|token| (first + token - past) as i32).collect();
                let rows = cx.upload(&[rows.len()], &rows)?;
                if let Some(values) = &features.rows {
                    gathered.replaced.push((values.narrow(0, from, end - start)?, rows.clone()));
                }
                let deep = &mut gathered.deep;
                deep.resize(deep.len().max(features.deep.len()), Vec::new());
                let some = deep.iter_mut().zip(&features.deep).filter(|(_, values)| values.size(0) > 0);
                for (layer, values) in some {
                    layer.push((values.narrow(0, from, end - start)?, rows.clone()));
                }
            }
            let mut memories = Vec::new();
            let rest = &chunk.prompt.rest;
            for media in 0..chunk.prompt.memory.len().max(rest.len()) {
                let of_media = |rows: &[usize]| rows.get(media).copied().unwrap_or(0);
                let (rows, behind) = (of_media(&chunk.prompt.memory), of_media(rest));
                if !remembers || past > 0 || rows + behind == 0 {
                    continue;
                }
                let memory = of(media)?.memory.clone();
                let found = memory.as_ref().map_or(0, |memory| memory.size(0));
                match memory {
                    Some(memory) if found == rows + behind => memories.push(memory),
                    _ => {
                        let what = format!("expected {} rows of memory, found {found}", rows + behind);
                        return Err(bad(format!("picture {}: {what}", media + 1)));
                    }
                }
            }
            let Source { tokens, spans } = &chunk.prompt.source;
            if tokens.is_empty() && rest.iter().all(|rows| *rows == 0) {
                gathered.memory.append(&mut memories);
            } else if tokens.is_empty() {
                // What tokens attend to after their pictures comes first, of all of them.
                let mut behind = Vec::new();
                for (media, memory) in memories.iter().enumerate() {
                    let rows = chunk.prompt.memory.get(media).copied().unwrap_or(0);
                    gathered.memory.push(memory.narrow(0, 0, rows)?);
                    behind.push(memory.narrow(0, rows, memory.size(0) - rows)?);
                }
                gathered.memory.append(&mut behind);
                gathered.memory.retain(|rows| rows.size(0) > 0);
            } else if remembers && past == 0 {
                let mut features = Vec::with_capacity(spans.len());
                for span in spans {
                    let rows = of(span.media)?.rows.as_ref();
                    let rows = rows.filter(|rows| rows.size(0) >= span.rows.end);
                    let rows = rows.ok_or_else(|| {
                        let what = format!("expected at least {} rows of features", span.rows.end);
                        bad(format!(
                            "picture {}: {what}, found {}",
                            span.media + 1,
                            rows.map_or(0, |rows| rows.size(0))
                        ))
                    })?;
                    features.push((rows.narrow(0, span.rows.start, span.rows.len())?, span.at));
                }
                gathered.sources.push(PackedSource { tokens: tokens.clone(), features, memory: memories });
            }
            first += chunk.tokens.len();
        }
        Ok(gathered)
    }
}

/// Features for a pass, as [`Packed`] holds them.
#[derive(Default)]
struct Gathered {
    replaced: Vec<(Tensor, Tensor)>,
    deep: Vec<Vec<(Tensor, Tensor)>>,
    memory: Vec<Tensor>,
    sources: Vec<PackedSource>,
}

/// Keys that the rows of a run see in a group, before they are uploaded.
struct Seen {
    /// What all rows see, where that says it.
    same: Sees,
    pairs: u64,
    ranges: Option<(Vec<i32>, Vec<i32>)>,
}

impl Seen {
    /// `keys` of each row of the chunks; as ranges unless `same` says it all.
    fn of<'a>(
        same: Sees,
        suffices: bool,
        chunks: impl Iterator<Item = (&'a Chunk<'a>, &'a usize)>,
        keys: impl Fn(&Chunk<'_>, usize) -> Range<usize>,
    ) -> Self {
        let (mut from, mut to, mut pairs) = (Vec::new(), Vec::new(), 0u64);
        for (chunk, &past) in chunks {
            for token in past..past + chunk.tokens.len() {
                let keys = keys(chunk, token);
                pairs += keys.len() as u64;
                from.push(keys.start as i32);
                to.push(keys.end as i32);
            }
        }
        Self { same, pairs, ranges: (!suffices).then_some((from, to)) }
    }

    /// The same for so many rows, of which the last ones see nothing.
    fn padded(mut self, rows: usize) -> Self {
        if let Some((from, to)) = &mut self.ranges {
            from.resize(rows, 0);
            to.resize(rows, 0);
        }
        self
    }
}

/// Numbers of neighbouring tokens that attend to the same memory.
fn parts(prompt: &Prompt, tokens: Range<usize>) -> Vec<usize> {
    let (mut from, mut parts) = (tokens.start, Vec::new());
    while from < tokens.end {
        let to = prompt.next_reach(from).map_or(tokens.end, |next| next.min(tokens.end));
        parts.push(to - from);
        from = to;
    }
    parts
}

/// Most keys of a sequence; in steps that are recorded, a size that many share.
fn most(keys: &[i32], padded: bool) -> usize {
    let most = keys.iter().max().map_or(0, |&most| most as usize);
    if padded { bucket(most) } else { most }
}

fn bucket(size: usize) -> usize {
    ocelli_kernels::spec::bucket(size) as usize
}

/// Fills a step of one token a sequence up to a bucket: rows that write no key, see none and whose logits nobody reads.
fn pad(lists: &mut Lists, groups: &[Keep], run: &mut Plain) {
    for row in lists.ids.len()..bucket(lists.ids.len()) {
        lists.ids.push(0);
        lists.positions.push([0; 3]);
        lists.tokens.push(0);
        lists.memory.push(0);
        lists.wanted.push(row as i32);
        for (slots, _) in lists.slots.iter_mut().zip(groups).filter(|(_, keep)| **keep != Keep::Memory) {
            slots.push(-1);
        }
        run.add(1, &[1]);
    }
}
