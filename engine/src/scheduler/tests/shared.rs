//! Prompts that begin likewise, and pictures that were seen before.

use super::*;

/// Pages, a memory and a window, behind which nothing can be shared any more: what can be shared of prompts that are not much longer.
fn shareable() -> KvLayout {
    let kinds = [Keep::All, Keep::Memory, Keep::Window(400)];
    KvLayout(kinds.map(|keep| KvGroup { keep, ..ALL }).to_vec())
}

fn serving(limits: Limits) -> Limits {
    Limits { prefixes: 16, features: 1 << 20, ..limits }
}

/// One of few beginnings, some with a picture in them, and a tail of its own.
fn families(count: usize) -> Vec<Request> {
    let mut state = 3;
    (0..count)
        .map(|seed| {
            let family = seed % 5;
            let mut prompt = text(family, 100 + 150 * family);
            let pictures = family % 3;
            prompt.spans =
                (0..pictures).map(|media| Span { media, rows: 0..ROWS, at: 20 + 40 * media }).collect();
            if family == 1 {
                prompt.blocks = prompt.spans.iter().map(|span| span.at..span.at + ROWS).collect();
            }
            // Another picture now and then.
            let number = |media: usize| 10 * family + media + usize::from(seed % 11 == 10);
            prompt.memory = (0..pictures).map(|media| memory_rows(number(media))).collect();
            prompt.append((0..random(&mut state, 60)).map(|i| ((seed * 13 + i) % GIVEN) as u32));
            let media = (0..pictures).map(|media| Media::Picture(picture(number(media), 1))).collect();
            Request { prompt, media, params: params(1 + random(&mut state, 90)) }
        })
        .collect()
}

#[test]
fn together_as_alone_with_shared_pages() {
    let mut cx = context();
    let requests = families(90);
    let mut preempted = 0;
    for kv in [KvLayout(vec![ALL]), both(), shareable()] {
        let requests: Vec<Request> = requests
            .iter()
            .map(|request| match kv.0.len() {
                3 => request.clone(),
                _ => {
                    Request { prompt: Prompt { memory: vec![], ..request.prompt.clone() }, ..request.clone() }
                }
            })
            .collect();
        let expected = alone(&mut cx, &kv, &requests);
        // Room for few, and for many.
        for kv_tokens in [1500, 60_000] {
            let limits = serving(Limits {
                tokens: 128,
                seqs: 12,
                kv_tokens,
                memory: 300,
                patches: 8,
                ..Limits::default()
            });
            let (_, mut scheduler) = scheduler(&mut cx, &kv, limits);
            let (mut all, mut left, mut state): (Vec<_>, _, _) = (Vec::new(), requests.iter(), 9);
            while left.len() > 0 || !scheduler.is_idle() {
                for request in left.by_ref().take(random(&mut state, 3)) {
                    scheduler.submit(request.clone()).unwrap();
                    all.push((String::new(), Err("nothing".to_owned())));
                }
                for event in scheduler.step(&mut cx) {
                    match event {
                        Event::Text { request, text, .. } => all[request].0 += &text,
                        Event::Done { request, answer } => all[request].1 = Ok(answer),
                        Event::Failed { request, error } => all[request].1 = Err(error.to_string()),
                    }
                }
            }
            same(&all, &expected);
            let load = scheduler.load();
            // A window of 48 tokens has moved on before others come.
            assert!(
                load.reused_tokens > if kv_tokens > 2000 { 2000 } else { 300 } || kv == both(),
                "{load:?}"
            );
            preempted += load.preempted;
            assert_eq!(load.pages.0, 0, "{load:?}");
            // What is kept goes when it is asked to, and nothing else is left.
            while scheduler.prefixes.forget_one(&mut scheduler.kv) {}
            assert!(
                scheduler.kv.is_empty() && (0..kv.0.len()).all(|group| scheduler.kv.used_pages(group) == 0)
            );
        }
    }
    assert!(preempted > 0, "pages ran out");
}

