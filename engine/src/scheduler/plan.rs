//! What one step does, from plain data: which requests begin, which give their pages back, the chunk of each, and the pictures to
//! encode.

use crate::kv::{Extent, KvGroup, PAGE};
use crate::prompt::Prompt;

/// What a step may take at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of a pass. Tokens that see each other go through together, however many they are.
    pub tokens: usize,
    /// Requests that run at once.
    pub seqs: usize,
    /// Tokens of all sequences in the cache.
    pub kv_tokens: usize,
    /// Rows of memory of all sequences, where a model attends to such.
    pub memory: usize,
    /// Patches of pictures that are encoded in one step, of 16 x 16 pixels each. A larger picture goes alone.
    pub patches: usize,
    /// Sequences that are kept after their end, for prompts that begin likewise.
    pub prefixes: usize,
    /// Bytes of features of pictures that are kept, for requests about the same.
    pub features: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tokens: 1024,
            seqs: 256,
            kv_tokens: 32_768,
            memory: 32_768,
            patches: 4096,
            prefixes: 0,
            features: 0,
        }
    }
}

impl Limits {
    /// The same for requests that go on coming: what was seen before is kept for those about the same pictures, and for those that
    /// begin likewise.
    #[must_use]
    pub fn remembering(self) -> Self {
        Self { prefixes: 64, features: 256 << 20, ..self }
    }
}

/// What the plan knows of a request.
#[derive(Clone, Debug)]
pub(super) struct Ask<'a> {
    pub prompt: &'a Prompt,
    /// Tokens of prompt and answer so far.
    pub known: usize,
    /// Guesses that an answer's last token is read with, if there is room.
    pub guessed: usize,
    /// Those that are in the cache.
    pub done: usize,
    /// Most tokens of prompt and answer.
    pub longest: usize,
    /// Patches of each medium that must be encoded; 0 of those that are.
    pub media: Vec<usize>,
    /// Was part of a pass that failed: the next one is its own.
    pub alone: bool,
    /// What may come next follows from the token before: see `ahead.rs`.
    pub bound: bool,
}

impl Ask<'_> {
    /// Whether nothing but the answer's last token is to be read.
    pub fn answers(&self) -> bool {
        self.done >= self.prompt.len() && self.done + 1 == self.known
    }

    /// What of it is in the cache.
    fn there(&self) -> Extent {
        Extent { tokens: self.done, memory: self.prompt.memory_rows() }
    }

    /// Whether a medium is read by what is to come: a memory by the first tokens, which write it.
    fn reads(&self, media: usize) -> bool {
        let spans = || self.prompt.spans.iter().filter(|span| span.media == media);
        self.remembers(media) || spans().any(|span| span.tokens().end > self.done)
    }

    fn remembers(&self, media: usize) -> bool {
        let Prompt { memory, rest, source, .. } = self.prompt;
        let encoded = || source.spans.iter().any(|span| span.media == media);
        let some = |rows: &[usize]| rows.get(media).is_some_and(|&rows| rows > 0);
        self.done == 0 && (some(memory) || some(rest) || encoded())
    }

    /// First token to come whose features are neither there nor among the `coming` media.
    fn featureless(&self, coming: impl Fn(usize) -> bool) -> usize {
        let lacks =
            |media: usize| self.media.get(media).is_some_and(|&patches| patches > 0) && !coming(media);
        if (0..self.media.len()).any(|media| lacks(media) && self.remembers(media)) {
            return self.done;
        }
        let spans =
            self.prompt.spans.iter().filter(|span| span.tokens().end > self.done && lacks(span.media));
        spans.map(|span| span.at.max(self.done)).min().unwrap_or(self.known)
    }

    /// Pages of a group that the request must find before it begins: for what is to be read, and one for the answer.
    fn pages_to_begin(&self, group: &KvGroup, limits: &Limits) -> usize {
        let tokens = self.known.saturating_add(PAGE).min(self.longest);
        let chunk = limits.tokens.max(self.prompt.longest_block()).min(self.known - self.done);
        group.most_pages(self.there().at(tokens), chunk)
    }
}

/// Pages of each group.
#[derive(Clone, Debug)]
pub(super) struct Room<'a> {
    pub groups: &'a [KvGroup],
    pub free: Vec<usize>,
}

