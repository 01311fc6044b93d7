//! Lists of frames against transformers (`golden/make_video.py`).

use std::ops::ControlFlow;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{DecodeOptions, Rgb8Image, decode_file};
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::generate;
use ocelli_engine::text::{Content, Message, Part};
use ocelli_engine::video::Video;
use ocelli_engine::{Ctx, Pipeline, Precision};
use ocelli_kernels::{Backend, DeviceOptions};
use serde_json::{Value, json};

use super::golden;

#[test]
fn videos_as_transformers_reads_them() {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let rows: Vec<Value> =
        serde_json::from_slice(&std::fs::read(golden("video.json")).expect("video.json")).expect("JSON");
    assert!(rows.len() >= 9);
    let image =
        decode_file(&golden("images/china_131x87.png"), &DecodeOptions::default()).expect("a picture");
    for row in &rows {
        let family = row["family"].as_str().expect("a family");
        let what = format!("{family}, {} frames, {} a second", row["frames"], row["fps"]);
        let files = ModelFiles::dir(golden(family));
        let mut cx = Ctx::new(&*device, Precision::default()).expect("a stream");
        let model = ocelli_models::load(&files, &mut cx).expect("a model");
        let pipeline = Pipeline::new(&files, model, 2).expect("its tokenizer");
        let frame = |k: u64| {
            let data = image.data().iter().map(|level| level.wrapping_add((40 * k % 256) as u8)).collect();
            Rgb8Image::from_raw(image.width(), image.height(), data).expect("a frame")
        };
        let frames = (0..row["frames"].as_u64().expect("a number")).map(frame).collect();
        let video = Video::of_frames(frames, row["fps"].as_f64().expect("a rate"), 1000).expect("a video");
        let pictured = row["picture"] == true;
        let mut parts = vec![Part::Image; usize::from(pictured)];
        parts.extend([Part::Video, Part::Text { text: "What happens?".into() }]);
        let messages =
            [Message { role: "user".into(), content: Content::Parts(parts), more: Default::default() }];
        let pictures = vec![image.clone(); usize::from(pictured)];
        let params = SamplingParams { max_tokens: 12, ..SamplingParams::default() };
        let request =
            pipeline.request_with_videos(&messages, &pictures, &[video], params).expect("a request");
        assert_eq!(json!(request.prompt.tokens), row["input_ids"], "{what}");
        let answers = generate(&mut cx, &pipeline.model, &pipeline.tokenizer, vec![request], |_, _| {
            ControlFlow::Continue(())
        });
        assert_eq!(json!(answers.expect("an answer")[0].token_ids), row["greedy"], "{what}");
    }
}
