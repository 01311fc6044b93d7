//! `ocelli train masked`: what is hidden.

use ocelli_engine::{Ctx, Precision, Processor};
use ocelli_models::Leftovers;
use ocelli_train::augment::prepared;
use ocelli_train::patches::{FeatureTeacher, HEAD, Hider, PatchLearner, patch_side, tower_width};
use ocelli_train::random::Random;
use ocelli_train::run::{write_model, write_model_of};
use ocelli_train::{Draw, Fresh, Hiding, Job, Texts, Trainer};

use super::Needs;
use super::begun::{Begun, Beside};
use crate::args::{MaskedArgs, PartArg, PredictArg, WhatArg};
use crate::fail::{Failure, Outcome, note};
use crate::open;

/// Runs the task.
pub fn masked(args: &MaskedArgs) -> Outcome {
    if args.run.exact_match {
        return Err(Failure::usage("--exact-match: what is hidden is no answer"));
    }
    let wrong = |flag: &str, of: &str| Err(Failure::usage(format!("{flag} is for --what {of}")));
    match args.what {
        WhatArg::Text if args.predict == PredictArg::Features => wrong("--predict features", "patches"),
        WhatArg::Text if args.teacher.is_some() => wrong("--teacher", "patches --predict features"),
        WhatArg::Text => text(args),
        WhatArg::Patches if args.mask_token.is_some() => wrong("--mask-token", "text"),
        WhatArg::Patches => patches(args),
    }
}

fn text(args: &MaskedArgs) -> Outcome {
    let given = args.run.begin_with(Needs { text: true, ..Needs::default() })?;
    let files = open::files(args.which.model())?;
    let begun = Begun::read(&args.run, files, &args.parts, &args.processor, &Vec::new())?;
    let (files, mut cx, parameters, pipeline) = begun.pipeline()?;
    let share = args.share.unwrap_or(0.15);
    let embedded = pipeline.model.info().embedded;
    let hiding = Hiding::new(&pipeline.tokenizer, embedded, share, args.mask_token.as_deref())?;
    if hiding.mask.is_none() {
        note(
            "the tokenizer has no mask token: hidden tokens become random ones (--mask-token names another)",
        );
    }
    let texts = Texts { pipeline: &pipeline, max_tokens: args.max_tokens };
    let augment = args.run.augment();
    let task = format!(
        "masked text of {:?}, share {share}, mask {:?}, {} tokens, {} at once",
        args.parts, hiding.mask, args.max_tokens, args.pass_tokens
    );
    let job = Job {
        parameters: &parameters,
        rows: &given.rows,
        validation: &given.held,
        options: &args.run.options(given.rows.len(), task),
        read: &|row, draw| {
            let images = augment.pictures(row, draw)?;
            // The same tokens are hidden in each validation.
            let mut random = Random::of(draw.unwrap_or(Draw { seed: 0, epoch: 0, line: row.line }));
            let pictures = prepared(&*pipeline.processor, &images)?;
            texts.masked(&row.messages, pictures, &hiding, &mut random)
        },
        threads: pipeline.threads,
        write: &|cx, out| write_model(cx, &files, &parameters, out),
        out: &args.run.out,
        resume: args.run.resume,
    };
    let mut trainer = Trainer::new(&*pipeline.model, &parameters, args.pass_tokens);
    let activations = format!("activations of at most {} tokens at once", args.pass_tokens);
    args.run.run(&mut cx, &job, &mut trainer, (args.which.model().unwrap_or("demo"), &activations))
}

/// A teacher of features, its processor, and how wide they are.
type Taught = (FeatureTeacher, Box<dyn Processor>, usize);

/// A teacher of features with its processor and the width of its features.
fn teacher(args: &MaskedArgs) -> Result<Option<Taught>, Failure> {
    let name = match (args.predict, &args.teacher) {
        (PredictArg::Pixels, None) => return Ok(None),
        (PredictArg::Pixels, Some(_)) => {
            return Err(Failure::usage("--teacher is for --predict features"));
        }
        (PredictArg::Features, None) => return Err(Failure::usage("--predict features: expected --teacher")),
        (PredictArg::Features, Some(name)) => name,
    };
    let files = open::files(Some(name))?;
    let (device, _) = args.run.device()?;
    let (loaded, _, mut cx) =
        open::loaded(&files, &open::Setup::plain(&[], Leftovers::Warn), &*device, Precision::default())?;
    let patch = patch_side(&files, loaded.model.info().family)?;
    let width = tower_width(&mut cx, &loaded.model, &*loaded.processor)?;
    Ok(Some((FeatureTeacher { model: loaded.model, cx, patch }, loaded.processor, width)))
}

fn patches(args: &MaskedArgs) -> Outcome {
    let given = args.run.begin_with(Needs::default())?;
    let files = open::files(args.which.model())?;
    let teacher = teacher(args)?;
    // Loaded once without a device: the head is as wide as the tower's rows.
    let (patch, width) = {
        let (mut dry, _) = Ctx::dry(args.run.device()?.1.stream().caps().clone(), Precision::default());
        let loaded = ocelli_models::load_with(&files, &mut dry, Leftovers::Ignore)?;
        let patch = patch_side(&files, loaded.model.info().family)?;
        (patch, tower_width(&mut dry, &loaded.model, &*loaded.processor)?)
    };
    let told = teacher.as_ref().map_or(3 * patch * patch, |(_, _, width)| *width);
    let fresh = Fresh::of(&files, args.run.seed)?;
    let head = |name: &str, shape: Vec<usize>| {
        let name = format!("{HEAD}{name}");
        let values = fresh.values(&name, &shape);
        (name, shape, values)
    };
    let beside: Beside = vec![head("weight", vec![told, width]), head("bias", vec![told])];
    let parts = if args.parts.is_empty() { &[PartArg::Tower][..] } else { &args.parts };
    let begun = Begun::read(&args.run, files, parts, &args.processor, &beside)?;
    let Begun { files, mut cx, parameters, loaded, threads } = begun;
    let share = args.share.unwrap_or(0.5);
    let (teacher, teacher_processor) = teacher.map(|(teacher, processor, _)| (teacher, processor)).unzip();
    let hider = Hider {
        processor: &*loaded.processor,
        teacher: teacher_processor.as_deref(),
        patch,
        share,
        augment: args.run.augment(),
    };
    let task =
        format!("masked patches of {parts:?}, share {share}, {:?} of {:?}", args.predict, args.teacher);
    let job = Job {
        parameters: &parameters,
        rows: &given.rows,
        validation: &given.held,
        options: &args.run.options(given.rows.len(), task),
        read: &|row, draw| hider.read(row, draw),
        threads,
        write: &|cx, out| {
            write_model_of(cx, &files, &parameters, out, &|name| !name.starts_with(HEAD))?;
            let head = out.join("checkpoint/masked_head.safetensors");
            parameters.save_those(cx, &head, &|name| name.starts_with(HEAD))
        },
        out: &args.run.out,
        resume: args.run.resume,
    };
    let mut learner = PatchLearner { model: &loaded.model, parameters: &parameters, patch, teacher };
    let activations = "activations of the pictures of a row";
    args.run.run(&mut cx, &job, &mut learner, (args.which.model().unwrap_or("demo"), activations))
}
