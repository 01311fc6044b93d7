mod early;
mod fake;
mod guesses;
mod shared;
mod thoughts;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::kv::{Blocks, Extent, Keep, KvLayout, PAGE};
use crate::prompt::{Prompt, Reach, Span};
use crate::sample::SamplingParams;
use fake::{FATAL, Fake, GIVEN, HUGE, NAN, POISON, ROWS, beside, context, memory_rows, picture, tokenizer};

const ALL: KvGroup = KvGroup { layers: 0, heads: 1, head_dim: 1, keep: Keep::All, blocks: Blocks::Whole };

fn both() -> KvLayout {
    KvLayout(vec![ALL, KvGroup { keep: Keep::Window(48), ..ALL }])
}

/// Every kind of group.
fn every() -> KvLayout {
    let kinds = [Keep::State, Keep::All, Keep::Memory, Keep::Window(48)];
    KvLayout(kinds.map(|keep| KvGroup { keep, ..ALL }).to_vec())
}

fn params(max_tokens: usize) -> SamplingParams {
    SamplingParams { max_tokens, ignore_eos: true, ..SamplingParams::default() }
}

/// Text of `len` tokens that depend on `seed`.
fn text(seed: usize, len: usize) -> Prompt {
    Prompt::text((0..len).map(|i| ((seed * 31 + i * i * 7 + i) % GIVEN) as u32).collect())
}

fn asks(seed: usize, len: usize, max_tokens: usize) -> Request {
    Request { prompt: text(seed, len), media: Vec::new(), params: params(max_tokens) }
}

/// Numbers that look random.
fn random(state: &mut u64, below: usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize % below
}

/// Ragged: prompts of 1 to 3000 tokens, with pictures and tokens that see each other, greedy and sampled.
fn ragged(count: usize, remembers: bool) -> Vec<Request> {
    let mut state = 1;
    let shared = picture(7, 3);
    (0..count)
        .map(|seed| {
            let len = if seed % 4 == 3 { 1 + random(&mut state, 3000) } else { 1 + random(&mut state, 200) };
            let mut prompt = text(seed, len);
            let pictures = (len / 40).min(seed % 4);
            let at = |media: usize| media * 40 + 5 + seed % 20;
            prompt.spans = (0..pictures).map(|media| Span { media, rows: 0..ROWS, at: at(media) }).collect();
            if seed % 3 == 0 {
                prompt.blocks = prompt.spans.iter().map(|span| span.at..span.at + ROWS + 2).collect();
            } else if seed % 7 == 1 && len > 30 {
                prompt.blocks = std::iter::once(3..len - 10).collect();
            }
            let media = |media| match media {
                0 => Media::Picture(shared.clone()),
                _ => Media::Picture(picture(seed, 1 + media)),
            };
            if remembers {
                prompt.memory =
                    (0..pictures).map(|media| memory_rows(if media == 0 { 7 } else { seed })).collect();
                if seed % 2 == 1 {
                    let before = |media: usize| prompt.memory.iter().take(media).sum::<usize>();
                    let rows = |media| before(media)..before(media + 1);
                    let reach = |media| Reach { from: at(media), rows: rows(media), early: false };
                    prompt.reaches = (0..pictures).map(reach).collect();
                    // Tokens before the first picture that attend to everything, beyond what those after it see.
                    let first = prompt.reaches.first().map_or(0, |reach| reach.from);
                    if seed % 4 == 1 && first > 0 {
                        let early = Reach { from: 0, rows: 0..before(pictures), early: true };
                        prompt.reaches.insert(0, early);
                    }
                }
            }
            let temperature = if seed % 5 == 4 { 0.8 } else { 0.0 };
            let repetition_penalty = if seed % 9 == 8 { 1.2 } else { 1.0 };
            let max_tokens = 1 + random(&mut state, 250);
            let params =
                SamplingParams { temperature, repetition_penalty, seed: seed as u64, ..params(max_tokens) };
            Request { prompt, media: (0..pictures).map(media).collect(), params }
        })
        .collect()
}

