//! Lists of frames against transformers (`golden/make_video.py`).

use std::ops::ControlFlow;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{DecodeOptions, Rgb8Image, decode_file};
use ocelli_engine::prompt::Positions;
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{Media, generate};
use ocelli_engine::text::{ChatTemplate, Content, Message, Part};
use ocelli_engine::video::Video;
use ocelli_engine::{Ctx, Pipeline, Precision};
use ocelli_kernels::{Backend, DeviceOptions};
use serde_json::{Value, json};

use super::golden;

/// Of so many values of pixels the reference has one.
const STEP: usize = 97;

#[test]
fn videos_as_transformers_reads_them() {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let rows: Vec<Value> =
        serde_json::from_slice(&std::fs::read(golden("video.json")).expect("video.json")).expect("JSON");
    assert!(rows.len() >= 36);
    let image =
        decode_file(&golden("images/china_131x87.png"), &DecodeOptions::default()).expect("a picture");
    for row in &rows {
        let family = row["family"].as_str().expect("a family");
        let what = format!("{family}, {} frames, {} a second", row["frames"], row["fps"]);
        let files = ModelFiles::dir(golden(family));
        let mut cx = Ctx::new(&*device, Precision::default()).expect("a stream");
        let model = ocelli_models::load(&files, &mut cx).expect("a model");
        let mut pipeline = Pipeline::new(&files, model, 2).expect("its tokenizer");
        if let Some(template) = row["template"].as_str() {
            let template = ChatTemplate::new(template, "video.json", &pipeline.tokenizer);
            pipeline.template = Some(template.expect("a template"));
        }
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
        let videos = [video];
        let request = pipeline.request_with_videos(&messages, &pictures, &videos, params.clone());
        let request = request.expect("a request");
        assert_eq!(json!(request.prompt.tokens), row["input_ids"], "{what}");
        if let (Positions::Axes { at, next }, Some(wanted)) =
            (&request.prompt.positions, row.get("positions"))
        {
            let axis = |axis: usize| at.iter().map(|place| place[axis]).collect::<Vec<i32>>();
            assert_eq!(json!([axis(0), axis(1), axis(2)]), *wanted, "{what}");
            assert_eq!(json!(next), row["next"], "{what}");
        } else {
            assert!(row.get("positions").is_none(), "{what}: expected positions of three axes");
        }
        if let Some(wanted) = row.get("pixels") {
            let mut values = Vec::new();
            for media in request.media.iter().skip(usize::from(pictured)) {
                let Media::Picture(picture) = media else { panic!("{what}: features in place of a picture") };
                values.extend(pipeline.processor.pixel_values(picture));
            }
            assert_eq!(json!(values.len()), wanted[0], "{what}");
            let wanted = wanted[1].as_array().expect("values");
            assert_eq!(values.iter().step_by(STEP).count(), wanted.len(), "{what}");
            for (i, (value, wanted)) in values.iter().step_by(STEP).zip(wanted).enumerate() {
                let wanted = wanted.as_f64().expect("a number");
                assert!((f64::from(*value) - wanted).abs() < 2e-6, "{what}: {i}: {value} for {wanted}");
            }
        }
        // The tower runs while frames are prepared.
        let request = pipeline.request_ahead(&mut cx, &messages, &pictures, &videos, params);
        let request = request.expect("a request");
        let answers = generate(&mut cx, &pipeline.model, &pipeline.tokenizer, vec![request], |_, _| {
            ControlFlow::Continue(())
        });
        assert_eq!(json!(answers.expect("an answer")[0].token_ids), row["greedy"], "{what}");
    }
}
