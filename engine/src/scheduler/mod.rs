//! Generation: a scheduler that mixes any number of requests into passes.
//!
//! A step plans what it does from plain data (`plan.rs`), encodes pictures ahead of need, and runs one pass: a token of every running
//! answer, then chunks of prompts. Requests begin as the pages of the cache allow; where pages run out, the youngest gives its own
//! back and is read again later. A request that fails does so alone.

mod ahead;
mod early;
mod generate;
mod pictures;
mod plan;
mod prefix;
mod request;
mod sampling;
mod speculate;
mod worker;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tracing::Span;

use ocelli_kernels::{DType, Fetch};

use crate::batch::{Batch, Chunk};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::image::{Key, PreparedImage};
use crate::kv::{KvCache, KvGroup, PAGE};
use crate::prompt::Features;
use crate::store::FeatureStore;
use crate::tensor::Tensor;
use crate::text::Tokenizer;
use crate::timing::Phase;
use crate::vlm::Vlm;

use early::Early;
pub use generate::{Piece, generate};
use pictures::Pictures;
pub use plan::Limits;
use plan::{Ask, Plan, Room, plan};
use prefix::Prefixes;
pub use request::{Answer, Event, FinishReason, Media, Picture, Request};
use request::{Live, Step, capacities, check_rows};
use sampling::sample_rows;
pub use worker::{Client, Load, Stream, Ticket, Worker};

/// Tokens on their way to the host.
type Arriving = Box<dyn Fetch>;

/// A row of logits on its way to the host: its place, its type and its bytes.
type LookedAt = (usize, DType, Arriving);

/// What a pass gives: the requests that get a token, the tokens, and rows that are looked at.
type Sampled = (Vec<usize>, Option<Arriving>, Vec<LookedAt>);

/// A forward pass whose tokens are on their way to the host.
struct Pass {
    /// Numbers of its requests, with their new tokens.
    chunks: Vec<(usize, usize)>,
    /// Numbers of the requests that get a token, in the order of the tokens.
    rows: Vec<usize>,
    /// The tokens; `None` where no prompt was complete.
    tokens: Option<Arriving>,
    /// Rows of logits that are looked at, by the place of their request.
    looked_at: Vec<LookedAt>,
    /// The same on the device, on memory that may be longer.
    ids: Tensor,
    /// Tokens of prompts, and of answers, that went through the model.
    count: (usize, usize),
    /// From its start to its tokens.
    _span: Span,
}

/// Runs requests against a model.
pub struct Scheduler {
    model: Arc<dyn Vlm>,
    tokenizer: Tokenizer,
    kv: KvCache,
    groups: Vec<KvGroup>,
    limits: Limits,
    /// Pages of each group of the cache.
    capacity: Vec<usize>,
    /// The oldest first, in both.
    waiting: VecDeque<Live>,
    running: Vec<Live>,
    submitted: usize,
    /// The pass that was started ahead of its turn.
    ahead: Option<Pass>,
    /// Memory for the tokens of two passes.
    tokens: [Option<Tensor>; 2],
    /// A pass was taken back: a sequence may have less than its next token needs.
    taken_back: bool,
    preempted: usize,
    pictures: Pictures,
    early: Early,
    prefixes: Prefixes,
    /// Tokens of prompts that did not have to be read.
    reused: usize,
}

impl Scheduler {
    /// A scheduler with a cache as the limits say.
    pub fn new(cx: &mut Ctx, model: Arc<dyn Vlm>, tokenizer: Tokenizer, limits: Limits) -> Result<Self> {
        let limits = Limits {
            tokens: limits.tokens.max(1),
            seqs: limits.seqs.max(1),
            // Far beyond any memory, and far from any overflow.
            kv_tokens: limits.kv_tokens.min(1 << 48),
            memory: limits.memory.min(1 << 48),
            ..limits
        };
        let groups = model.info().kv.0.clone();
        let capacity = capacities(&groups, &limits);
        let kv = KvCache::new(cx, &model.info().kv, &capacity)?;
        let shares = model.info().kv.shares();
        let (waiting, running, ahead, tokens) = Default::default();
        Ok(Self {
            model,
            tokenizer,
            kv,
            groups,
            limits,
            capacity,
            waiting,
            running,
            submitted: 0,
            ahead,
            tokens,
            taken_back: false,
            preempted: 0,
            pictures: Pictures::new(limits.features),
            early: Early::default(),
            prefixes: Prefixes::new(if shares { limits.prefixes } else { 0 }),
            reused: 0,
        })
    }

