//! `ocelli train pretrain`: texts as they are.

use ocelli_train::augment::prepared;
use ocelli_train::run::write_model;
use ocelli_train::{Example, Job, TextTrainer, Texts, Trainer};

use super::Needs;
use super::begun::Begun;
use crate::args::PretrainArgs;
use crate::fail::{Failure, Outcome};
use crate::open;

/// Runs the task.
pub fn pretrain(args: &PretrainArgs) -> Outcome {
    if args.run.exact_match {
        return Err(Failure::usage("--exact-match: a text without a prompt is no answer"));
    }
    let given = args.run.begin_with(Needs { text: true, ..Needs::default() })?;
    let begun = match &args.config {
        Some(config) => Begun::fresh(&args.run, config, &args.parts, &args.processor)?,
        None => {
            let files = open::files(args.which.model())?;
            Begun::read(&args.run, files, &args.parts, &args.processor, &Vec::new())?
        }
    };
    let (files, mut cx, parameters, pipeline) = begun.pipeline()?;
    let texts = Texts { pipeline: &pipeline, max_tokens: args.max_tokens };
    let augment = args.run.augment();
    let task = format!(
        "pretrain of {:?}{}, {} tokens, {} at once",
        args.parts,
        if args.config.is_some() { " from nothing" } else { "" },
        args.max_tokens,
        args.pass_tokens
    );
    let job = Job {
        parameters: &parameters,
        rows: &given.rows,
        validation: &given.held,
        options: &args.run.options(given.rows.len(), task),
        read: &|row, draw| -> ocelli_engine::Result<Vec<Example>> {
            let images = augment.pictures(row, draw)?;
            texts.whole(&row.messages, prepared(&*pipeline.processor, &images)?)
        },
        threads: pipeline.threads,
        write: &|cx, out| write_model(cx, &files, &parameters, out),
        out: &args.run.out,
        resume: args.run.resume,
    };
    let mut trainer = TextTrainer(Trainer::new(&*pipeline.model, &parameters, args.pass_tokens));
    let activations = format!("activations of at most {} tokens at once", args.pass_tokens);
    let model = args.config.as_ref().map(|config| config.display().to_string());
    let model = model.as_deref().or(args.which.model()).unwrap_or("demo");
    args.run.run(&mut cx, &job, &mut trainer, (model, &activations))
}