impl Room<'_> {
    fn take(&mut self, there: Extent, new: usize) -> bool {
        let more: Vec<usize> = self.groups.iter().map(|group| group.pages_more(there, new)).collect();
        let fits = more.iter().zip(&self.free).all(|(more, free)| more <= free);
        if fits {
            self.free.iter_mut().zip(more).for_each(|(free, more)| *free -= more);
        }
        fits
    }

    fn give(&mut self, there: Extent, new: usize) {
        for (free, group) in self.free.iter_mut().zip(self.groups) {
            *free += group.pages_at(there) + group.pages_more(there, new);
        }
    }

    /// Tokens that a sequence can still take.
    fn most(&self, there: Extent) -> usize {
        let of_groups =
            self.groups.iter().zip(&self.free).map(|(group, &free)| group.tokens_more(there, free));
        of_groups.min().unwrap_or(usize::MAX)
    }
}

/// What a step does. Places are those of the running requests, the admitted ones after them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// So many of the waiting requests begin, the first ones.
    pub admitted: usize,
    /// So many of the running requests wait again, the youngest ones.
    pub preempted: usize,
    /// Place and number of tokens of each request in the pass: those of one token first, and among them those that are bound last.
    pub chunks: Vec<(usize, usize)>,
    /// Place and medium of each picture to encode before the pass.
    pub pictures: Vec<(usize, usize)>,
}

/// Plans a step for the `running` and `waiting` requests, the oldest first in both.
pub(super) fn plan(running: &[Ask<'_>], waiting: &[Ask<'_>], room: Room<'_>, limits: &Limits) -> Plan {
    let mut planning = Planning {
        running,
        limits,
        room,
        keep: running.len(),
        chunks: vec![0; running.len()],
        budget: limits.tokens,
        prompts: 0,
        pictures: Vec::new(),
        patches: 0,
    };
    let alone: Vec<usize> = (0..running.len()).filter(|&place| running[place].alone).collect();
    for &place in &alone {
        if planning.chunks.iter().all(|&len| len == 0) {
            planning.serve(place);
        }
    }
    let mut by_itself = planning.chunks.iter().any(|&len| len > 0);
    if !by_itself {
        let together = |place: &usize| !running[*place].alone;
        let (answers, prompts): (Vec<usize>, Vec<usize>) =
            (0..running.len()).filter(together).partition(|&place| running[place].answers());
        for place in answers.into_iter().chain(prompts) {
            planning.serve(place);
        }
        by_itself = planning.keep < running.len();
    }

    let mut all: Vec<&Ask<'_>> = running[..planning.keep].iter().collect();
    let mut admitted = 0;
    if !by_itself {
        for ask in waiting.iter().take(limits.seqs.saturating_sub(running.len())) {
            if !all.is_empty() && !planning.has_room(&all, ask) {
                break;
            }
            admitted += 1;
            all.push(ask);
            let chunk = if ask.alone { 0 } else { planning.prompt_chunk(all.len() - 1, ask) };
            planning.room.take(ask.there(), chunk);
            planning.chunks.push(chunk);
        }
    }
    let mut chunks: Vec<(usize, usize)> =
        planning.chunks.iter().copied().enumerate().take(all.len()).filter(|&(_, len)| len > 0).collect();
    let in_prompts = |&(place, len): &(usize, usize)| {
        let ask = all[place];
        len > 1 || ask.prompt.block_of(ask.done).is_some()
    };
    chunks.sort_by_key(|chunk| (in_prompts(chunk), all[chunk.0].bound));
    // What is left of the budget goes to those whose turn comes later.
    all.iter().enumerate().for_each(|(place, ask)| planning.choose_pictures(place, ask));
    planning.pictures.retain(|&(place, _)| place < all.len());
    planning.pictures.sort_unstable();
    Plan { admitted, preempted: running.len() - planning.keep, chunks, pictures: planning.pictures }
}

struct Planning<'a> {
    running: &'a [Ask<'a>],
    limits: &'a Limits,
    room: Room<'a>,
    /// The running requests that go on: so many of the oldest.
    keep: usize,
    /// New tokens at each place.
    chunks: Vec<usize>,
    /// Tokens that the pass may still take.
    budget: usize,
    /// Chunks of prompts so far.
    prompts: usize,
    /// Place and medium of the pictures that are encoded before the pass.
    pictures: Vec<(usize, usize)>,
    /// Their patches, and those of the first that was one too many.
    patches: usize,
}