    /// The cache.
    #[must_use]
    pub fn kv(&self) -> &KvCache {
        &self.kv
    }

    /// How often a running request gave its pages back, so that it was read again.
    #[must_use]
    pub fn preempted(&self) -> usize {
        self.preempted
    }

    /// How it does; the times are the context's.
    #[must_use]
    pub fn load(&self) -> Load {
        let used = |group| self.kv.used_pages(group) - self.kv.kept_pages(group);
        let pages = (0..self.groups.len()).map(|group| (used(group), self.capacity[group]));
        Load {
            waiting: self.waiting.len(),
            running: self.running.len(),
            pages: pages.min_by_key(|(used, all)| all - used).unwrap_or_default(),
            preempted: self.preempted,
            reused_tokens: self.reused,
            reused_pictures: self.pictures.found,
            ..Load::default()
        }
    }

    /// Takes a request, at any time, and gives its number. Errors if it can never run.
    pub fn submit(&mut self, request: Request) -> Result<usize> {
        let info = self.model.info();
        request.check(info, &self.capacity)?;
        let number = self.submitted;
        self.submitted += 1;
        let mut live = Live::new(number, request, &self.tokenizer, info);
        if self.prefixes.is_on() {
            live.chain =
                prefix::chain(&live.prompt, &live.media, live.params.adapter.as_deref(), &live.prompt.tokens);
        }
        self.look_up(&mut live);
        self.met(&live);
        self.waiting.push_back(live);
        Ok(number)
    }

    /// Gives a request the features that are in memory.
    fn look_up(&mut self, live: &mut Live) {
        for (slot, media) in live.features.iter_mut().zip(&live.media) {
            if let (None, Media::Picture(picture)) = (&slot, media) {
                *slot = self.early.get(picture).or_else(|| self.pictures.get(picture));
            }
        }
    }

    /// Looks for features of pictures in a store too, and leaves there what is encoded.
    pub fn set_store(&mut self, store: FeatureStore) {
        self.pictures.set_store(store);
    }

    /// Whether every request is done.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Ends a request now and gives its answer so far; `None` if it has ended before.
    pub fn cancel(&mut self, number: usize) -> Option<Answer> {
        self.end(number).map(|live| live.into_answer(FinishReason::Cancelled))
    }

    /// Takes a request out, with its pages given back.
    fn take(&mut self, number: usize) -> Option<Live> {
        let live = self.take_out(number)?;
        live.seq.into_iter().for_each(|seq| self.kv.close(seq));
        Some(live)
    }

    fn take_out(&mut self, number: usize) -> Option<Live> {
        match self.waiting.iter().position(|live| live.number == number) {
            Some(place) => self.waiting.remove(place),
            None => Some(self.running.remove(self.place(number)?)),
        }
    }

    /// Takes a request out whose pages are as they should be: others may begin with them.
    fn end(&mut self, number: usize) -> Option<Live> {
        let live = self.take_out(number)?;
        let Some(seq) = live.seq else { return Some(live) };
        let settled = live.settled().min(live.prompt.len() + live.answer.len());
        let mut chain = match live.chain.is_empty() || settled <= live.prompt.len() {
            true => live.chain.clone(),
            false => prefix::chain(
                &live.prompt,
                &live.media,
                live.params.adapter.as_deref(),
                &live.tokens(0..settled),
            ),
        };
        // Pages of a block that was not read to its end are of no use.
        chain.truncate(match settled < live.prompt.len() {
            true => prefix::whole(&live.prompt, settled / PAGE),
            false => settled / PAGE,
        });
        match chain.is_empty() || !self.kv.is_whole(seq) {
            true => self.kv.close(seq),
            false => self.prefixes.keep(&mut self.kv, seq, chain),
        }
        Some(live)
    }