/// Fifty at once, and fifty more when they are done.
#[test]
fn a_shared_prompt_is_read_once() {
    let requests: Vec<Request> = (0..100)
        .map(|seed| {
            let mut request = asks(1, 2000, 5);
            request.prompt.append((0..7).map(|i| ((seed + i) % GIVEN) as u32));
            request
        })
        .collect();
    let expected = alone(&mut context(), &both(), &requests);
    let mut cx = context();
    let (_, mut scheduler) = scheduler(&mut cx, &both(), serving(Limits::default()));
    let mut all = Vec::new();
    for half in requests.chunks(50) {
        for request in half {
            scheduler.submit(request.clone()).unwrap();
        }
        all.extend(run(&mut scheduler, &mut cx, 100).into_iter().skip(all.len()).take(50));
    }
    same(&all, &expected);
    assert_eq!(cx.timings.prefill_tokens, 2000 + 100 * 7);
    assert_eq!(scheduler.load().reused_tokens, 99 * 2000);
}

/// The next turn of a conversation begins with the last one and its answer.
#[test]
fn a_conversation_goes_on() {
    let mut cx = context();
    let (_, mut scheduler) = scheduler(&mut cx, &both(), serving(Limits::default()));
    let mut request = asks(2, 40, 60);
    for turn in 0..4 {
        let expected = alone(&mut context(), &both(), std::slice::from_ref(&request));
        let number = scheduler.submit(request.clone()).unwrap();
        let before = cx.timings.prefill_tokens;
        let all = run(&mut scheduler, &mut cx, number + 1);
        same(&all[number..], &expected);
        let read = cx.timings.prefill_tokens - before;
        assert!(turn == 0 || read <= 9 + 2 * PAGE, "turn {turn}: {read} tokens");
        request.prompt.append(expected[0].token_ids.iter().copied().chain(3..12));
    }
}

#[test]
fn a_picture_is_encoded_once() {
    let asked = |number: usize, seed: usize| Request {
        prompt: Prompt { spans: vec![Span { media: 0, rows: 0..ROWS, at: 2 }], ..text(seed, 20) },
        media: vec![Media::Picture(picture(number, 1))],
        params: params(4),
    };
    let encoded = |model: &Fake| model.encoded.lock().unwrap().iter().sum::<usize>();
    let mut cx = context();
    // Room for the features of two pictures.
    let bytes = 2 * 4 * ROWS as u64;
    let (model, mut scheduler) = scheduler(&mut cx, &both(), Limits { features: bytes, ..Limits::default() });
    for (numbers, expected) in
        [([1, 1, 1], 1), ([1, 2, 1], 2), ([2, 3, 3], 3), ([1, 1, 3], 4), ([3, 1, 1], 4)]
    {
        for (seed, number) in numbers.into_iter().enumerate() {
            let request = asked(number, seed);
            let expected = alone(&mut context(), &both(), std::slice::from_ref(&request));
            let number = scheduler.submit(request).unwrap();
            same(&run(&mut scheduler, &mut cx, number + 1)[number..], &expected);
        }
        assert_eq!(encoded(&model), expected, "{numbers:?}");
    }
    assert_eq!(scheduler.load().reused_pictures, 15 - 4);
}

/// What another process left is used, unless it is damaged.
#[test]
fn features_on_disk() {
    let dir = std::env::temp_dir().join(format!("ocelli-features-{}", std::process::id()));
    let (mut files, mut paths) = (Vec::new(), Vec::new());
    for run_number in 0..4 {
        let mut cx = context();
        let (model, mut scheduler) = scheduler(&mut cx, &shareable(), Limits::default());
        let store = crate::store::FeatureStore::open(&dir, &fake::files(), cx.precision(), "cpu").unwrap();
        scheduler.set_store(store);
        let request = families(2).remove(1);
        let expected = alone(&mut context(), &shareable(), std::slice::from_ref(&request));
        scheduler.submit(request).unwrap();
        same(&run(&mut scheduler, &mut cx, 1), &expected);
        assert_eq!(model.encoded.lock().unwrap().len(), usize::from(run_number % 2 == 0), "run {run_number}");
        paths = std::fs::read_dir(&dir)
            .unwrap()
            .flat_map(|of_model| std::fs::read_dir(of_model.unwrap().path()).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(paths.len(), 1, "one picture, and nothing half written: {paths:?}");
        let bytes = std::fs::read(&paths[0]).unwrap();
        files.push(bytes.clone());
        if run_number == 1 {
            let mut damaged = bytes;
            *damaged.last_mut().unwrap() ^= 1;
            std::fs::write(&paths[0], damaged).unwrap();
        }
    }
    assert_eq!(files[0], files[3], "made again as it was");
    assert!(paths[0].to_str().unwrap().ends_with(".safetensors"));
    std::fs::remove_dir_all(dir).unwrap();
}