fn alone(cx: &mut Ctx, kv: &KvLayout, requests: &[Request]) -> Vec<Answer> {
    let model: Arc<dyn Vlm> = Fake::new(kv.clone());
    let tokenizer = tokenizer();
    let one = |request: &Request| {
        let go_on = |_: usize, _: Piece<'_>| ControlFlow::Continue(());
        generate(cx, &model, &tokenizer, vec![request.clone()], go_on).unwrap().remove(0)
    };
    requests.iter().map(one).collect()
}

/// Runs to the end: answers, texts as they came, and failures.
fn run(scheduler: &mut Scheduler, cx: &mut Ctx, count: usize) -> Vec<(String, Result<Answer, String>)> {
    let mut all: Vec<_> = (0..count).map(|_| (String::new(), Err("nothing".to_owned()))).collect();
    while !scheduler.is_idle() {
        for event in scheduler.step(cx) {
            match event {
                Event::Text { request, text, .. } => all[request].0 += &text,
                Event::Done { request, answer } => all[request].1 = Ok(answer),
                Event::Failed { request, error } => all[request].1 = Err(error.to_string()),
            }
        }
    }
    all
}

fn scheduler(cx: &mut Ctx, kv: &KvLayout, limits: Limits) -> (Arc<Fake>, Scheduler) {
    let model = Fake::new(kv.clone());
    let scheduler = Scheduler::new(cx, model.clone(), tokenizer(), limits).unwrap();
    (model, scheduler)
}

fn same(all: &[(String, Result<Answer, String>)], expected: &[Answer]) {
    for (number, ((text, answer), expected)) in all.iter().zip(expected).enumerate() {
        let answer = answer.as_ref().unwrap_or_else(|error| panic!("request {number}: {error}"));
        assert_eq!(answer.token_ids, expected.token_ids, "request {number}");
        assert_eq!((&answer.text, text), (&expected.text, text), "request {number}");
        assert_eq!(*text, expected.text, "request {number}: the pieces");
    }
}

#[test]
fn together_as_alone_with_too_few_pages() {
    crowd(&both(), 3600);
}

/// Beside pages, a memory of pictures and a state that cannot be cut back.
#[test]
fn together_as_alone_with_memory_and_state() {
    crowd(&every(), 3600);
}

/// More than the pool holds, cancelled here and there: the others answer as alone, and nothing is left behind.
fn crowd(kv: &KvLayout, kv_tokens: usize) {
    let mut cx = context();
    let requests = ragged(64, kv.0.len() > 2);
    let expected = alone(&mut cx, kv, &requests);
    let limits = Limits { tokens: 256, seqs: 24, kv_tokens, memory: 300, patches: 8, ..Limits::default() };
    let (model, mut scheduler) = scheduler(&mut cx, kv, limits);
    let mut all: Vec<_> = requests.iter().map(|_| (String::new(), None)).collect();
    let (mut state, mut most, mut preempted, mut cancelled) = (5, 0, 0, 0);
    let mut requests = requests.into_iter();
    while requests.len() > 0 || !scheduler.is_idle() {
        // Some come while others run.
        for request in requests.by_ref().take(random(&mut state, 4)) {
            scheduler.submit(request).unwrap();
        }
        let before: Vec<usize> = scheduler.running.iter().map(|live| live.number).collect();
        for event in scheduler.step(&mut cx) {
            match event {
                Event::Text { request, text, .. } => all[request].0 += &text,
                Event::Done { request, answer } => all[request].1 = Some(answer),
                Event::Failed { error, .. } => panic!("{error}"),
            }
        }
        most = most.max(scheduler.running.len());
        preempted +=
            before.iter().filter(|&&n| scheduler.waiting.iter().any(|live| live.number == n)).count();
        if random(&mut state, 40) == 0
            && let Some(live) = scheduler.running.get(random(&mut state, 9))
        {
            let number = live.number;
            let answer = scheduler.cancel(number).unwrap();
            assert_eq!(answer.finish_reason, FinishReason::Cancelled);
            all[number].1 = Some(answer);
            cancelled += 1;
        }
    }
    assert!(most > 6 && preempted > 3 && cancelled > 1, "{most} {preempted} {cancelled}");
    for (number, ((text, answer), expected)) in all.iter().zip(&expected).enumerate() {
        let answer = answer.as_ref().unwrap();
        let ids = match answer.finish_reason {
            FinishReason::Cancelled => &expected.token_ids[..answer.token_ids.len()],
            _ => &expected.token_ids,
        };
        assert_eq!((&answer.token_ids[..], text), (ids, &answer.text), "request {number}");
    }
    assert!(scheduler.kv.is_empty() && (0..kv.0.len()).all(|group| scheduler.kv.used_pages(group) == 0));
    assert!(model.encoded.lock().unwrap().iter().any(|&pictures| pictures > 1));
}