    fn place(&self, number: usize) -> Option<usize> {
        self.running.binary_search_by_key(&number, |live| live.number).ok()
    }

    fn fail(&mut self, request: usize, error: Error, events: &mut Vec<Event>) {
        if self.take(request).is_some() {
            events.push(Event::Failed { request, error });
        }
    }

    /// Encodes the pictures that are due and finishes one forward pass. Does nothing when idle.
    ///
    /// Where the device works beside the host, the pass after it is started before the host looks at the tokens of this one:
    /// it takes them from the device.
    pub fn step(&mut self, cx: &mut Ctx) -> Vec<Event> {
        let mut events = Vec::new();
        let chunks = match self.ahead {
            Some(_) => Vec::new(),
            None => self.prepare(cx, &mut events),
        };
        let (start, prepared) = (Instant::now(), cx.host_time());
        let pass = match self.ahead.take() {
            Some(pass) => pass,
            None if chunks.is_empty() => return events,
            None => match self.start(cx, &chunks, None) {
                Ok(pass) => pass,
                Err(error) => {
                    self.isolate(&chunks, error, &mut events);
                    return events;
                }
            },
        };
        self.ahead = self.run_ahead(cx, &pass);
        let Pass { chunks, rows, tokens, looked_at, count, _span, .. } = pass;
        let waited = match tokens {
            Some(fetch) => fetch.wait(),
            None => cx.stream().sync().map(|()| Vec::new()),
        };
        let arrived = |(row, dtype, fetch): LookedAt| fetch.wait().map(|bytes| (row, dtype, bytes));
        let logits: std::result::Result<Vec<_>, _> = looked_at.into_iter().map(arrived).collect();
        let (sampled, logits) = match waited.and_then(|sampled| Ok((sampled, logits?))) {
            Ok(arrived) => arrived,
            Err(error) => {
                if let Some(ahead) = self.ahead.take() {
                    self.undo(&ahead.chunks);
                }
                self.undo(&chunks);
                self.isolate(&chunks, error.into(), &mut events);
                return events;
            }
        };
        let time = start.elapsed();
        let (prompts, answers) = count;
        let share = time.mul_f64(prompts as f64 / (prompts + answers).max(1) as f64);
        cx.timings.add(Phase::Prefill, share);
        cx.timings.add(Phase::Decode, time - share);
        cx.timings.prefill_tokens += prompts;
        cx.timings.decode_tokens += answers;
        if prompts == 0 {
            cx.timings.decode_encode_ms += (cx.host_time() - prepared).as_secs_f64() * 1e3;
        }
        for &(number, _) in &chunks {
            if let Some(place) = self.place(number) {
                self.running[place].alone = false;
                self.running[place].forget_features();
            }
        }
        let ids: Vec<i32> = sampled.as_chunks().0.iter().map(|id| i32::from_le_bytes(*id)).collect();
        let mut first = 0;
        for of_request in rows.chunk_by(|a, b| a == b) {
            let own = first..(first + of_request.len()).min(ids.len());
            first = own.end;
            self.accept_all(cx, of_request[0], own, &ids, &logits, &mut events);
        }
        events
    }

    /// Adds a token to an answer and ends it if that is due.
    fn accept(&mut self, request: usize, id: i32, events: &mut Vec<Event>) {
        // A request that ended meanwhile took part in a pass that had been started before.
        let Some(place) = self.place(request) else { return };
        let live = &mut self.running[place];
        live.coming = live.coming.saturating_sub(1);
        let step = match u32::try_from(id) {
            Ok(token) => live.accept(token, &self.tokenizer, self.model.info().max_positions),
            Err(_) => {
                // Rows of padding read what is there: it must be ids.
                self.tokens = [None, None];
                Err(live.stuck())
            }
        };
        match step {
            Ok(Step { text, thought, ends }) => {
                let logprobs = live.last_logprobs();
                events.push(Event::Text { request, text, thought, logprobs });
                if let Some(reason) = ends
                    && let Some(live) = self.end(request)
                {
                    events.push(Event::Done { request, answer: live.into_answer(reason) });
                }
            }
            Err(error) => self.fail(request, error, events),
        }
    }

