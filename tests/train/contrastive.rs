//! Dual encoders against PyTorch: the loss, the gradient of each parameter in one pass and in chunks, and fifty steps of AdamW.

use std::sync::Arc;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::Rgb8Image;
use ocelli_engine::weights::{Checkpoint, TensorFile};
use ocelli_engine::{Ctx, EmbeddingPipeline, Precision};
use ocelli_kernels::{Backend, DeviceOptions};
use ocelli_models::Leftovers;
use ocelli_train::{AdamWOptions, Contrastive, Learner, Optimizer, Pair, Parameters, Schedule};

use super::gradients::{distance, norm};
use super::reference::{folder, integers, wide};

/// A dual encoder, all of it trained, and what is known of its gradient.
struct Dual {
    name: &'static str,
    known: TensorFile,
    cx: Ctx,
    pipeline: EmbeddingPipeline,
    parameters: Parameters,
}

impl Dual {
    fn load(name: &'static str) -> Self {
        let folder = folder().join(name);
        let files = ModelFiles::dir(&folder);
        let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
        let mut cx = Ctx::new(&*device, Precision::default()).expect("a context");
        let source = Checkpoint::open(&files).expect("a checkpoint");
        let (parameters, checkpoint) =
            Parameters::read(&mut cx, &files, &source, &|_| true).expect("parameters");
        let loaded =
            ocelli_models::load_from(&files, &checkpoint, &mut cx, Leftovers::Refuse).expect("a model");
        let pipeline = EmbeddingPipeline::new(&files, loaded, 1).expect("a pipeline");
        let known = TensorFile::open(&folder.join("train.safetensors")).expect("a reference");
        Self { name, known, cx, pipeline, parameters }
    }

    /// The batch: tokens without their filling, where there is a mask.
    fn pairs(&self) -> Vec<Pair> {
        let ids = integers(&self.known, "input_ids");
        let mask = self.known.info("attention_mask").map(|_| integers(&self.known, "attention_mask"));
        let shape = self.known.info("pictures").expect("known").shape;
        let (height, width) = (shape[1], shape[2]);
        let pictures = self.known.bytes("pictures").expect("known").chunks(height * width * 3);
        let one = |(row, (ids, picture)): (usize, (&Vec<i64>, &[u8]))| {
            let count = |mask: &Vec<Vec<i64>>| mask[row].iter().filter(|&&one| one == 1).count();
            let len = mask.as_ref().map_or(ids.len(), count);
            let picture = Rgb8Image::from_raw(width, height, picture.to_vec()).expect("a picture");
            let picture = Arc::new(self.pipeline.processor.prepare(&picture, 1).expect("a prepared picture"));
            Pair { picture, text: ids[..len].iter().map(|&id| id as u32).collect() }
        };
        ids.iter().zip(pictures).enumerate().map(one).collect()
    }

    fn optimizer(&mut self, rate: f64) -> Optimizer {
        let options = AdamWOptions {
            rate,
            betas: [0.9, 0.999],
            decay: 0.01,
            clip: Some(1.0),
            schedule: Schedule::Cosine,
            warmup: 10,
            steps: 50,
        };
        Optimizer::new(&mut self.cx, &self.parameters, options).expect("moments")
    }
}

/// The gradient of each parameter, of the whole batch at once and in chunks of 3 and 1.
fn gradients_agree(name: &'static str) {
    let mut dual = Dual::load(name);
    let pairs = dual.pairs();
    let loss = wide(&dual.known, "loss")[0];
    let known: Vec<(String, Vec<f64>)> = dual
        .known
        .names()
        .filter_map(|name| Some((name.strip_prefix("grad.")?.to_owned(), wide(&dual.known, name))))
        .collect();
    assert_eq!(known.len(), dual.parameters.all().len(), "{name}");
    let whole = norm(&known.iter().flat_map(|(_, values)| values.clone()).collect::<Vec<_>>());
    for chunk in [4, 3, 1] {
        let Dual { cx, pipeline, parameters, .. } = &mut dual;
        let mut trainer = Contrastive::new(&*pipeline.model, parameters, (4, chunk)).expect("a trainer");
        let found = trainer.gradient(cx, &pairs).expect("a gradient").mean();
        assert!((found - loss).abs() <= 1e-5 * loss, "{name}: a loss of {found}, PyTorch's {loss}");
        let mut worst = (0.0, "");
        for (of, known) in &known {
            let found = parameters.gradient(cx, of).expect("a gradient");
            let found: Vec<f64> = found.into_iter().map(f64::from).collect();
            // As of the models that answer: some gradients are zero but for rounding.
            let off = distance(&found, known) / norm(known).max(1e-3 * whole);
            if off > worst.0 {
                worst = (off, of);
            }
        }
        println!("{name}: gradients in chunks of {chunk}: off by {:.1e} at most, of {}", worst.0, worst.1);
        assert!(worst.0 <= 1e-4, "{name}: the gradient of {} is off by {:.2e}", worst.1, worst.0);
        // A step without a rate leaves zeros behind for the next time.
        let mut optimizer = dual.optimizer(0.0);
        optimizer.step(&mut dual.cx, &dual.parameters).expect("a step");
    }
}

