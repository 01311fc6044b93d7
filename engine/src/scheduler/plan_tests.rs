use super::*;
use crate::kv::{Blocks, Keep};
use crate::prompt::Span;

const ALL: KvGroup = KvGroup { layers: 1, heads: 1, head_dim: 1, keep: Keep::All, blocks: Blocks::Whole };
const LIMITS: Limits =
    Limits { tokens: 64, seqs: 8, kv_tokens: 1 << 20, memory: 0, patches: 10, prefixes: 0, features: 0 };

fn text(len: usize) -> Prompt {
    Prompt::text(vec![0; len])
}

/// A request of which `done` of `known` tokens are read.
fn ask(prompt: &Prompt, done: usize, known: usize) -> Ask<'_> {
    Ask { prompt, known, guessed: 0, done, longest: 10_000, media: Vec::new(), alone: false, bound: false }
}

fn planned(running: &[Ask<'_>], waiting: &[Ask<'_>], free: usize) -> Plan {
    plan(running, waiting, Room { groups: &[ALL], free: vec![free] }, &LIMITS)
}

fn chunks(chunks: &[(usize, usize)], admitted: usize) -> Plan {
    Plan { admitted, chunks: chunks.to_vec(), ..Plan::default() }
}

#[test]
fn answers_come_first_then_prompts_within_the_budget() {
    let (short, long) = (text(10), text(4000));
    let running = [ask(&long, 100, 4000), ask(&short, 12, 13), ask(&short, 0, 10), ask(&short, 10, 11)];
    assert_eq!(planned(&running, &[], 100), chunks(&[(1, 1), (3, 1), (0, 62)], 0));
    // What a prompt leaves, the next one takes.
    let running = [ask(&long, 3950, 4000), ask(&short, 12, 13), ask(&short, 0, 10)];
    assert_eq!(planned(&running, &[], 100), chunks(&[(1, 1), (0, 50), (2, 10)], 0));
    // The last token of a prompt stands among the answers, whose attention it shares.
    let running = [ask(&long, 3990, 4000), ask(&short, 9, 10)];
    assert_eq!(planned(&running, &[], 100), chunks(&[(1, 1), (0, 10)], 0));
    // Answers that fill the pass do not stop prompts.
    let running: Vec<Ask<'_>> = (0..64).map(|_| ask(&short, 10, 11)).chain([ask(&long, 0, 4000)]).collect();
    assert_eq!(planned(&running, &[], 1000).chunks.iter().find(|&&(place, _)| place == 64), Some(&(64, 1)));
}

#[test]
fn a_preempted_answer_is_read_as_one_with_its_prompt() {
    let short = text(10);
    assert_eq!(planned(&[ask(&short, 0, 50)], &[], 100), chunks(&[(0, 50)], 0));
    assert_eq!(planned(&[ask(&short, 0, 150)], &[], 100), chunks(&[(0, 64)], 0));
    assert_eq!(planned(&[ask(&short, 64, 150)], &[], 100), chunks(&[(0, 64)], 0));
    assert_eq!(planned(&[ask(&short, 149, 150)], &[], 100), chunks(&[(0, 1)], 0));
}

#[test]
fn blocks_stay_whole() {
    let blocks = Prompt { blocks: vec![10..40, 40..60, 60..200], ..text(210) };
    let short = text(60);
    // The budget ends within a block.
    assert_eq!(planned(&[ask(&blocks, 0, 210)], &[], 100), chunks(&[(0, 60)], 0));
    // Longer than the budget: whole, and the only prompt, with the answers.
    let running = [ask(&short, 60, 61), ask(&blocks, 60, 210), ask(&short, 0, 60)];
    assert_eq!(planned(&running, &[], 100), chunks(&[(0, 1), (1, 140)], 0));
    // Not beside a prompt that was there before.
    let running = [ask(&short, 0, 60), ask(&blocks, 60, 210)];
    assert_eq!(planned(&running, &[], 100), chunks(&[(0, 60)], 0));
    // Not without pages for all of it.
    assert_eq!(planned(&[ask(&short, 0, 60), ask(&blocks, 60, 210)], &[], 12), chunks(&[(0, 60)], 0));
    assert_eq!(planned(&[ask(&blocks, 0, 210)], &[], 3), chunks(&[(0, 40)], 0));
    // A block of one token is part of a prompt's run.
    let one = Prompt { blocks: std::iter::once(0..1).collect(), ..text(1) };
    assert_eq!(planned(&[ask(&one, 0, 1), ask(&short, 60, 61)], &[], 9), chunks(&[(1, 1), (0, 1)], 0));
}