/// The device beside the host, whose steps are padded to few sizes, takes tokens from its own memory.
#[test]
fn running_ahead_with_rows_of_padding() {
    let requests: Vec<Request> = (0..11).map(|seed| asks(seed, 3 + seed, 20 + seed % 3)).collect();
    let expected = alone(&mut context(), &both(), &requests);
    let (mut cx, fails) = beside();
    let (_, mut scheduler) = scheduler(&mut cx, &both(), Limits::default());
    for request in &requests {
        scheduler.submit(request.clone()).unwrap();
    }
    let mut all: Vec<_> = (0..11).map(|_| (String::new(), Err("nothing".to_owned()))).collect();
    let (mut ahead, mut steps) = (0, 0);
    while !scheduler.is_idle() {
        steps += 1;
        // A pass that comes to nothing is taken back with the one after it, and done again.
        fails.store(steps == 5 || steps == 30, Ordering::Relaxed);
        for event in scheduler.step(&mut cx) {
            match event {
                Event::Text { request, text, .. } => all[request].0 += &text,
                Event::Done { request, answer } => all[request].1 = Ok(answer),
                Event::Failed { request, error } => all[request].1 = Err(error.to_string()),
            }
        }
        ahead += usize::from(scheduler.ahead.as_ref().is_some_and(|pass| pass.rows.len() == 11));
    }
    same(&all, &expected);
    assert!(ahead > 10, "{ahead} of {steps} steps");
}

/// Few answers that are bound to the token before them miss every other pass, and hold back nobody.
#[test]
fn bound_answers_do_not_hold_back_free_ones() {
    let grammars = crate::sample::Grammars::new(&tokenizer()).unwrap();
    let form = grammars.compile(&crate::sample::Form::Regex("(?s:.{0,60})".into())).unwrap();
    let mut requests: Vec<Request> = (0..26).map(|seed| asks(seed, 3 + seed, 60)).collect();
    requests[7].params.repetition_penalty = 1.3;
    requests[20].params.grammar = Some(form);
    requests[20].params.ignore_eos = false;
    let expected = alone(&mut context(), &both(), &requests);
    let (mut cx, fails) = beside();
    let (_, mut scheduler) = scheduler(&mut cx, &both(), Limits::default());
    for request in &requests {
        scheduler.submit(request.clone()).unwrap();
    }
    let mut all: Vec<_> = requests.iter().map(|_| (String::new(), Err("nothing".to_owned()))).collect();
    let (mut ahead, mut joined, mut steps) = (0, 0, 0);
    while !scheduler.is_idle() {
        steps += 1;
        // After a pass that is lost each request goes alone once.
        fails.store(steps == 9 || steps == 70, Ordering::Relaxed);
        for event in scheduler.step(&mut cx) {
            match event {
                Event::Text { request, text, .. } => all[request].0 += &text,
                Event::Done { request, answer } => all[request].1 = Ok(answer),
                Event::Failed { request, error } => all[request].1 = Err(error.to_string()),
            }
        }
        if let Some(pass) = &scheduler.ahead {
            let bound = pass.rows.iter().filter(|&&number| number == 7 || number == 20).count();
            (ahead, joined) = (ahead + 1, joined + usize::from(bound > 0));
        }
    }
    same(&all, &expected);
    assert!(ahead > 40 && joined > 15, "{ahead} and {joined} of {steps} steps");
}