fn steps_agree(name: &'static str) {
    let mut dual = Dual::load(name);
    let pairs = dual.pairs();
    let mut optimizer = dual.optimizer(1e-3);
    let (losses, norms) = (wide(&dual.known, "losses"), wide(&dual.known, "grad_norms"));
    let Dual { cx, pipeline, parameters, .. } = &mut dual;
    let mut trainer = Contrastive::new(&*pipeline.model, parameters, (4, 4)).expect("a trainer");
    let mut worst = 0f64;
    for step in 0..50 {
        let loss = trainer.gradient(cx, &pairs).expect("a gradient").mean();
        let stepped = optimizer.step(cx, parameters).expect("a step");
        worst = worst.max((loss - losses[step]).abs() / losses[step]);
        let off = (stepped.norm - norms[step]).abs() / norms[step];
        assert!(off < 1e-2, "{}: step {step}: norm {}, PyTorch's {}", dual.name, stepped.norm, norms[step]);
    }
    println!("{name}: losses of 50 steps: off by {worst:.1e} at most");
    assert!(worst <= 1e-3, "{name}: a loss is off by {worst:.2e}");
}

#[test]
fn clip_gradients() {
    gradients_agree("clip");
}

#[test]
fn siglip_gradients() {
    gradients_agree("siglip");
}

#[test]
fn clip_steps() {
    steps_agree("clip");
}

#[test]
fn siglip_steps() {
    steps_agree("siglip");
}

/// With one side alone trained, the other's parameters have no gradient, and the loss is the same.
#[test]
fn one_side_alone() {
    for (name, part) in [("clip", "text_model"), ("siglip", "vision_model")] {
        let mut all = Dual::load(name);
        let pairs = all.pairs();
        let folder = folder().join(name);
        let files = ModelFiles::dir(&folder);
        let source = Checkpoint::open(&files).expect("a checkpoint");
        let chosen = |of: &str| of.starts_with(part);
        let (parameters, checkpoint) =
            Parameters::read(&mut all.cx, &files, &source, &chosen).expect("parameters");
        let loaded =
            ocelli_models::load_from(&files, &checkpoint, &mut all.cx, Leftovers::Refuse).expect("a model");
        let pipeline = EmbeddingPipeline::new(&files, loaded, 1).expect("a pipeline");
        let whole = Contrastive::new(&*all.pipeline.model, &all.parameters, (4, 4))
            .and_then(|mut trainer| trainer.gradient(&mut all.cx, &pairs))
            .expect("a gradient");
        for chunk in [2, 4] {
            let mut trainer = Contrastive::new(&*pipeline.model, &parameters, (4, chunk)).expect("a trainer");
            for _ in 0..2 {
                let loss = trainer.gradient(&mut all.cx, &pairs).expect("a gradient");
                assert!((loss.mean() - whole.mean()).abs() < 1e-6, "{name}");
            }
        }
        let (mut squares, mut far) = (0.0, Vec::new());
        for parameter in parameters.all() {
            let of = |parameters: &Parameters, cx: &mut Ctx| {
                parameters.gradient(cx, &parameter.name).expect("one")
            };
            let (found, known) = (of(&parameters, &mut all.cx), of(&all.parameters, &mut all.cx));
            if !parameter.trained {
                assert!(found.iter().all(|&value| value == 0.0), "{}", parameter.name);
                continue;
            }
            // Four gradients were added up.
            let times =
                |values: Vec<f32>, by: f64| values.into_iter().map(|v| by * f64::from(v)).collect::<Vec<_>>();
            let (found, known) = (times(found, 0.25), times(known, 1.0));
            let (off, size) = (distance(&found, &known), norm(&known));
            squares += size * size;
            far.extend((off > 1e-5 * size).then(|| (parameter.name.clone(), off, size)));
        }
        // A gradient that is zero but for rounding, as those of keys' biases are, is as far off as the terms that it is the sum of are exact.
        let rounding = f64::from(f32::EPSILON) * f64::sqrt(squares);
        far.retain(|(_, off, _)| *off > rounding);
        assert!(far.is_empty(), "{name}: parameter, distance, length: {far:?}, beside {rounding:e}");
    }
}