    /// The plan of a step in which at most `room` requests begin, once the pages that nobody sees any more are free.
    fn plan(&mut self, room: usize) -> Plan {
        for seq in self.running.iter().filter_map(|live| live.seq) {
            self.kv.trim(seq);
        }
        let room = self.begin_with_others(room.min(self.limits.seqs.saturating_sub(self.running.len())));
        let free = |group| self.kv.free_pages(group) + self.kv.kept_pages(group);
        let free = (0..self.groups.len()).map(free).collect();
        self.running.iter_mut().for_each(|live| live.guess(self.model.info().vocab));
        let running: Vec<Ask<'_>> = self.running.iter().map(Live::ask).collect();
        let waiting: Vec<Ask<'_>> = self.waiting.iter().take(room).map(Live::ask).collect();
        plan(&running, &waiting, Room { groups: &self.groups, free }, &self.limits)
    }

    /// Has the first `room` waiting requests begin with the pages that others have in common with them; how many of them may begin:
    /// one of whose pages another is about to write waits for these.
    fn begin_with_others(&mut self, room: usize) -> usize {
        let room = room.min(self.waiting.len());
        if !self.prefixes.is_on() {
            return room;
        }
        for place in 0..room {
            let live = &self.waiting[place];
            if live.chain.is_empty() {
                continue;
            }
            let own = |pages: usize| prefix::whole(&live.prompt, pages);
            let (mut best, mut coming) = (None, 0);
            let mut most = 0;
            // Those before it are about to begin, or have.
            for other in self.running.iter().chain(self.waiting.range(..place)) {
                let pages = own(prefix::common(&live.chain, &other.chain));
                coming = coming.max(pages);
                let there = own(pages.min(other.settled() / PAGE));
                if there > most {
                    (most, best) = (there, other.seq);
                }
            }
            if let Some((seq, pages)) = self.prefixes.find(&live.chain)
                && own(pages) > most
            {
                (most, best) = (own(pages), Some(seq));
            }
            if coming > most {
                return place;
            }
            if let Some(seq) = best.and_then(|seq| self.kv.share(seq, most * PAGE)) {
                let live = &mut self.waiting[place];
                (live.seq, live.done) = (Some(seq), most * PAGE);
            }
        }
        room
    }

    /// Gives back what requests that do not begin yet would have begun with.
    fn begin_later(&mut self) {
        for live in &mut self.waiting {
            if let Some(seq) = live.seq.take() {
                self.kv.close(seq);
                live.done = 0;
            }
        }
    }

    /// Has kept sequences make room for new tokens, `(place, tokens)`.
    fn make_room(&mut self, places: &[(usize, usize)]) {
        loop {
            let lacks = |(number, group): (usize, &KvGroup)| {
                let of = |live: &Live| live.seq.map(|seq| live.prompt.extent().at(self.kv.len(seq)));
                let more = |&(place, len): &(usize, usize)| {
                    of(&self.running[place]).map_or(0, |there| group.pages_more(there, len))
                };
                places.iter().map(more).sum::<usize>() > self.kv.free_pages(number)
            };
            let lacks = self.prefixes.is_on() && self.groups.iter().enumerate().any(lacks);
            if !lacks || !self.prefixes.forget_one(&mut self.kv) {
                return;
            }
        }
    }

