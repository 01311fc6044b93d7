//! Requests answered together give the tokens that each gives alone.

use std::ops::ControlFlow;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::Rgb8Image;
use ocelli_engine::prompt::Span;
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{Answer, Event, FinishReason, Limits, Piece, Request, Scheduler, generate};
use ocelli_engine::text::Message;
use ocelli_engine::{Ctx, Pipeline, Precision, Prompt};
use ocelli_kernels::{Backend, Device, DeviceOptions};

use super::golden;

fn demo() -> (Pipeline, Ctx) {
    demo_on(&*ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU"))
}

fn demo_on(device: &dyn Device) -> (Pipeline, Ctx) {
    let mut cx = Ctx::new(device, Precision::default()).expect("a stream");
    let model = ocelli_models::load(&ocelli_models::demo::FILES, &mut cx).expect("the demo model");
    (Pipeline::new(&ocelli_models::demo::FILES, model, 2).expect("its tokenizer"), cx)
}

/// A picture of two colours that depends on `seed`.
fn picture(seed: usize) -> Rgb8Image {
    let (width, height) = (40 + 13 * seed % 90, 30 + 29 * seed % 120);
    let colour = |x: usize, y: usize| match (x * 3 + seed * 7) / 40 + (y + seed) / 30 {
        n if n % 2 == 0 => [200, 30 + (seed * 40 % 200) as u8, 20],
        _ => [20, 60, (seed * 90 % 255) as u8],
    };
    let data = (0..width * height).flat_map(|i| colour(i % width, i / width)).collect();
    Rgb8Image::from_raw(width, height, data).expect("as many bytes as pixels")
}

/// Ragged: none to two pictures, prompts and answers of different lengths, greedy and sampled.
fn requests(pipeline: &Pipeline, count: usize) -> Vec<Request> {
    (0..count)
        .map(|i| {
            let pictures: Vec<Rgb8Image> = (0..i % 3).map(|p| picture(i + p)).collect();
            let question = "How many red things are there? ".repeat(1 + i % 4);
            let params = SamplingParams {
                max_tokens: 3 + 5 * i % 23,
                ignore_eos: true,
                temperature: if i % 5 == 4 { 0.8 } else { 0.0 },
                top_k: if i % 2 == 0 { 12 } else { 0 },
                repetition_penalty: if i % 7 == 3 { 1.2 } else { 1.0 },
                seed: i as u64,
                ..SamplingParams::default()
            };
            let messages = [Message::user(pictures.len(), question)];
            pipeline.request(&messages, &pictures, params).expect("a request")
        })
        .collect()
}

fn ids(answers: &[Answer]) -> Vec<Vec<u32>> {
    answers.iter().map(|answer| answer.token_ids.clone()).collect()
}

#[test]
fn together_as_apart() {
    let (pipeline, mut cx) = demo();
    for count in [1, 3, 17] {
        let requests = requests(&pipeline, count);
        let go_on = |_: usize, _: Piece<'_>| ControlFlow::Continue(());
        let model = &pipeline.model;
        let together =
            generate(&mut cx, model, &pipeline.tokenizer, requests.clone(), go_on).expect("answers");
        let mut apart = Vec::new();
        for request in requests {
            apart.extend(
                generate(&mut cx, model, &pipeline.tokenizer, vec![request], go_on).expect("an answer"),
            );
        }
        assert_eq!(ids(&together), ids(&apart), "{count} requests");
    }
}

/// A cache too small for all requests makes some of them wait; long prompts go through in pieces.
#[test]
fn scarce_cache_and_long_prompts() {
    let (pipeline, mut cx) = demo();
    let mut all = requests(&pipeline, 9);
    let words = pipeline.tokenizer.encode("a small green ring and ").expect("tokens");
    let long: Vec<u32> = words.iter().copied().cycle().take(1500).collect();
    let params = SamplingParams { max_tokens: 6, ignore_eos: true, ..SamplingParams::default() };
    all.push(Request { prompt: Prompt::text(long), media: Vec::new(), params });
    let mut apart = Vec::new();
    for request in all.clone() {
        let go_on = |_: usize, _: Piece<'_>| ControlFlow::Continue(());
        apart.extend(
            generate(&mut cx, &pipeline.model, &pipeline.tokenizer, vec![request], go_on).expect("an answer"),
        );
    }

    let tokenizer = pipeline.tokenizer.clone();
    let limits = Limits { kv_tokens: 1600, ..Limits::default() };
    let mut scheduler =
        Scheduler::new(&mut cx, pipeline.model.clone(), tokenizer, limits).expect("a scheduler");
    let numbers: Vec<usize> =
        all.into_iter().map(|request| scheduler.submit(request).expect("room")).collect();
    let mut done = vec![None; numbers.len()];
    while !scheduler.is_idle() {
        for event in scheduler.step(&mut cx) {
            match event {
                Event::Text { .. } => {}
                Event::Done { request, answer } => done[request] = Some(answer.token_ids),
                Event::Failed { error, .. } => panic!("{error}"),
            }
        }
    }
    let done: Vec<Vec<u32>> = done.into_iter().map(|ids| ids.expect("an answer")).collect();
    assert_eq!(done, ids(&apart));
}

/// Requests that come while others run, prompts of up to `longest` tokens, a cache that does not hold all of them, some cancelled:
/// each gives the tokens that it gives alone, and the cancelled ones the first of them.
pub(crate) fn crowd(device: &dyn Device, count: usize, longest: usize) {
    let (pipeline, mut cx) = demo_on(device);
    crowd_of(&pipeline, &mut cx, count, longest, 0);
}

/// The same with any model, and answers that are so many tokens `longer`; how many requests were pre-empted.
fn crowd_of(pipeline: &Pipeline, cx: &mut Ctx, count: usize, longest: usize, longer: usize) -> usize {
    let mut all = requests(pipeline, count);
    all.iter_mut().for_each(|request| request.params.max_tokens += longer);
    let words = pipeline.tokenizer.encode("a small green ring and ").expect("tokens");
    for (number, request) in all.iter_mut().enumerate().skip(3).step_by(8) {
        let len = 1 + longest * (number % 17 + 1) / 18;
        request.prompt = Prompt::text(words.iter().copied().cycle().take(len).collect());
        request.media = Vec::new();
    }
    crowd_through(pipeline, cx, all)
}

/// These requests, together as apart; how many were pre-empted.
fn crowd_through(pipeline: &Pipeline, cx: &mut Ctx, all: Vec<Request>) -> usize {
    let count = all.len();
    let mut apart = Vec::new();
    for request in all.clone() {
        let go_on = |_: usize, _: Piece<'_>| ControlFlow::Continue(());
        apart.extend(
            generate(cx, &pipeline.model, &pipeline.tokenizer, vec![request], go_on).expect("an answer"),
        );
    }
    let need = all.iter().map(|request| request.kv_tokens(2048)).max().unwrap_or(0);
    let limits = Limits { tokens: 192, seqs: 20, kv_tokens: need + 64, patches: 600, ..Limits::default() };
    let (model, tokenizer) = (pipeline.model.clone(), pipeline.tokenizer.clone());
    let mut scheduler = Scheduler::new(cx, model, tokenizer, limits).expect("a scheduler");
    let (mut waiting, mut step, mut cancelled) = (all.into_iter(), 0, 0);
    let mut answers: Vec<Option<Answer>> = vec![None; count];
    // Text of answers, and of thoughts before them.
    let mut texts = vec![[const { String::new() }; 2]; count];
    while waiting.len() > 0 || !scheduler.is_idle() {
        step += 1;
        for request in waiting.by_ref().take(step % 3) {
            scheduler.submit(request).expect("room");
        }
        for event in scheduler.step(cx) {
            match event {
                Event::Text { request, text, thought, .. } => texts[request][usize::from(thought)] += &text,
                Event::Done { request, answer } => answers[request] = Some(answer),
                Event::Failed { error, .. } => panic!("{error}"),
            }
        }
        let victim = step * 7 % count;
        if step % 5 == 0
            && victim % 4 == 1
            && cancelled < count / 6
            && let Some(answer) = scheduler.cancel(victim)
        {
            answers[victim] = Some(answer);
            cancelled += 1;
        }
    }
    assert!(cancelled > 0, "nothing was cancelled in {step} steps");
    for (number, (answer, apart)) in answers.into_iter().zip(apart).enumerate() {
        let answer = answer.expect("an answer");
        let expected = match answer.finish_reason {
            FinishReason::Cancelled => &apart.token_ids[..answer.token_ids.len()],
            _ => &apart.token_ids,
        };
        assert_eq!(answer.token_ids, expected, "request {number}");
        let [text, thoughts] = &texts[number];
        assert_eq!(&answer.text, text, "request {number}");
        assert_eq!(answer.reasoning.as_deref().unwrap_or_default(), thoughts.trim_end(), "request {number}");
    }
    scheduler.preempted()
}

#[test]
fn a_crowd_with_too_few_pages() {
    crowd(&*ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU"), 64, 1500);
}

/// Layers with a state, in slots that sequences leave to each other; those that were pre-empted begin theirs again.
fn crowd_with_states(family: &str) {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let mut cx = Ctx::new(&*device, Precision::default()).expect("a stream");
    let files = ModelFiles::dir(golden(family));
    let model = ocelli_models::load(&files, &mut cx).expect("the model");
    let pipeline = Pipeline::new(&files, model, 2).expect("its tokenizer");
    let preempted = crowd_of(&pipeline, &mut cx, 64, 300, 40);
    assert!(preempted > 0, "nothing was pre-empted");
}

#[test]
fn a_crowd_with_convolutions() {
    crowd_with_states("lfm2_vl");
}

#[test]
fn a_crowd_with_delta_rules() {
    crowd_with_states("qwen3_5");
}

#[test]
fn a_crowd_with_delta_rules_and_experts() {
    crowd_with_states("qwen3_5_moe");
}

/// Chunks of positions that end within prompts and within answers.
#[test]
fn a_crowd_with_chunks() {
    crowd_with_states("llama4");
}

/// Answers that attend to a memory beside their tokens: the rows of a picture, or what an encoder makes of a question about it.
fn crowd_with_memory(family: &str) {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let mut cx = Ctx::new(&*device, Precision::default()).expect("a stream");
    let files = ModelFiles::dir(golden(family));
    let model = ocelli_models::load(&files, &mut cx).expect("the model");
    let pipeline = Pipeline::new(&files, model, 2).expect("its tokenizer");
    let request = |i: usize| {
        let params =
            SamplingParams { max_tokens: 20 + 5 * i % 29, ignore_eos: true, ..SamplingParams::default() };
        let messages = [Message::user(1, "What is in this image? ".repeat(1 + i % 4))];
        pipeline.request(&messages, &[picture(i)], params).expect("a request")
    };
    let all: Vec<Request> = (0..48).map(request).collect();
    assert!(all.iter().all(|request| request.prompt.memory_rows() > 0));
    let preempted = crowd_through(&pipeline, &mut cx, all);
    assert!(preempted > 0, "nothing was pre-empted");
}

#[test]
fn a_crowd_with_pictures_for_memory() {
    crowd_with_memory("blip");
}

#[test]
fn a_crowd_with_encoded_questions() {
    crowd_with_memory("blip_vqa");
}

#[test]
fn a_crowd_with_encoded_pictures_and_tasks() {
    crowd_with_memory("florence2");
}

/// Tiles that some layers alone attend to.
#[test]
fn a_crowd_with_crossed_layers() {
    crowd_with_memory("mllama");
}

/// Gemma 3's pictures, whose tokens see each other, in passes that are shorter than a picture: what one pass for all gives.
#[test]
fn a_block_longer_than_its_chunk_is_not_cut() {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let mut cx = Ctx::new(&*device, Precision::default()).expect("a stream");
    let files = ModelFiles::dir(golden("gemma3"));
    let model = ocelli_models::load(&files, &mut cx).expect("the model");
    let pipeline = Pipeline::new(&files, model, 2).expect("its tokenizer");
    let pictures = [picture(1), picture(5)];
    let params = SamplingParams { max_tokens: 24, ignore_eos: true, ..SamplingParams::default() };
    let messages = [Message::user(pictures.len(), "How many red things are there?".to_owned())];
    let request = pipeline.request(&messages, &pictures, params).expect("a request");
    let block = request.prompt.longest_block();
    assert!(block > 7 && request.prompt.blocks.len() >= 2, "{:?}", request.prompt.blocks);
    let mut answers = Vec::new();
    for tokens in [1, 7, block - 1, block + 1, 4096] {
        let (model, tokenizer) = (pipeline.model.clone(), pipeline.tokenizer.clone());
        let limits = Limits { tokens, ..Limits::default() };
        let mut scheduler = Scheduler::new(&mut cx, model, tokenizer, limits).expect("a scheduler");
        scheduler.submit(request.clone()).expect("room");
        let (mut passes, mut answer) = (0, None);
        while !scheduler.is_idle() {
            passes += 1;
            for event in scheduler.step(&mut cx) {
                match event {
                    Event::Text { .. } => {}
                    Event::Done { answer: done, .. } => answer = Some(done.token_ids),
                    Event::Failed { error, .. } => panic!("{error}"),
                }
            }
        }
        assert_eq!(passes > 24, tokens < 4096, "{passes} passes of {tokens} tokens");
        answers.push(answer.expect("an answer"));
    }
    assert!(answers.iter().all(|answer| answer == &answers[4]), "{answers:?}");
}

#[test]
fn requests_that_cannot_run_are_refused() {
    let (pipeline, mut cx) = demo();
    let limits = Limits { kv_tokens: 64, ..Limits::default() };
    let (model, tokenizer) = (pipeline.model.clone(), pipeline.tokenizer.clone());
    let mut scheduler = Scheduler::new(&mut cx, model, tokenizer, limits).expect("a scheduler");
    let mut refuse = |prompt: Prompt, params: SamplingParams, why: &str| {
        let refused = scheduler.submit(Request { prompt, media: Vec::new(), params });
        let text = refused.expect_err("a refusal").to_string();
        assert!(text.contains(why), "{text}");
    };
    let params = SamplingParams { max_tokens: 8, ..SamplingParams::default() };
    refuse(Prompt::default(), params.clone(), "expected 1 to 2047 tokens, found 0");
    refuse(Prompt::text(vec![5; 2048]), params.clone(), "found 2048");
    let span = Span { media: 0, rows: 0..1, at: 1 };
    refuse(
        Prompt { spans: vec![span], ..Prompt::text(vec![5; 2]) },
        params.clone(),
        "features of picture 1 of 0",
    );
    refuse(Prompt::text(vec![1 << 30]), params.clone(), "token id: expected below");
    refuse(Prompt::text(vec![5; 60]), params.clone(), "do not fit");
    refuse(Prompt::text(vec![5; 6]), SamplingParams { top_p: 0.0, ..params }, "top_p");
}

/// A tensor used after its scope is an error, not a wrong answer.
#[test]
fn stale_tensors_are_refused() {
    let (_, mut cx) = demo();
    let inner = cx.scope(|cx| cx.upload(&[2], &[1.0f32, 2.0])).expect("a tensor");
    let after = cx.upload(&[2], &[3.0f32, 4.0]).expect("a tensor");
    assert!(cx.download(&inner).expect_err("stale").to_string().contains("scope had ended"));
    assert_eq!(cx.download(&after).expect("values"), [3.0, 4.0]);
}