/// A pass that fails under way, with keys behind the window given back meanwhile: the request is read again.
#[test]
fn a_lost_pass_is_done_again() {
    let group = |keep| KvGroup { keep, ..ALL };
    for kv in [vec![group(Keep::Window(20))], vec![group(Keep::All), group(Keep::State)]] {
        a_lost_pass(&KvLayout(kv));
    }
}

fn a_lost_pass(kv: &KvLayout) {
    let requests: Vec<Request> = (0..3).map(|seed| asks(seed, 30, 90)).collect();
    let expected = alone(&mut context(), kv, &requests);
    for lost in 4..60 {
        let (mut cx, fails) = beside();
        let (_, mut scheduler) = scheduler(&mut cx, kv, Limits::default());
        for request in &requests {
            scheduler.submit(request.clone()).unwrap();
        }
        let mut begun = Vec::new();
        for _ in 0..lost {
            begun.extend(scheduler.step(&mut cx));
        }
        fails.store(true, Ordering::Relaxed);
        let mut all = run(&mut scheduler, &mut cx, 3);
        for event in begun.into_iter().rev() {
            if let Event::Text { request, text, .. } = event {
                all[request].0.insert_str(0, &text);
            }
        }
        same(&all, &expected);
    }
}

#[test]
fn answers_get_a_token_while_a_long_prompt_is_read() {
    let mut cx = context();
    let (model, mut scheduler) = scheduler(&mut cx, &both(), Limits { tokens: 128, ..Limits::default() });
    let answering: Vec<usize> = (0..3).map(|seed| scheduler.submit(asks(seed, 9, 500)).unwrap()).collect();
    scheduler.step(&mut cx);
    let mut long = asks(5, 4000, 3);
    long.prompt.spans = (0..20).map(|media| Span { media, rows: 0..ROWS, at: 100 * media }).collect();
    long.media = (0..20).map(|number| Media::Picture(picture(number, 4000))).collect();
    let long = scheduler.submit(long).unwrap();
    for step in 0.. {
        let told: Vec<usize> = scheduler.step(&mut cx).iter().map(Event::request).collect();
        assert!(answering.iter().all(|number| told.contains(number)), "step {step}: {told:?}");
        if told.contains(&long) {
            assert!(step > 30, "{step} steps");
            break;
        }
    }
    assert_eq!(*model.encoded.lock().unwrap(), [1; 20], "larger than the budget, each goes alone");
}

/// The window's pages suffice for any length, and what lies behind goes back.
#[test]
fn a_long_answer_holds_its_window_and_no_more() {
    let mut cx = context();
    let group = KvGroup { keep: Keep::Window(512), ..ALL };
    let limits = Limits { tokens: 64, seqs: 1, kv_tokens: 17_000, ..Limits::default() };
    let (_, mut scheduler) = scheduler(&mut cx, &KvLayout(vec![group]), limits);
    assert_eq!(scheduler.capacity, [group.most_pages(Extent { tokens: 17_000, memory: 0 }, 64)]);
    scheduler.submit(asks(1, 700, 16_000)).unwrap();
    let (mut most, mut tokens) = (0, 0);
    while !scheduler.is_idle() {
        tokens += scheduler.step(&mut cx).iter().filter(|event| matches!(event, Event::Text { .. })).count();
        most = most.max(scheduler.kv.used_pages(0));
    }
    assert_eq!(tokens, 16_000);
    assert!(most <= (512 + 64) / PAGE + 2, "{most} pages");
}