    /// Does what the plan says up to the pass: the numbers of its requests, with their new tokens.
    fn prepare(&mut self, cx: &mut Ctx, events: &mut Vec<Event>) -> Vec<(usize, usize)> {
        let taken_back = std::mem::take(&mut self.taken_back);
        let broken = |live: &&Live| live.seq.is_some_and(|seq| !self.kv.is_whole(seq));
        let broken: Vec<usize> = match taken_back {
            true => self.running.iter().filter(broken).map(|live| live.number).collect(),
            false => Vec::new(),
        };
        broken.into_iter().for_each(|number| self.preempt(number));
        let mut room = usize::MAX;
        let plan = loop {
            let plan = self.plan(room);
            for _ in 0..plan.preempted {
                let youngest = self.running.last().map(|live| live.number);
                youngest.into_iter().for_each(|number| self.preempt(number));
            }
            // Pages that others hold too have not become free, and those that waiting requests would begin with are held.
            let stuck = plan.chunks.is_empty() && room > 0 && !self.running.is_empty();
            if !self.prefixes.is_on() || !(plan.preempted > 0 || stuck) {
                break plan;
            }
            self.begin_later();
            if stuck {
                room = 0;
            }
        };
        for mut live in self.waiting.drain(..plan.admitted) {
            self.reused += live.done;
            live.seq = live.seq.or_else(|| Some(self.kv.open(live.prompt.memory_rows())));
            live.begin();
            self.running.push(live);
        }
        self.begin_later();
        let number = |place: usize| self.running[place].number;
        let mut chunks: Vec<_> = plan.chunks.iter().map(|&(place, len)| (number(place), len)).collect();
        let pictures: Vec<_> = plan.pictures.iter().map(|&(place, media)| (number(place), media)).collect();
        // One that is read again may be older than those that run.
        self.running.sort_by_key(|live| live.number);
        match pictures.is_empty() {
            true => self.encode_expected(cx),
            false => self.encode(cx, &pictures, events),
        }
        for live in &mut self.running {
            let len = chunks.iter().find(|(number, _)| *number == live.number).map_or(0, |(_, len)| *len);
            live.draft.truncate(len.saturating_sub(1));
        }
        // Those whose pictures could not be encoded are gone.
        chunks.retain(|&(number, _)| self.place(number).is_some());
        chunks
    }

    /// Takes a request's pages: it waits again, and what it had is read once more.
    fn preempt(&mut self, number: usize) {
        let Some(mut live) = self.take(number) else { return };
        live.restart();
        self.look_up(&mut live);
        self.preempted += 1;
        let place = self.waiting.partition_point(|other| other.number < number);
        self.waiting.insert(place, live);
    }

    /// Takes back a pass that came to nothing.
    fn undo(&mut self, chunks: &[(usize, usize)]) {
        self.taken_back = true;
        for &(number, len) in chunks {
            let Some(place) = self.place(number) else { continue };
            let live = &mut self.running[place];
            (live.done, live.coming) = (live.done.saturating_sub(len), 0);
            live.draft.clear();
            if let Some(seq) = live.seq {
                self.kv.truncate(seq, live.done);
            }
        }
    }

    /// After a pass that failed: its request fails, or each of its requests gets a pass of its own.
    fn isolate(&mut self, chunks: &[(usize, usize)], error: Error, events: &mut Vec<Event>) {
        match *chunks {
            [(number, _)] => return self.fail(number, error, events),
            // Nothing that is tried again could succeed.
            [(number, _), ..] if error.ends_device() => return self.fail(number, error, events),
            _ => {}
        }
        tracing::debug!(%error, requests = chunks.len(), "a pass failed; its requests go on one by one");
        for live in self.running.iter_mut().chain(&mut self.waiting) {
            live.alone |= chunks.iter().any(|&(number, _)| number == live.number);
        }
    }

