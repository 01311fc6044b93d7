//! What PyTorch computed: models and batches of `tests/golden/train/`, see `make_train.py`.

use std::path::PathBuf;
use std::sync::Arc;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{PreparedImage, Rgb8Image};
use ocelli_engine::text::Message;
use ocelli_engine::weights::{Checkpoint, TensorFile};
use ocelli_engine::{Ctx, Pipeline, Precision, Prompt};
use ocelli_kernels::{Backend, DType, DeviceOptions};
use ocelli_models::Leftovers;
use ocelli_train::{Batcher, Example, Parameter, Parameters};

/// A model, all of it trained, and what is known of its gradient.
pub struct Reference {
    /// Tensors of the reference.
    pub known: TensorFile,
    /// The context that it runs in.
    pub cx: Ctx,
    /// The model.
    pub pipeline: Pipeline,
    /// Its parameters.
    pub parameters: Parameters,
    config: serde_json::Value,
    texts: serde_json::Value,
}

/// A tensor of floats of a file.
pub fn wide(known: &TensorFile, name: &str) -> Vec<f64> {
    let bytes = known.bytes(name).unwrap_or_else(|error| panic!("{error}"));
    match known.info(name).expect("known").dtype {
        safetensors::Dtype::F64 => {
            bytes.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
        }
        _ => bytes.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect(),
    }
}

/// The folder of references: that of the repository, or another one of the same layout, made with another seed.
pub fn folder() -> PathBuf {
    let own = ocelli_tests::root().join("tests/golden/train");
    std::env::var_os("OCELLI_TRAIN_GOLDENS").map_or(own, PathBuf::from)
}

/// The rows of a tensor of integers of a reference.
pub fn integers(known: &TensorFile, name: &str) -> Vec<Vec<i64>> {
    let width = known.info(name).expect("known").shape[1];
    let bytes = known.bytes(name).expect("known");
    let all: Vec<i64> = bytes.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    all.chunks(width).map(<[i64]>::to_vec).collect()
}

impl Reference {
    /// Loads one, all of it trained.
    pub fn load(name: &str) -> Self {
        Self::of(name, |cx, files| {
            let source = Checkpoint::open(files).expect("a checkpoint");
            Parameters::read(cx, files, &source, &|_| true).expect("parameters")
        })
    }

    /// Loads one of whose weights none is trained.
    pub fn frozen(name: &str) -> Self {
        Self::of(name, |cx, files| {
            let unused = |name: &str| Parameter {
                name: name.to_owned(),
                shape: vec![1],
                bytes: 0..4,
                stored: DType::F32,
                trained: true,
            };
            let placed = Parameters::place(cx, "unused", vec![unused("unused")], |_| Ok(vec![0.0]));
            (placed.expect("memory").0, Checkpoint::open(files).expect("a checkpoint"))
        })
    }

    fn of(name: &str, weights: impl FnOnce(&mut Ctx, &ModelFiles) -> (Parameters, Checkpoint)) -> Self {
        let folder = folder().join(name);
        let files = ModelFiles::dir(&folder);
        let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
        let mut cx = Ctx::new(&*device, Precision::default()).expect("a context");
        let (parameters, checkpoint) = weights(&mut cx, &files);
        let loaded =
            ocelli_models::load_from(&files, &checkpoint, &mut cx, Leftovers::Refuse).expect("a model");
        let pipeline = Pipeline::new(&files, loaded, 1).expect("a pipeline");
        let known = TensorFile::open(&folder.join("train.safetensors")).expect("a reference");
        let config = files.require_json("config.json").expect("a configuration");
        let about = std::fs::read_to_string(folder.join("train.json")).expect("a description");
        let about: serde_json::Value = serde_json::from_str(&about).expect("JSON");
        Self { known, cx, pipeline, parameters, config, texts: about["texts"].clone() }
    }

    /// A tensor of floats of the reference.
    pub fn floats(&self, name: &str) -> Vec<f64> {
        wide(&self.known, name)
    }

    fn rows(&self, name: &str) -> Vec<Vec<i64>> {
        integers(&self.known, name)
    }

    /// The batch of a model that answers.
    pub fn examples(&self) -> Vec<Example> {
        if self.known.info("decoder_input_ids").is_some() {
            return self.asked_examples();
        }
        let (ids, mask, labels) = (self.rows("input_ids"), self.rows("attention_mask"), self.rows("labels"));
        let image_token = self.config["image_token_id"].as_u64().expect("an image token") as u32;
        ids.iter()
            .zip(&mask)
            .zip(&labels)
            .zip(self.pictures())
            .map(|(((ids, mask), labels), picture)| {
                let len = mask.iter().filter(|&&one| one == 1).count();
                let tokens: Vec<u32> = ids[..len].iter().map(|&id| id as u32).collect();
                let rows = tokens.iter().filter(|&&id| id == image_token).count();
                let learnt: Vec<bool> = labels[..len].iter().map(|&label| label >= 0).collect();
                let prompt = Prompt::with_image_tokens(tokens, image_token, &[rows]).expect("a prompt");
                Example::new(prompt, vec![picture], &learnt).expect("an example")
            })
            .collect()
    }

    /// The batch of a model with an encoder of questions, made of its texts; their tokens are those of the reference.
    fn asked_examples(&self) -> Vec<Example> {
        let batcher = Batcher { pipeline: &self.pipeline, max_tokens: 64, asks: false };
        let [ids, mask] = ["input_ids", "attention_mask"].map(|of| self.rows(of));
        let [decoder_ids, decoder_mask] =
            ["decoder_input_ids", "decoder_attention_mask"].map(|of| self.rows(of));
        let of = |ids: &[i64], mask: &[i64]| -> Vec<u32> {
            ids.iter().zip(mask).filter(|&(_, &one)| one == 1).map(|(&id, _)| id as u32).collect()
        };
        let texts = self.texts.as_array().expect("texts").iter();
        let examples = texts.zip(self.pictures()).enumerate().map(|(row, (text, picture))| {
            let said = |of: &str| text[of].as_str().expect("a text").to_owned();
            let messages = [Message::user(1, said("question")), Message::text("assistant", said("answer"))];
            let example = batcher.example(&messages, vec![picture]).expect("an example");
            assert_eq!(example.prompt.source.tokens, of(&ids[row], &mask[row]), "the question");
            assert_eq!(example.prompt.tokens, of(&decoder_ids[row], &decoder_mask[row]), "the answer");
            example
        });
        examples.collect()
    }

    /// The pictures of the batch, prepared.
    pub fn pictures(&self) -> Vec<Arc<PreparedImage>> {
        let shape = self.known.info("pictures").expect("known").shape;
        let (height, width) = (shape[1], shape[2]);
        let pictures = self.known.bytes("pictures").expect("known").chunks(height * width * 3);
        let prepared = pictures.map(|picture| {
            let picture = Rgb8Image::from_raw(width, height, picture.to_vec()).expect("a picture");
            Arc::new(self.pipeline.processor.prepare(&picture, 1).expect("a prepared picture"))
        });
        prepared.collect()
    }
}