#[test]
fn who_fails_fails_alone() {
    let mut cx = context();
    let mut requests: Vec<Request> = (0..6).map(|seed| asks(seed, 20 + seed, 12)).collect();
    let expected = alone(&mut cx, &both(), &requests);
    let with_picture = |number, patches| Request {
        prompt: Prompt { spans: vec![Span { media: 0, rows: 0..ROWS, at: 2 }], ..text(3, 20) },
        media: vec![Media::Picture(picture(number, patches))],
        params: params(9),
    };
    requests.push(with_picture(99, 2));
    requests.push(with_picture(5, 2));
    let mut few = with_picture(6, 2);
    few.prompt.spans[0].rows = 4..4 + ROWS;
    requests.push(few);
    let mut nan = asks(8, 15, 9);
    nan.prompt.tokens[14] = NAN;
    requests.push(nan);
    // It poisons its second pass.
    let mut poison = asks(9, 200, 9);
    poison.prompt.tokens[180] = POISON;
    requests.push(poison);
    for overlaps in [false, true] {
        let mut cx = if overlaps { beside().0 } else { context() };
        let (_, mut scheduler) = scheduler(&mut cx, &both(), Limits { tokens: 300, ..Limits::default() });
        for request in &requests {
            scheduler.submit(request.clone()).unwrap();
        }
        let all = run(&mut scheduler, &mut cx, requests.len());
        same(&all[..6], &expected);
        let failure = |number: usize| all[number].1.as_ref().unwrap_err().as_str();
        assert_eq!(failure(6), "picture 99");
        assert_eq!(all[7].1.as_ref().unwrap().token_ids.len(), 9);
        assert_eq!(failure(8), "picture 1: expected 14 rows of features, found 10");
        assert!(failure(9).contains("expected finite numbers"), "{}", failure(9));
        assert_eq!(failure(10), format!("token {POISON}"));
        assert!(scheduler.kv.is_empty() && scheduler.kv.used_pages(0) == 0);
    }
    let model: Arc<dyn Vlm> = Fake::new(both());
    let refused = generate(&mut cx, &model, &tokenizer(), requests, |_, _| ControlFlow::Continue(()));
    assert_eq!(refused.unwrap_err().to_string(), "picture 99");
}

/// A memory that the pool cannot hold, or that is not what the prompt says, is refused; one that it holds alone waits its turn.
#[test]
fn memory_is_asked_for_ahead() {
    let mut cx = context();
    let with = |number: usize, rows: usize| Request {
        prompt: Prompt {
            spans: vec![Span { media: 0, rows: 0..ROWS, at: 2 }],
            memory: vec![rows],
            ..text(number, 15)
        },
        media: vec![Media::Picture(picture(number, 1))],
        params: params(20),
    };
    let kv = KvLayout(every().0[1..3].to_vec());
    let requests: Vec<Request> = (0..6).map(|number| with(30 + number, 33 + number)).collect();
    let expected = alone(&mut cx, &kv, &requests);
    let (_, mut scheduler) = scheduler(&mut cx, &kv, Limits { memory: 5 * PAGE, ..Limits::default() });
    for request in requests {
        scheduler.submit(request).unwrap();
    }
    let refused = scheduler.submit(with(1, 81)).unwrap_err().to_string();
    assert!(refused.contains("81 rows of memory") && refused.contains("its limit is 80"), "{refused}");
    let wrong = scheduler.submit(with(2, 6)).unwrap();
    let all = run(&mut scheduler, &mut cx, 7);
    same(&all[..6], &expected);
    assert_eq!(all[wrong].1.as_ref().unwrap_err(), "picture 1: expected 6 rows of memory, found 5");
    assert_eq!(scheduler.kv.used_pages(1), 0);
}

#[test]
fn one_picture_of_many_requests_is_encoded_once() {
    let mut cx = context();
    let (model, mut scheduler) = scheduler(&mut cx, &both(), Limits { patches: 3, ..Limits::default() });
    let shared = picture(1, 2);
    for seed in 0..20 {
        let span = Span { media: 0, rows: 0..ROWS, at: 3 };
        let prompt = Prompt { spans: vec![span], ..text(seed, 30) };
        let media = vec![Media::Picture(shared.clone())];
        scheduler.submit(Request { prompt, media, params: params(4) }).unwrap();
    }
    run(&mut scheduler, &mut cx, 20);
    assert_eq!(*model.encoded.lock().unwrap(), [1]);
}