    /// Runs the tower for these pictures, each once wherever it is asked for.
    fn encode(&mut self, cx: &mut Ctx, pictures: &[(usize, usize)], events: &mut Vec<Event>) {
        let mut once: Vec<(usize, Arc<Picture>)> = Vec::new();
        for &(number, media) in pictures {
            let Some(place) = self.place(number) else { continue };
            if let Some(Media::Picture(picture)) = self.running[place].media.get(media)
                && !once.iter().any(|(_, other)| other.key() == picture.key())
            {
                once.push((number, picture.clone()));
            }
        }
        once.retain(|(_, picture)| match self.pictures.load(cx, picture) {
            Some(features) => {
                self.pictures.found += self.place_features(picture.key(), &features, events);
                false
            }
            None => true,
        });
        let asks: Vec<&Span> =
            once.iter().filter_map(|(number, _)| Some(self.running[self.place(*number)?].span())).collect();
        let _span = asks.split_first().map(|(first, others)| {
            let span = tracing::info_span!(parent: *first, "encode", pictures = once.len());
            others.iter().for_each(|other| {
                span.follows_from(*other);
            });
            span.entered()
        });
        if once.len() > 1 {
            let all: Vec<&PreparedImage> = once.iter().map(|(_, picture)| &***picture).collect();
            match self.run_tower(cx, &all) {
                Ok(features) => {
                    for ((_, picture), features) in once.iter().zip(features) {
                        self.pictures.save(cx, picture, &features);
                        let placed = self.place_features(picture.key(), &features, events);
                        self.pictures.found += placed.saturating_sub(1);
                    }
                    return;
                }
                Err(error) if error.ends_device() => return self.fail(once[0].0, error, events),
                Err(error) => tracing::debug!(%error, "pictures are encoded one by one"),
            }
        }
        for (number, picture) in once {
            match self.run_tower(cx, &[&**picture]) {
                Ok(features) => {
                    for features in &features {
                        self.pictures.save(cx, &picture, features);
                        let placed = self.place_features(picture.key(), features, events);
                        self.pictures.found += placed.saturating_sub(1);
                    }
                }
                Err(error) => self.fail(number, error, events),
            }
        }
    }

    fn run_tower(&self, cx: &mut Ctx, pictures: &[&PreparedImage]) -> Result<Vec<Features>> {
        let features = cx.scope(|cx| self.model.encode(cx, pictures))?;
        if features.len() != pictures.len() {
            let (expected, found) = (pictures.len(), features.len());
            return Err(Error::Request(format!(
                "features: expected those of {expected} pictures, found {found}"
            )));
        }
        Ok(features)
    }

    /// Gives features to every request that asks about the picture, and says in how many places.
    fn place_features(&mut self, picture: Key, features: &Features, events: &mut Vec<Event>) -> usize {
        let (mut placed, mut failed) = (0, Vec::new());
        for live in self.running.iter_mut().chain(&mut self.waiting) {
            for (number, (media, slot)) in live.media.iter().zip(&mut live.features).enumerate() {
                let Media::Picture(other) = media else { continue };
                if slot.is_some() || live.done >= live.prompt.len() || other.key() != picture {
                    continue;
                }
                match check_rows(number, features, &live.prompt) {
                    Ok(()) => {
                        placed += 1;
                        *slot = Some(features.clone());
                    }
                    Err(error) => failed.push((live.number, error)),
                }
            }
        }
        for (number, error) in failed {
            self.fail(number, error, events);
        }
        placed
    }

    /// Starts a forward pass over the chunks and samples for each request of which nothing is left to read. With `after`, each
    /// request's new token is where that pass left its tokens, in their order. Errors leave everything as it was.
    fn start(&mut self, cx: &mut Ctx, chunks: &[(usize, usize)], after: Option<&Pass>) -> Result<Pass> {
        let mut places = Vec::with_capacity(chunks.len());
        for &(number, len) in chunks {
            places.extend(self.place(number).map(|place| (place, len)));
        }
        self.make_room(&places);
        let tokens: usize = places.iter().map(|&(_, len)| len).sum();
        let span = tracing::debug_span!("pass", requests = places.len(), tokens);
        let rows = places.iter().map(|&(place, _)| 1 + self.running[place].draft.len()).sum();
        let ids = self.token_memory(cx, rows)?;
        let reads =
            |&(place, _): &(usize, usize)| self.running[place].done < self.running[place].prompt.len();
        let phase = if places.iter().any(reads) { Phase::Prefill } else { Phase::Decode };
        let started = cx.during(phase, |cx| cx.scope(|cx| self.forward(cx, &places, after, &ids)));
        let (rows, tokens, looked_at) = match started {
            Ok(started) => started,
            Err(error) => {
                self.taken_back = true;
                for &(place, _) in &places {
                    let live = &self.running[place];
                    live.seq.into_iter().for_each(|seq| self.kv.truncate(seq, live.done));
                }
                return Err(error);
            }
        };
        let mut count = (0, 0);
        for &(place, len) in &places {
            let live = &mut self.running[place];
            match live.done < live.prompt.len() || len > 1 + live.draft.len() {
                true => count.0 += len,
                false => count.1 += 1,
            }
            live.done += len;
        }
        for &number in &rows {
            if let Some(place) = self.place(number) {
                self.running[place].coming += 1;
            }
        }
        let chunks = places.iter().map(|&(place, len)| (self.running[place].number, len)).collect();
        Ok(Pass { chunks, rows, tokens, looked_at, ids, count, _span: span })
    }

