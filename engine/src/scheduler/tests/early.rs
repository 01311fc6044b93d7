//! The tower runs for pictures of a request while others of it are prepared: told by who waits for whom, not by time.

use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::fake::files;
use super::*;
use crate::image::{PreparedImage, Rgb8Image};
use crate::pipeline::Pipeline;
use crate::text::{Content, Message, Part, Tokenizer};
use crate::video::{Video, VideoProcessor};
use crate::vlm::{Loaded, Model, Processor};

/// Waits until the tower has run so often; false if it does not.
fn has_run(model: &Fake, times: usize) -> bool {
    let start = Instant::now();
    while model.encoded.lock().unwrap().len() < times {
        if start.elapsed() > Duration::from_secs(60) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// A request about these pictures.
fn about(pictures: &[Arc<Picture>]) -> Request {
    let mut prompt = text(5, 40 * pictures.len() + 9);
    prompt.spans =
        (0..pictures.len()).map(|media| Span { media, rows: 0..ROWS, at: 40 * media + 3 }).collect();
    Request { prompt, media: pictures.iter().cloned().map(Media::Picture).collect(), params: params(30) }
}

#[test]
fn expected_pictures_are_encoded_before_their_request() {
    let mut cx = context();
    let pictures = [picture(1, 4), picture(2, 4), picture(3, 4)];
    let expected = alone(&mut cx, &both(), &[about(&pictures)]);
    let (model, mut scheduler) = scheduler(&mut cx, &both(), Limits::default());
    scheduler.expect(&pictures[0]);
    scheduler.expect(&pictures[0]);
    assert!(scheduler.is_idle() && scheduler.expects());
    assert!(scheduler.step(&mut cx).is_empty());
    assert!(!scheduler.expects(), "the same picture is encoded once");
    scheduler.expect(&pictures[1]);
    scheduler.submit(about(&pictures)).unwrap();
    let answers = run(&mut scheduler, &mut cx, 1);
    assert_eq!(answers[0].1.as_ref().unwrap().token_ids, expected[0].token_ids);
    // The first alone, the others with their request.
    assert_eq!(*model.encoded.lock().unwrap(), [1, 2]);
    assert!(!scheduler.expects());
}

#[test]
fn pictures_that_nobody_holds_are_not_encoded() {
    let mut cx = context();
    let (model, mut scheduler) = scheduler(&mut cx, &both(), Limits::default());
    let gone = picture(1, 4);
    scheduler.expect(&gone);
    drop(gone);
    assert!(!scheduler.expects());
    assert!(scheduler.step(&mut cx).is_empty() && model.encoded.lock().unwrap().is_empty());
}

#[test]
fn what_cannot_be_encoded_fails_with_its_request() {
    let mut cx = context();
    let (model, mut scheduler) = scheduler(&mut cx, &both(), Limits::default());
    let pictures = [picture(99, 4), picture(2, 4)];
    pictures.iter().for_each(|picture| scheduler.expect(picture));
    assert!(scheduler.step(&mut cx).is_empty() && !scheduler.expects());
    scheduler.submit(about(&pictures)).unwrap();
    scheduler.submit(about(&pictures[1..])).unwrap();
    let answers = run(&mut scheduler, &mut cx, 2);
    assert!(answers[0].1.as_ref().unwrap_err().contains("picture 99"));
    assert!(answers[1].1.is_ok());
    assert_eq!(*model.encoded.lock().unwrap(), [1]);
}

/// Answers that run, also ahead of the host, make way for the tower between two steps.
#[test]
fn expected_pictures_are_encoded_between_steps_of_answers() {
    for mut cx in [context(), beside().0] {
        let (model, mut scheduler) = scheduler(&mut cx, &both(), Limits::default());
        scheduler.submit(asks(3, 20, 60)).unwrap();
        for _ in 0..8 {
            assert!(!scheduler.step(&mut cx).is_empty());
        }
        let late = picture(4, 4);
        scheduler.expect(&late);
        let mut steps = 0;
        while scheduler.expects() {
            scheduler.step(&mut cx);
            steps += 1;
        }
        assert!(steps <= 2 && !scheduler.is_idle(), "{steps} steps");
        assert_eq!(*model.encoded.lock().unwrap(), [1]);
        let expected = alone(&mut cx, &both(), &[asks(3, 20, 60)]);
        let answers = run(&mut scheduler, &mut cx, 1);
        assert_eq!(answers[0].1.as_ref().unwrap().token_ids, expected[0].token_ids);
    }
}

/// Prepares the first picture of a request, and others once the tower has run for one.
struct Waits {
    model: Arc<Fake>,
    /// Numbers of pictures in the order in which they were prepared.
    prepared: Arc<Mutex<Vec<usize>>>,
}

impl Processor for Waits {
    fn set(&mut self, _: &str, _: &str) -> Result<()> {
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, _: usize) -> Result<PreparedImage> {
        let number = image.width();
        if number > 1 && !has_run(&self.model, 1) {
            return Err(Error::Request(format!("picture {number}: the tower has not begun")));
        }
        self.prepared.lock().unwrap().push(number);
        let prepared = picture(number, 2);
        Ok(PreparedImage { tiles: prepared.tiles.clone(), assembly: None, ..PreparedImage::clone(&prepared) })
    }

    fn image_mark(&self) -> &str {
        "<image>"
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], _: &Tokenizer) -> Result<Prompt> {
        if text.contains("too long") {
            return Err(Error::PromptTooLong { limit: 9, found: 10 });
        }
        let mut prompt = super::text(5, 40 * images.len() + 9);
        prompt.spans =
            (0..images.len()).map(|media| Span { media, rows: 0..ROWS, at: 40 * media + 3 }).collect();
        Ok(prompt)
    }

    fn video(&self) -> Option<&dyn VideoProcessor> {
        Some(self)
    }
}

/// Two frames a picture, named by the first of them.
impl VideoProcessor for Waits {
    fn mark(&self) -> &str {
        "<video>"
    }

    fn template(&self) -> Option<&str> {
        Some("{% for part in messages[0]['content'] %}{{ part['text'] or '<video>' }}{% endfor %}")
    }

    fn frames_of_picture(&self, _: usize) -> usize {
        2
    }

    fn picture(&self, frames: &[Rgb8Image], of: Range<usize>, threads: usize) -> Result<PreparedImage> {
        assert_eq!(of.len(), (frames.len() - of.start).min(2));
        let number = Rgb8Image::from_raw(of.start / 2 + 1, 1, vec![0; 3 * (of.start / 2 + 1)]).unwrap();
        self.prepare(&number, threads)
    }

    fn text(&self, times: &[f64], _: f64) -> String {
        format!("{times:?}")
    }
}

fn pipeline(threads: usize) -> (Arc<Fake>, Pipeline) {
    let model = Fake::new(both());
    let processor = Box::new(Waits { model: model.clone(), prepared: Arc::default() });
    let loaded = Loaded { model: Model::Vlm(model.clone()), processor, tokenizer: tokenizer().into() };
    (model, Pipeline::new(&files(), loaded, threads).unwrap())
}

fn images(count: usize) -> Vec<Rgb8Image> {
    (1..=count).map(|number| Rgb8Image::from_raw(number, 1, vec![0; 3 * number]).unwrap()).collect()
}

#[test]
fn the_tower_runs_for_the_first_picture_while_others_are_prepared() {
    for threads in [1, 4] {
        let mut cx = context();
        let (model, pipeline) = pipeline(threads);
        let messages = [Message::user(6, "What changes?")];
        // Had all been prepared first, the second would fail.
        let request = pipeline.request_ahead(&mut cx, &messages, &images(6), &[], params(30)).unwrap();
        assert_eq!(*model.encoded.lock().unwrap(), [1, 2, 3]);
        assert!(request.media.iter().all(|media| matches!(media, Media::Features(_))));
        let pictures: Vec<_> = (1..=6).map(|number| picture(number, 2)).collect();
        let expected = alone(&mut cx, &both(), &[about(&pictures)]);
        let go_on = |_: usize, _: Piece<'_>| ControlFlow::Continue(());
        let answers = generate(&mut cx, &pipeline.model, &pipeline.tokenizer, vec![request], go_on).unwrap();
        assert_eq!(answers[0].token_ids, expected[0].token_ids);
        assert_eq!(*model.encoded.lock().unwrap(), [1, 2, 3], "nothing is encoded twice");
    }
}

#[test]
fn the_tower_runs_for_the_first_frames_of_a_video_while_others_are_prepared() {
    for (threads, frames) in [(1, 11), (4, 12)] {
        let mut cx = context();
        let (model, pipeline) = pipeline(threads);
        let messages = [shows_video()];
        let video = Video::of_frames(images(frames), 1.0, 100).unwrap();
        let request = pipeline.request_ahead(&mut cx, &messages, &[], &[video], params(30)).unwrap();
        assert_eq!(*model.encoded.lock().unwrap(), [1, 2, 3]);
        let pictures: Vec<_> = (1..=6).map(|number| picture(number, 2)).collect();
        let expected = alone(&mut cx, &both(), &[about(&pictures)]);
        let go_on = |_: usize, _: Piece<'_>| ControlFlow::Continue(());
        let answers = generate(&mut cx, &pipeline.model, &pipeline.tokenizer, vec![request], go_on).unwrap();
        assert_eq!(answers[0].token_ids, expected[0].token_ids);
    }
    let (_, pipeline) = pipeline(1);
    let error = pipeline.request_ahead(&mut context(), &[shows_video()], &[], &[], params(3));
    assert!(error.unwrap_err().to_string().contains("found"));
}

/// A message with the place of a video.
fn shows_video() -> Message {
    let parts = vec![Part::Video, Part::Text { text: "What happens?".into() }];
    Message { role: "user".into(), content: Content::Parts(parts), more: Default::default() }
}

/// As `batch` prepares the pictures of a row.
#[test]
fn the_tower_runs_for_the_first_picture_while_the_next_is_prepared_in_turn() {
    let (model, pipeline) = pipeline(1);
    let worker = worker(&model);
    let client = worker.client();
    let ready = |picture: &Arc<Picture>| client.expect(picture).unwrap();
    // Had the worker not begun with the first, the second would fail.
    let prepare = |image: &Rgb8Image| pipeline.prepare_one_of(image, 3, &ready).unwrap();
    let pictures: Vec<_> = images(3).iter().map(prepare).collect();
    let last = worker.submit(about(&pictures)).unwrap().last();
    let expected = alone(&mut context(), &both(), &[about(&pictures)]);
    match last {
        Some(Event::Done { answer, .. }) => assert_eq!(answer.token_ids, expected[0].token_ids),
        other => panic!("{other:?}"),
    }
    worker.stop().unwrap();
    let nobody = |_: &Arc<Picture>| panic!("one picture comes with its request");
    pipeline.prepare_one_of(&images(1)[0], 1, &nobody).unwrap();
}

#[test]
fn one_picture_and_none_are_left_to_the_scheduler() {
    let mut cx = context();
    let (model, pipeline) = pipeline(2);
    for count in [0, 1] {
        let messages = [Message::user(count, "What is it?")];
        let request = pipeline.request_ahead(&mut cx, &messages, &images(count), &[], params(3)).unwrap();
        assert!(request.media.iter().all(|media| matches!(media, Media::Picture(_))));
    }
    assert!(model.encoded.lock().unwrap().is_empty());
}

#[test]
fn errors_of_requests_whose_tower_has_begun() {
    let mut cx = context();
    let (_, pipeline) = pipeline(2);
    let mut ask = |places: usize, text: &str, params: SamplingParams| {
        let messages = [Message::user(places, text)];
        pipeline.request_ahead(&mut cx, &messages, &images(3), &[], params).unwrap_err().to_string()
    };
    assert!(ask(3, "too long", params(3)).contains("10"));
    assert!(ask(2, "What?", params(3)).contains("expected places for 3 pictures, found 2"));
    assert!(ask(3, "What?", SamplingParams { top_p: 0.0, ..params(3) }).contains("top_p"));
    // A group of the tower that fails is left to the scheduler, which tells whose picture it is.
    let mut all = images(3);
    all[0] = Rgb8Image::from_raw(99, 1, vec![0; 297]).unwrap();
    let (model, pipeline) = pipeline_that_does_not_wait();
    let request =
        pipeline.request_ahead(&mut cx, &[Message::user(3, "What?")], &all, &[], params(3)).unwrap();
    assert!(matches!(request.media[0], Media::Picture(_)));
    let go_on = |_: usize, _: Piece<'_>| ControlFlow::Continue(());
    let error = generate(&mut cx, &pipeline.model, &pipeline.tokenizer, vec![request], go_on).unwrap_err();
    assert!(error.to_string().contains("picture 99"), "{error}");
    assert_eq!(model.encoded.lock().unwrap()[1..], [2]);
}

/// The tower has run once before anything is asked.
fn pipeline_that_does_not_wait() -> (Arc<Fake>, Pipeline) {
    let (model, pipeline) = pipeline(2);
    model.encoded.lock().unwrap().push(0);
    (model, pipeline)
}

fn worker(model: &Arc<Fake>) -> Worker {
    let theirs = model.clone();
    let start = move || {
        let mut cx = context();
        let scheduler = Scheduler::new(&mut cx, theirs, tokenizer(), Limits::default())?;
        Ok((cx, scheduler))
    };
    Worker::spawn(start).unwrap()
}

#[test]
fn a_worker_begins_before_the_request_is_handed_in() {
    let (model, pipeline) = pipeline(2);
    let worker = worker(&model);
    let client = worker.client();
    let ready = |picture: &Arc<Picture>| client.expect(picture).unwrap();
    let request = pipeline.request_rendered("What changes?", &images(3), params(30), &ready).unwrap();
    let before = model.encoded.lock().unwrap().iter().sum::<usize>();
    assert!(before > 0);
    let last = worker.submit(request).unwrap().last();
    let pictures: Vec<_> = (1..=3).map(|number| picture(number, 2)).collect();
    let expected = alone(&mut context(), &both(), &[about(&pictures)]);
    match last {
        Some(Event::Done { answer, .. }) => assert_eq!(answer.token_ids, expected[0].token_ids),
        other => panic!("{other:?}"),
    }
    assert_eq!(model.encoded.lock().unwrap().iter().sum::<usize>(), 3, "each is encoded once");
    worker.stop().unwrap();
}