#[test]
fn no_limit_of_tokens_is_too_large() {
    let mut cx = context();
    for max_tokens in [usize::MAX, usize::MAX - 7, usize::MAX / 2] {
        let requests = [asks(1, 19_990, max_tokens)];
        let limits = Limits::of(Fake::new(both()).info(), &requests);
        assert_eq!(limits.kv_tokens, 20_000);
        let answers = alone(&mut cx, &KvLayout(vec![KvGroup { keep: Keep::Window(8), ..ALL }]), &requests);
        assert_eq!((answers[0].token_ids.len(), answers[0].finish_reason), (10, FinishReason::Length));
    }
    let many: Vec<Request> = (0..10_000).map(|seed| asks(seed, 10, 500)).collect();
    let limits = Limits::of(Fake::new(both()).info(), &many);
    assert_eq!((limits.kv_tokens, limits.seqs), (32_768, 256));
    let (_, mut scheduler) = scheduler(&mut cx, &both(), Limits { kv_tokens: 320, ..Limits::default() });
    let refused = scheduler.submit(asks(0, 10, usize::MAX)).unwrap_err().to_string();
    assert!(refused.contains("20000 tokens") && refused.contains("its limit is 320"), "{refused}");
    scheduler.submit(asks(0, 10, 310)).unwrap();
}