    /// Memory for the tokens of a pass: not that of the pass before, which may still be read. It has room for rows of padding.
    fn token_memory(&mut self, cx: &mut Ctx, rows: usize) -> Result<Tensor> {
        self.tokens.swap(0, 1);
        match &self.tokens[0] {
            Some(tensor) if tensor.size(0) >= rows => Ok(tensor.clone()),
            _ => {
                let tensor = cx.alloc_owned(&[rows.next_power_of_two()], ocelli_kernels::DType::I32)?;
                self.tokens[0] = Some(tensor.clone());
                Ok(tensor)
            }
        }
    }

    /// Runs a pass: the requests that get a token, and the tokens on their way.
    fn forward(
        &mut self,
        cx: &mut Ctx,
        places: &[(usize, usize)],
        after: Option<&Pass>,
        ids: &Tensor,
    ) -> Result<Sampled> {
        let lost = || Error::Request("a request in a pass has no place in the KV cache".into());
        let tokens: Vec<_> = places
            .iter()
            .map(|&(place, len)| {
                let live = &self.running[place];
                live.tokens(live.done..live.done + len)
            })
            .collect();
        let mut batch = Batch { ids: after.map(|pass| pass.ids.clone()), ..Batch::default() };
        let mut rows: Vec<(&Live, usize)> = Vec::new();
        for (&(place, len), tokens) in places.iter().zip(&tokens) {
            let live = &self.running[place];
            let last = live.done + len == live.known() + live.draft.len();
            let want = if last { 1 + live.draft.len() } else { 0 };
            rows.extend((0..want).map(|guessed| (live, guessed)));
            batch.chunks.push(Chunk {
                seq: live.seq.ok_or_else(lost)?,
                prompt: &live.prompt,
                features: &live.features,
                tokens,
                want,
            });
        }
        let packed = batch.pack(cx, &mut self.kv, self.model.info().packing())?;
        let mut first = 0;
        let mut adapted = Vec::new();
        for &(place, len) in places {
            if let Some(name) = &self.running[place].params.adapter {
                adapted.push((first..first + len, cx.named_adapter(name)?));
            }
            first += len;
        }
        let logits = cx.adapt_rows(adapted, |cx| self.model.forward(cx, &packed, &self.kv))?;
        if rows.is_empty() {
            return Ok((Vec::new(), None, Vec::new()));
        }
        let out = ids.narrow(0, 0, rows.len())?;
        sample_rows(cx, &logits.narrow(0, 0, rows.len())?, &rows, &out)?;
        let fetch = cx.fetch(&out)?;
        let mut looked_at = Vec::new();
        for (row, _) in rows.iter().enumerate().filter(|(_, (live, _))| live.params.logprobs.is_some()) {
            looked_at.push((row, logits.dtype(), cx.fetch(&logits.narrow(0, row, 1)?)?));
        }
        Ok((rows.iter().map(|(live, _)| live.number).collect(), Some(fetch), looked_at))
    }
}

#[cfg(test)]
mod tests;