#[test]
fn requests_begin_with_their_prompt_and_a_page_in_every_group() {
    let (short, long) = (text(20), text(320));
    let table: [(usize, usize); 7] = [(2, 0), (3, 1), (5, 1), (6, 2), (26, 2), (27, 3), (40, 3)];
    for (free, admitted) in table {
        let running = [ask(&short, 20, 21)];
        let waiting = [ask(&short, 0, 20), ask(&short, 0, 20), ask(&long, 0, 320)];
        // The answer may want a page too, so that one more must be free.
        assert_eq!(planned(&running, &waiting, free + 1).admitted, admitted, "{free} pages");
    }
    // What the prompts that have begun still need is not given away.
    let running = [ask(&long, 160, 320)];
    assert_eq!(planned(&running, &[ask(&short, 0, 20)], 11 + 2).admitted, 0);
    assert_eq!(planned(&running, &[ask(&short, 0, 20)], 11 + 3).admitted, 1);
    // A request whose answer needs no page more does not wait for one.
    let little = Ask { longest: 32, ..ask(&short, 0, 20) };
    for (free, admitted) in [(1 + 1 + 1, 0), (1 + 1 + 2, 1)] {
        let answer = ask(&long, 320, 321);
        assert_eq!(planned(&[answer], std::slice::from_ref(&little), free).admitted, admitted);
    }
    // No more than may run at once; and who waits keeps the order.
    let running: Vec<Ask<'_>> = (0..6).map(|_| ask(&short, 20, 21)).collect();
    let waiting: Vec<Ask<'_>> = (0..4).map(|_| ask(&short, 0, 20)).collect();
    assert_eq!(planned(&running, &waiting, 1000).admitted, 2);
    assert_eq!(planned(&running, &[ask(&long, 0, 320), ask(&short, 0, 20)], 20).admitted, 0);
    // Where nobody runs, the first begins.
    assert_eq!(planned(&[], &[ask(&long, 0, 320)], 20), chunks(&[(0, 64)], 1));
}

#[test]
fn a_group_with_a_window_lets_more_begin() {
    let window = KvGroup { keep: Keep::Window(32), ..ALL };
    let long = text(4000);
    let waiting = [ask(&long, 0, 4000), ask(&long, 0, 4000)];
    // 4000 tokens and a page of one group, 32 + 64 tokens and two pages of the other.
    for (free, admitted) in [([502, 16], 2), ([501, 16], 1), ([502, 15], 1)] {
        let room = Room { groups: &[ALL, window], free: free.to_vec() };
        assert_eq!(plan(&[], &waiting, room, &LIMITS).admitted, admitted, "{free:?}");
    }
}

/// A memory and a state are asked for once, with the first token; pictures that become memory are encoded before it.
#[test]
fn first_tokens_take_memory_and_a_slot() {
    let groups = [ALL, KvGroup { keep: Keep::Memory, ..ALL }, KvGroup { keep: Keep::State, ..ALL }];
    let sees = Prompt { memory: vec![40], ..text(20) };
    let planned = |running: &[Ask<'_>], waiting: &[Ask<'_>], free: [usize; 3]| {
        plan(running, waiting, Room { groups: &groups, free: free.to_vec() }, &LIMITS)
    };
    let begins = ask(&sees, 0, 20);
    for (free, admitted) in [([9, 6, 2], 2), ([9, 5, 2], 1), ([9, 6, 1], 1)] {
        assert_eq!(planned(&[], &[begins.clone(), begins.clone()], free).admitted, admitted, "{free:?}");
    }
    // Those that have begun ask for no more.
    let answers = ask(&sees, 21, 22);
    assert_eq!(planned(std::slice::from_ref(&answers), &[], [9, 0, 0]), chunks(&[(0, 1)], 0));
    // One that cannot begin takes the youngest's.
    let stuck = planned(&[begins.clone(), answers], &[], [9, 0, 0]);
    assert_eq!(stuck, Plan { preempted: 1, chunks: vec![(0, 20)], ..Plan::default() });
    let dark = Ask { media: vec![4], ..begins };
    let first = planned(&[], std::slice::from_ref(&dark), [9, 9, 9]);
    assert_eq!((first.chunks, first.pictures), (vec![(0, 20)], vec![(0, 0)]));
    let later = planned(&[], &[Ask { media: vec![10], ..dark.clone() }, dark.clone()], [9, 9, 9]);
    assert_eq!((later.chunks, later.pictures), (vec![(0, 20)], vec![(0, 0)]));
    // What is in the cache is not encoded again.
    let later = Ask { media: vec![4], done: 10, ..dark };
    assert_eq!(planned(&[later], &[], [9, 9, 9]), chunks(&[(0, 10)], 0));
}