impl Planning<'_> {
    /// Gives a running request its chunk, if need be with the pages of younger ones.
    fn serve(&mut self, place: usize) {
        let ask = &self.running[place];
        while place < self.keep {
            let len = if ask.answers() { self.answer_chunk(ask) } else { self.prompt_chunk(place, ask) };
            if len > 0 && self.room.take(ask.there(), len) {
                self.chunks[place] = len;
                if ask.answers() {
                    self.budget = self.budget.saturating_sub(len);
                }
                return;
            }
            // A prompt that lacks something else than pages does not get on by those of others, nor by leaving.
            if !ask.answers() && (!self.lacks_pages(place, ask) || self.keep == place + 1) {
                return;
            }
            self.keep -= 1;
            let last = &self.running[self.keep];
            self.room.give(last.there(), std::mem::take(&mut self.chunks[self.keep]));
        }
    }

    /// The token of an answer, with guesses where they take neither pages from others nor the pass.
    fn answer_chunk(&self, ask: &Ask<'_>) -> usize {
        1 + ask.guessed.min(self.budget.saturating_sub(1)).min(self.room.most(ask.there()).saturating_sub(1))
    }

    /// Chooses a request's pictures for the tower, as far as the patches go, but one at least.
    fn choose_pictures(&mut self, place: usize, ask: &Ask<'_>) {
        for (media, &patches) in ask.media.iter().enumerate() {
            if patches == 0 || !ask.reads(media) || self.pictures.contains(&(place, media)) {
                continue;
            }
            self.patches = self.patches.saturating_add(patches);
            if self.patches > self.limits.patches && !self.pictures.is_empty() {
                return;
            }
            self.pictures.push((place, media));
        }
    }

    /// First token to come whose features will not be there in this pass.
    fn featureless(&self, place: usize, ask: &Ask<'_>) -> usize {
        ask.featureless(|media| self.pictures.contains(&(place, media)))
    }

    /// Tokens of a prompt that go into this pass; takes them from the budget.
    fn prompt_chunk(&mut self, place: usize, ask: &Ask<'_>) -> usize {
        self.choose_pictures(place, ask);
        // Prompts get on slowly, but they get on, where answers fill the pass.
        let budget = if self.prompts == 0 { self.budget.max(1) } else { self.budget };
        let most = self.room.most(ask.there()).min(self.featureless(place, ask) - ask.done);
        let end = cut(ask, most.min(budget));
        let len = match ask.prompt.block_of(ask.done) {
            // Longer than what is left: it goes as the only prompt.
            Some(block) if end == ask.done && self.prompts == 0 && block.end - ask.done <= most => {
                block.end - ask.done
            }
            _ => end - ask.done,
        };
        self.prompts += usize::from(len > 0);
        self.budget = self.budget.saturating_sub(len);
        len
    }

    /// Whether pages are all that keeps a prompt from getting on.
    fn lacks_pages(&self, place: usize, ask: &Ask<'_>) -> bool {
        let next = ask.prompt.block_of(ask.done).map_or(1, |block| block.end - ask.done);
        let budget = self.prompts == 0 || next <= self.budget;
        budget && self.featureless(place, ask) >= ask.done + next && self.room.most(ask.there()) < next
    }

    /// Whether one more request can begin beside `all`, who may still need pages themselves.
    fn has_room(&self, all: &[&Ask<'_>], ask: &Ask<'_>) -> bool {
        self.room.groups.iter().zip(&self.room.free).all(|(group, &free)| {
            let promised: usize = all
                .iter()
                .zip(&self.chunks)
                .map(|(other, &len)| {
                    let held = group.pages_at(other.there()) + group.pages_more(other.there(), len);
                    other.pages_to_begin(group, self.limits).saturating_sub(held)
                })
                .sum();
            let more = ask.pages_to_begin(group, self.limits).saturating_sub(group.pages_at(ask.there()));
            more.saturating_add(promised) <= free
        })
    }
}

/// The largest end of a chunk of at most `most` tokens that cuts no block. A chunk may go on with the answer that was there before
/// the request lost its pages.
fn cut(ask: &Ask<'_>, most: usize) -> usize {
    let end = ask.done.saturating_add(most).min(ask.known);
    if end >= ask.prompt.len() { end } else { ask.prompt.cut(ask.done, most) }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
