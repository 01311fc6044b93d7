//! Losses, the gradient of each parameter, and fifty steps of AdamW.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::text::Message;
use ocelli_engine::weights::Checkpoint;
use ocelli_train::{AdamWOptions, Batcher, Learner, Optimizer, Schedule, Trainer};

use super::reference::{Reference, folder};

/// Distance of two lists of numbers.
pub fn distance(found: &[f64], known: &[f64]) -> f64 {
    assert_eq!(found.len(), known.len());
    found.iter().zip(known).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

/// The length of a list of numbers.
pub fn norm(values: &[f64]) -> f64 {
    distance(values, &vec![0.0; values.len()])
}

/// The gradient of every parameter against autograd in f64: all rows in one pass, in several, and with the activations of layers
/// computed again.
fn gradients_agree(name: &str) {
    let mut reference = Reference::load(name);
    let examples = reference.examples();
    let known_loss = reference.floats("loss")[0];
    for (pass_tokens, lean) in [(4096, false), (1, false), (4096, true)] {
        let Reference { cx, pipeline, parameters, .. } = &mut reference;
        let mut trainer = Trainer::new(&*pipeline.model, parameters, pass_tokens);
        trainer.lean = lean;
        let loss = trainer.gradient(cx, &examples).expect("a gradient").mean();
        assert!(
            (loss - known_loss).abs() <= 1e-5 * known_loss,
            "{name}: loss {loss}, PyTorch's {known_loss}"
        );
        let alone = trainer.loss(cx, &examples).expect("a loss").mean();
        assert!((loss - alone).abs() <= 1e-6 * loss, "{name}: loss {loss}, without gradients {alone}");
        let names: Vec<String> = parameters.all().iter().map(|parameter| parameter.name.clone()).collect();
        let known: Vec<Vec<f64>> = names.iter().map(|of| reference.floats(&format!("grad.{of}"))).collect();
        let whole = norm(&known.concat());
        let mut worst = (0.0, String::new());
        for (of, known) in names.into_iter().zip(known) {
            let found = reference.parameters.gradient(&mut reference.cx, &of).expect("a gradient");
            let found: Vec<f64> = found.into_iter().map(f64::from).collect();
            // Some gradients are zero but for rounding, as those of the biases of keys: what rounds is of the size of others.
            let off = distance(&found, &known) / norm(&known).max(1e-3 * whole);
            if off > worst.0 {
                worst = (off, of);
            }
        }
        println!(
            "{name}: gradients of {pass_tokens} tokens at once, computed again {lean}: off by {:.1e} at most, of {}",
            worst.0, worst.1
        );
        assert!(worst.0 <= 1e-4, "{name}: the gradient of {} is off by {:.2e}", worst.1, worst.0);
        // A step without a rate leaves zeros behind for the next time.
        let mut optimizer = optimizer(&mut reference, 0.0);
        let Reference { cx, parameters, .. } = &mut reference;
        optimizer.step(cx, parameters).expect("a step");
    }
}

fn optimizer(reference: &mut Reference, rate: f64) -> Optimizer {
    let options = AdamWOptions {
        rate,
        betas: [0.9, 0.999],
        decay: 0.01,
        clip: Some(1.0),
        schedule: Schedule::Cosine,
        warmup: 10,
        steps: 50,
    };
    Optimizer::new(&mut reference.cx, &reference.parameters, options).expect("moments")
}

/// Fifty steps on one batch: losses, norms and rates as PyTorch has them.
fn steps_agree(name: &str) {
    let mut reference = Reference::load(name);
    let examples = reference.examples();
    let mut optimizer = optimizer(&mut reference, 1e-3);
    let [losses, norms, rates] = ["losses", "grad_norms", "learning_rates"].map(|of| reference.floats(of));
    let Reference { cx, pipeline, parameters, .. } = &mut reference;
    let mut trainer = Trainer::new(&*pipeline.model, parameters, 4096);
    let mut worst = 0f64;
    for step in 0..50 {
        let loss = trainer.gradient(cx, &examples).expect("a gradient").mean();
        let stepped = optimizer.step(cx, parameters).expect("a step");
        worst = worst.max((loss - losses[step]).abs() / losses[step]);
        assert!((stepped.rate - rates[step]).abs() < 1e-12, "{name}: step {step}: rate {}", stepped.rate);
        let norm = (stepped.norm - norms[step]).abs() / norms[step];
        assert!(norm < 1e-2, "{name}: step {step}: norm {}, PyTorch's {}", stepped.norm, norms[step]);
    }
    println!("{name}: losses of 50 steps: off by {worst:.1e} at most");
    assert!(worst <= 1e-3, "{name}: a loss is off by {worst:.2e}");
}

#[test]
fn smolvlm_gradients() {
    gradients_agree("smolvlm");
}

#[test]
fn smolvlm_tied_gradients() {
    gradients_agree("smolvlm_tied");
}

#[test]
fn blip_gradients() {
    gradients_agree("blip_vqa");
}

/// Without a chat template nothing tells a second question from the first answer.
#[test]
fn one_answer_without_a_template() {
    let reference = Reference::load("blip_vqa");
    let batcher = Batcher { pipeline: &reference.pipeline, max_tokens: 64, asks: false };
    let said = |role: &str| Message::text(role, "two");
    for (roles, told) in [
        (&["user", "assistant", "user", "assistant"][..], "one answer"),
        (&["user"], "one answer"),
        (&["assistant", "user"], "one answer"),
    ] {
        let messages: Vec<Message> = roles.iter().map(|role| said(role)).collect();
        let error = batcher.example(&messages, reference.pictures()[..1].to_vec()).err().expect("an error");
        assert!(error.to_string().contains(told), "{roles:?}: {error}");
    }
    let empty = [said("user"), Message::text("assistant", "")];
    let error = batcher.example(&empty, reference.pictures()[..1].to_vec()).err().expect("an error");
    assert!(error.to_string().contains("no token"), "{error}");
}

/// What a model of a configuration asks for is what a checkpoint of it has.
#[test]
fn tensors_of_a_configuration() {
    for name in ["smolvlm", "smolvlm_tied", "clip", "siglip", "blip_vqa"] {
        let files = ModelFiles::dir(folder().join(name));
        let mut asked = ocelli_models::tensors(&files).unwrap_or_else(|error| panic!("{name}: {error}")).all;
        let stored = Checkpoint::open(&files).expect("a checkpoint");
        let mut known: Vec<(String, Vec<usize>)> =
            stored.infos().map(|(name, info)| (name.to_owned(), info.shape.to_vec())).collect();
        asked.sort();
        known.sort();
        known.retain(|(name, _)| !name.ends_with("position_ids"));
        assert_eq!(asked, known, "{name}");
    }
}

#[test]
fn fifty_steps() {
    steps_agree("smolvlm");
    steps_agree("smolvlm_tied");
    steps_agree("blip_vqa");
}