#[test]
fn the_youngest_gives_its_pages_back() {
    let short = text(16);
    let at_a_border = || ask(&short, 16, 17);
    // Two need a page, one is free: the third goes, and its page serves the second.
    let running = [at_a_border(), at_a_border(), ask(&short, 16, 17)];
    let plan = planned(&running, &[ask(&short, 0, 1)], 1);
    assert_eq!(plan, Plan { preempted: 1, chunks: vec![(0, 1), (1, 1)], ..Plan::default() });
    // The youngest itself, if it is the one that lacks a page.
    let plan = planned(&running[..2], &[], 1);
    assert_eq!(plan, Plan { preempted: 1, chunks: vec![(0, 1)], ..Plan::default() });
    // Nobody goes while pages suffice.
    assert_eq!(planned(&running, &[], 3), chunks(&[(0, 1), (1, 1), (2, 1)], 0));
    // An old prompt that cannot get on takes from younger answers, a young one waits.
    let long = text(100);
    let plan = planned(&[ask(&long, 64, 100), ask(&short, 20, 21)], &[], 0);
    assert_eq!(plan, Plan { preempted: 1, chunks: vec![(0, 32)], ..Plan::default() });
    assert_eq!(planned(&[ask(&short, 20, 21), ask(&long, 64, 100)], &[], 0), chunks(&[(0, 1)], 0));
}

/// A prompt of 50 tokens with two pictures, at tokens 4..14 and 20..30.
fn with_pictures() -> Prompt {
    let span = |media, at| Span { media, rows: 0..10, at };
    Prompt { spans: vec![span(0, 4), span(1, 20)], ..text(50) }
}

#[test]
fn pictures_are_encoded_ahead_within_their_budget() {
    let prompt = with_pictures();
    let seen = |done, media: [usize; 2]| Ask { media: media.to_vec(), ..ask(&prompt, done, 50) };
    // (done, patches of both pictures) -> (tokens of the chunk, pictures)
    let table: [(usize, [usize; 2], usize, &[usize]); 8] = [
        (0, [4, 6], 50, &[0, 1]),
        (0, [4, 7], 20, &[0]),
        (0, [99, 1], 20, &[0]),
        (4, [4, 6], 46, &[0, 1]),
        (4, [0, 16], 46, &[1]),
        (20, [4, 6], 30, &[1]),
        (4, [0, 0], 46, &[]),
        (30, [4, 6], 20, &[]),
    ];
    for (done, media, len, pictures) in table {
        let plan = planned(&[seen(done, media)], &[], 100);
        let chunk: Vec<_> = (len > 0).then_some((0, len)).into_iter().collect();
        assert_eq!(plan.chunks, chunk, "{done} {media:?}");
        assert_eq!(plan.pictures, pictures.iter().map(|&media| (0, media)).collect::<Vec<_>>());
    }
    // Running answers get their token, and pictures of several requests go together.
    let short = text(9);
    let plan = planned(&[ask(&short, 9, 10), seen(4, [3, 3])], &[seen(0, [3, 3])], 100);
    assert_eq!((plan.chunks, plan.admitted), (vec![(0, 1), (1, 46), (2, 17)], 1));
    assert_eq!(plan.pictures, [(1, 0), (1, 1), (2, 0)]);
    // The first picture too many ends it: a later one does not overtake.
    let plan = planned(&[seen(0, [8, 3]), seen(0, [1, 1])], &[], 100);
    assert_eq!((plan.chunks, plan.pictures), (vec![(0, 20), (1, 4)], vec![(0, 0)]));
    // A picture inside a block holds all of the block back.
    let block = Prompt { blocks: std::iter::once(2..40).collect(), ..prompt.clone() };
    let waits = Ask { media: vec![0, 5], ..ask(&block, 2, 50) };
    assert_eq!(planned(std::slice::from_ref(&waits), &[], 100).chunks, [(0, 48)]);
    assert_eq!(planned(&[seen(0, [10, 0]), waits], &[], 100).chunks, [(0, 50)]);
}

