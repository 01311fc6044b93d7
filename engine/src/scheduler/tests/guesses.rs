use super::*;

/// Texts as they came, and answers or failures.
type All = Vec<(String, Result<Answer, String>)>;

/// Answers of a model with habits, and the scheduler that gave them.
fn answers(cx: &mut Ctx, kv: &KvLayout, requests: &[Request], limits: Limits) -> (All, Arc<Fake>, Scheduler) {
    let (model, mut scheduler) = scheduler(cx, kv, limits);
    model.habits.store(true, Ordering::Relaxed);
    for request in requests {
        scheduler.submit(request.clone()).unwrap();
    }
    let all = run(&mut scheduler, cx, requests.len());
    (all, model, scheduler)
}

fn guessing(requests: &[Request], most: impl Fn(usize) -> usize) -> Vec<Request> {
    let mut requests = requests.to_vec();
    requests.iter_mut().enumerate().for_each(|(number, request)| request.params.speculate = most(number));
    requests
}

fn tokens(all: &[(String, Result<Answer, String>)]) -> Vec<Answer> {
    all.iter().map(|(_, answer)| answer.clone().unwrap()).collect()
}

/// With guesses and without, with windows, memories, pictures, sampling and too few pages, kept beginnings, and a device that
/// works beside the host.
#[test]
fn answers_are_those_without_guesses() {
    let few = Limits { tokens: 256, seqs: 24, kv_tokens: 3600, memory: 300, patches: 8, ..Limits::default() };
    let memory = KvLayout(every().0[1..].to_vec());
    for (kv, limits) in [
        (both(), few),
        (memory, few),
        (KvLayout(vec![ALL]), few.remembering()),
        (KvLayout(vec![KvGroup { keep: Keep::Chunk(40), ..ALL }]), few),
    ] {
        let requests = ragged(40, kv.0.iter().any(|group| group.keep == Keep::Memory));
        let expected = tokens(&answers(&mut context(), &kv, &requests, Limits::default()).0);
        for mut cx in [context(), beside().0] {
            let (all, _, scheduler) = answers(&mut cx, &kv, &guessing(&requests, |n| n % 6 * 2), limits);
            same(&all, &expected);
            assert!((0..kv.0.len()).all(|g| scheduler.kv.used_pages(g) == scheduler.kv.kept_pages(g)));
            let (guessed, accepted) = (cx.timings.guessed_tokens, cx.timings.accepted_tokens);
            assert!(accepted > 100 && guessed > accepted + 100, "{accepted} of {guessed}");
            // Each answer's first token comes from its prompt.
            let all: usize = expected.iter().map(|answer| answer.token_ids.len() - 1).sum();
            assert!(cx.timings.decode_tokens >= all - scheduler.preempted() - 40, "{all}");
        }
    }
}

#[test]
fn right_guesses_take_no_pass() {
    let request = asks(3, 40, 200);
    let (mut cx, kv) = (context(), both());
    let (plain, model, _) = answers(&mut cx, &kv, std::slice::from_ref(&request), Limits::default());
    assert_eq!(model.passes.load(Ordering::Relaxed), 200);
    assert_eq!(cx.timings.guessed_tokens, 0);
    let (guessed, model, _) = answers(&mut cx, &kv, &guessing(&[request], |_| 4), Limits::default());
    same(&guessed, &tokens(&plain));
    let passes = model.passes.load(Ordering::Relaxed);
    assert_eq!(passes + cx.timings.accepted_tokens, 200);
    assert!(passes < 180, "{passes}");
}

/// A pass that is lost takes its guesses with it.
#[test]
fn a_lost_pass_with_guesses_is_done_again() {
    let requests = guessing(&[asks(1, 30, 90), asks(2, 30, 90)], |_| 5);
    let kv = KvLayout(vec![KvGroup { keep: Keep::Window(20), ..ALL }]);
    let expected = tokens(&answers(&mut context(), &kv, &requests, Limits::default()).0);
    for lost in 4..40 {
        let (mut cx, fails) = beside();
        let (model, mut scheduler) = scheduler(&mut cx, &kv, Limits::default());
        model.habits.store(true, Ordering::Relaxed);
        for request in &requests {
            scheduler.submit(request.clone()).unwrap();
        }
        let mut done = vec![None, None];
        for step in 0.. {
            fails.store(step == lost, Ordering::Relaxed);
            for event in scheduler.step(&mut cx) {
                if let Event::Done { request, answer } = event {
                    done[request] = Some(answer.token_ids);
                }
            }
            if scheduler.is_idle() {
                break;
            }
        }
        let expected: Vec<_> = expected.iter().map(|answer| Some(answer.token_ids.clone())).collect();
        assert_eq!(done, expected, "{lost}");
    }
}

#[test]
fn a_state_cannot_be_taken_back() {
    let (_, mut scheduler) = scheduler(&mut context(), &every(), Limits::default());
    let [request] = &guessing(&[asks(1, 5, 9)], |_| 1)[..] else { unreachable!() };
    let refused = scheduler.submit(request.clone()).unwrap_err().to_string();
    assert!(refused.contains("speculate") && refused.contains("state"), "{refused}");
    let mut far = request.clone();
    far.params.speculate = 65;
    let refused = scheduler.submit(far).unwrap_err().to_string();
    assert!(refused.contains("0 to 64, found 65"), "{refused}");
}