#[test]
fn threads_share_a_worker() {
    let kv = both();
    let requests: Vec<Request> = (0..24).map(|seed| asks(seed, 5 + 9 * seed, 30)).collect();
    let expected = alone(&mut context(), &kv, &requests);
    let worker = Worker::spawn(move || {
        let mut cx = context();
        let limits = Limits { tokens: 64, seqs: 9, kv_tokens: 700, ..Limits::default() };
        let scheduler = Scheduler::new(&mut cx, Fake::new(both()), tokenizer(), limits)?;
        Ok((cx, scheduler))
    })
    .unwrap();
    std::thread::scope(|scope| {
        for (requests, expected) in requests.chunks(6).zip(expected.chunks(6)) {
            let client = worker.client();
            scope.spawn(move || {
                let streams: Vec<_> =
                    requests.iter().map(|request| client.submit(request.clone()).unwrap()).collect();
                // Nobody waits for this one.
                drop(client.submit(asks(1, 100, 400)).unwrap());
                let mut refused = client.submit(asks(1, 100, 20_000)).unwrap();
                let cancelled = client.submit(asks(2, 10, 600)).unwrap();
                cancelled.cancel();
                for (stream, expected) in streams.into_iter().zip(expected) {
                    let (mut text, mut done) = (String::new(), None);
                    for event in stream {
                        match event {
                            Event::Text { text: piece, .. } => text += &piece,
                            Event::Done { answer, .. } => done = Some(answer),
                            Event::Failed { error, .. } => panic!("{error}"),
                        }
                    }
                    assert_eq!(done.unwrap().token_ids, expected.token_ids);
                    assert_eq!(text, expected.text);
                }
                assert!(matches!(refused.next(), Some(Event::Failed { .. })) && refused.next().is_none());
                let last = cancelled.last().unwrap();
                assert!(
                    matches!(&last, Event::Done { answer, .. } if answer.token_ids.len() < 600),
                    "{last:?}"
                );
            });
        }
    });
    // Other work that goes on until an answer has ended: both get on.
    let (mut times, ended) = (0, Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let ((sender, times_needed), seen) = (std::sync::mpsc::channel(), ended.clone());
    let work = move |_: &mut Ctx| {
        times += 1;
        if !seen.load(Ordering::Relaxed) {
            return ControlFlow::Continue(());
        }
        let _ = sender.send(times);
        ControlFlow::Break(())
    };
    worker.client().run(work).unwrap();
    assert!(matches!(worker.submit(asks(3, 10, 60)).unwrap().last(), Some(Event::Done { .. })));
    ended.store(true, Ordering::Relaxed);
    assert!(times_needed.recv().unwrap() >= 60);
    let left = worker.submit(asks(3, 10, 600)).unwrap();
    let client = worker.client();
    assert!(!client.has_ended());
    worker.stop().unwrap();
    assert!(client.has_ended());
    assert!(
        matches!(left.last(), Some(Event::Done { answer, .. }) if answer.finish_reason == FinishReason::Cancelled)
    );
    let late = client.submit(asks(3, 10, 600)).map(drop).unwrap_err().to_string();
    assert!(late.contains("it was stopped"), "{late}");
    let refused = Worker::spawn(|| Err(Error::Request("no model".into()))).map(drop).unwrap_err();
    assert_eq!(refused.to_string(), "no model");
    let panicked = Worker::spawn(|| panic!("on purpose")).map(drop).unwrap_err().to_string();
    assert!(panicked.contains("panicked"), "{panicked}");
}

/// A request that finds no memory leaves the others as they are.
#[test]
fn out_of_memory_is_one_requests_own() {
    let mut cx = context();
    let kv = both();
    let mut requests: Vec<Request> = (0..4).map(|seed| asks(seed, 20 + seed, 12)).collect();
    let expected = alone(&mut cx, &kv, &requests);
    requests[2].prompt.tokens[9] = HUGE;
    let (_, mut scheduler) = scheduler(&mut cx, &kv, Limits::default());
    for request in &requests {
        scheduler.submit(request.clone()).unwrap();
    }
    let all = run(&mut scheduler, &mut cx, requests.len());
    for (number, expected) in expected.iter().enumerate() {
        match (&all[number].1, number) {
            (Err(error), 2) => assert!(error.contains("out of memory: 1099511627776 bytes"), "{error}"),
            (answer, _) => assert_eq!(answer.as_ref().unwrap().token_ids, expected.token_ids),
        }
    }
    assert!(scheduler.kv.is_empty() && scheduler.kv.used_pages(0) == 0);
}

/// A device that is lost ends every request with the reason, those that run and those that come, each at once.
#[test]
fn a_lost_device_ends_every_request() {
    let worker = Worker::spawn(move || {
        let mut cx = context();
        let limits = Limits { seqs: 3, kv_tokens: 20_000, ..Limits::default() };
        let scheduler = Scheduler::new(&mut cx, Fake::new(both()), tokenizer(), limits)?;
        Ok((cx, scheduler))
    })
    .unwrap();
    let client = worker.client();
    assert!(client.usable().is_ok());
    let mut fatal = asks(9, 20, 9);
    fatal.prompt.tokens[11] = FATAL;
    // Two that run, and two that wait or come too late.
    let running = [0, 1].map(|seed| worker.submit(asks(seed, 10, 5000)).unwrap());
    let fatal = worker.submit(fatal).unwrap();
    let late = [2, 3].map(|seed| worker.submit(asks(seed, 10, 5000)));
    let failed = |stream: Stream| match stream.last() {
        Some(Event::Failed { error, .. }) => error,
        other => panic!("{other:?}"),
    };
    let first = failed(fatal);
    assert!(first.ends_device() && first.to_string().contains("an illegal address"), "{first}");
    for error in
        running.map(failed).into_iter().chain(late.map(|late| late.map_or_else(|error| error, failed)))
    {
        assert!(error.ends_device() && error.to_string().contains("an illegal address"), "{error}");
    }
    let text = client.usable().unwrap_err().to_string();
    assert!(text.starts_with("the device cannot be used any more: a planted device: device lost"), "{text}");
    assert_eq!(client.submit(asks(1, 10, 5)).map(drop).unwrap_err().to_string(), text);
    let hint = first.hint().expect("what to do about it");
    assert!(hint.contains("started anew"), "{hint}");
    assert!(!client.has_ended(), "it goes on to say so");
    let load = client.load();
    assert_eq!((load.running, load.waiting), (0, 0), "{load:?}");
    worker.stop().unwrap();
}