#[test]
fn after_a_failed_pass_requests_go_one_by_one() {
    let (short, long) = (text(10), text(100));
    fn alone(ask: Ask<'_>) -> Ask<'_> {
        Ask { alone: true, ..ask }
    }
    let running = [ask(&short, 10, 11), alone(ask(&long, 0, 100)), alone(ask(&short, 10, 11))];
    assert_eq!(planned(&running, &[ask(&short, 0, 10)], 100), chunks(&[(1, 64)], 0));
    // Its pictures are encoded for it.
    let prompt = with_pictures();
    let waits = Ask { media: vec![1, 1], ..alone(ask(&prompt, 4, 50)) };
    let plan = planned(&[ask(&short, 10, 11), waits], &[alone(ask(&short, 0, 10))], 100);
    assert_eq!((plan.chunks, plan.pictures), (vec![(1, 46)], vec![(1, 0), (1, 1)]));
    assert_eq!(plan.admitted, 0);
}

/// Whatever the pool and the lengths, the oldest request gets on in each step, and nothing takes pages that are not there.
#[test]
fn the_oldest_always_gets_on() {
    let groups = [ALL, KvGroup { keep: Keep::Window(40), ..ALL }];
    let mut state = 7u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..3000 {
        let prompts: Vec<Prompt> = (0..1 + random(6))
            .map(|_| {
                let len = 20 + random(200);
                let start = random(len);
                let end = start + random(len - start);
                Prompt { blocks: (start < end).then_some(start..end).into_iter().collect(), ..text(len) }
            })
            .collect();
        let asks: Vec<Ask<'_>> = prompts
            .iter()
            .map(|prompt| {
                let (len, block) = (prompt.len(), prompt.blocks.first().cloned().unwrap_or(0..0));
                let done = random(len + 30);
                let done = if block.contains(&done) { block.start } else { done };
                let known = if done < len { len } else { done + 1 };
                Ask { longest: len + 40, ..ask(prompt, done, known) }
            })
            .collect();
        let most = |group: &KvGroup| {
            let held = |ask: &Ask<'_>| {
                group.most_pages(ask.there().at(ask.longest), ask.prompt.longest_block().max(1))
            };
            asks.iter().map(held).max().unwrap_or(0)
        };
        let held = |group: &KvGroup| asks.iter().map(|ask| group.pages_at(ask.there())).sum::<usize>();
        let free: Vec<usize> = groups.iter().map(|group| most(group).saturating_sub(held(group))).collect();
        let plan = plan(&asks, &[], Room { groups: &groups, free: free.clone() }, &LIMITS);
        assert!(plan.preempted < asks.len());
        // The pages are those of a pool that holds each request alone, or more where more are held already.
        if asks.len() == 1 || groups.iter().all(|group| held(group) <= most(group)) {
            assert!(plan.chunks.iter().any(|&(place, _)| place == 0), "{asks:?} {free:?}");
        }
        let kept = asks.len() - plan.preempted;
        for (group, &free) in groups.iter().zip(&free) {
            let back: usize = asks[kept..].iter().map(|ask| group.pages_at(ask.there())).sum();
            let taken: usize =
                plan.chunks.iter().map(|&(place, len)| group.pages_more(asks[place].there(), len)).sum();
            assert!(taken <= free + back, "{taken} of {free} and {back}");
        }
        assert!(plan.chunks.iter().all(|&(place, _)| place < kept));
    }
}
