//! `ocelli train distill`: what a teacher knows.

use std::path::Path;

use ocelli_engine::{Ctx, Pipeline, Precision};
use ocelli_models::Leftovers;
use ocelli_train::distill::{
    Distiller, FeatureDistiller, Pairs, Seen, Source, Teacher, logits_of, one_vocabulary,
};
use ocelli_train::run::write_model;
use ocelli_train::stored::{Stored, Writer};
use ocelli_train::{Augment, Batcher, Job, TrainRow, Trainer};

use super::begun::Begun;
use super::{MOST_TOLD, Needs};
use crate::args::{DistillArgs, PartArg};
use crate::fail::{Failure, Outcome, note};
use crate::open;
use crate::progress::Steps;

/// Runs the task.
pub fn distill(args: &DistillArgs) -> Outcome {
    if args.features { features(args) } else { logits(args) }
}

impl DistillArgs {
    /// The teacher, in a context of its own.
    fn teacher(&self) -> Result<Option<(Pipeline, Ctx)>, Failure> {
        let Some(teacher) = &self.teacher else { return Ok(None) };
        let files = open::files(Some(teacher))?;
        let (device, _) = self.run.device()?;
        let opened = open::pipeline_of(
            &files,
            &open::Setup::plain(&[], Leftovers::Warn),
            &*device,
            Precision::default(),
        )?;
        Ok(Some(opened))
    }
}

fn logits(args: &DistillArgs) -> Outcome {
    let stored = args.teacher_logits.as_deref().or(args.store_logits.as_deref());
    if let Some(flag) = stored.and_then(|_| args.run.augment_flag()) {
        return Err(Failure::usage(format!("{flag}: stored logits are of pictures as they are"))
            .hint("with --teacher alone, the teacher sees each picture as it is changed"));
    }
    let given = args.run.begin()?;
    let files = open::files(args.which.model())?;
    let begun = Begun::read(&args.run, files, &args.parts, &args.processor, &Vec::new())?;
    let (files, mut cx, parameters, pipeline) = begun.pipeline()?;
    let mut teacher = args.teacher()?;
    if let Some((teacher, _)) = &teacher {
        one_vocabulary(&pipeline, teacher)?;
    }
    if let (Some(path), Some((teacher, teacher_cx))) = (&args.store_logits, &mut teacher)
        && !args.run.dry_run
        && !(args.run.resume && path.exists())
    {
        store(args, path, &given.rows, teacher, teacher_cx)?;
    }
    let vocab = pipeline.model.info().vocab;
    let (stored, teacher) = match stored {
        // Nothing is stored ahead of a run that is only told.
        Some(path) if !args.run.dry_run || path.exists() => (Some(Stored::open(path, vocab)?), None),
        _ => (None, teacher),
    };
    let (teacher, teacher_cx) = teacher.unzip();
    let asks = args.run.exact_match;
    let batcher = |pipeline| Batcher { pipeline, max_tokens: args.max_tokens, asks };
    let pairs = Pairs {
        student: batcher(&pipeline),
        teacher: teacher.as_ref().map(batcher),
        stored: stored.as_ref().map(Stored::lines).unwrap_or_default(),
        augment: args.run.augment(),
    };
    let source = match (stored, &teacher, teacher_cx) {
        (Some(stored), _, _) => Source::Stored(stored),
        (None, Some(teacher), Some(cx)) => {
            let trainer = Trainer::untrained(&*teacher.model, args.pass_tokens);
            Source::Model(Box::new(Teacher { cx, trainer }))
        }
        _ => return Err(Failure::usage("--teacher or --teacher-logits: expected one of them")),
    };
    let from = args.teacher.as_deref().unwrap_or("stored logits");
    let task = format!(
        "distill of {:?} from {from}, temperature {}, hard {}, {} tokens, {} at once, top {:?}",
        args.parts, args.temperature, args.hard, args.max_tokens, args.pass_tokens, args.top_k
    );
    let job = Job {
        parameters: &parameters,
        rows: &given.rows,
        validation: &given.held,
        options: &args.run.options(given.rows.len(), task),
        read: &|row, draw| pairs.read(row, draw),
        threads: pipeline.threads,
        write: &|cx, out| write_model(cx, &files, &parameters, out),
        out: &args.run.out,
        resume: args.run.resume,
    };
    let mut distiller = Distiller {
        student: Trainer::new(&*pipeline.model, &parameters, args.pass_tokens),
        source,
        temperature: args.temperature as f32,
        hard: args.hard as f32,
        asks: asks.then_some(&pipeline),
    };
    let activations =
        format!("activations of at most {} tokens at once, the teacher's beside them", args.pass_tokens);
    args.run.run(&mut cx, &job, &mut distiller, (args.which.model().unwrap_or("demo"), &activations))
}

/// Writes the teacher's logits of all rows.
fn store(
    args: &DistillArgs,
    path: &Path,
    rows: &[TrainRow],
    teacher: &Pipeline,
    cx: &mut Ctx,
) -> Result<(), Failure> {
    let batcher = Batcher { pipeline: teacher, max_tokens: args.max_tokens, asks: false };
    let mut writer = Writer::new(path, teacher.model.info().vocab, args.top_k)?;
    let mut trainer = Trainer::untrained(&*teacher.model, args.pass_tokens);
    let bar = Steps::new("logits", rows.len());
    let mut bad = 0;
    for some in rows.chunks(args.run.batch) {
        let read = |row: &TrainRow, _| {
            Ok::<_, std::convert::Infallible>(batcher.row(row, None, &Augment::default()))
        };
        let read = ocelli_engine::parallel::try_map(some, teacher.threads, read).unwrap_or_default();
        let (mut lines, mut examples) = (Vec::new(), Vec::new());
        for (row, example) in some.iter().zip(read) {
            match example {
                Ok(example) => {
                    lines.push(row.line);
                    examples.push(example);
                }
                Err(why) => {
                    bad += 1;
                    if bad <= MOST_TOLD {
                        note(&format!("line {}: no logits: {why}", row.line));
                    }
                }
            }
        }
        let all = logits_of(&mut trainer, cx, &examples.iter().collect::<Vec<_>>())?;
        for (line, logits) in lines.into_iter().zip(&all) {
            writer.row(line, logits)?;
        }
        bar.advance(some.len());
    }
    Ok(writer.finish()?)
}

fn features(args: &DistillArgs) -> Outcome {
    if args.run.exact_match {
        return Err(Failure::usage("--exact-match: features are no answers"));
    }
    let given = args.run.begin_with(Needs::default())?;
    let files = open::files(args.which.model())?;
    let parts = if args.parts.is_empty() { &[PartArg::Tower, PartArg::Connector][..] } else { &args.parts };
    let begun = Begun::read(&args.run, files, parts, &args.processor, &Vec::new())?;
    let (files, mut cx, parameters, pipeline) = begun.pipeline()?;
    let Some((teacher, teacher_cx)) = args.teacher()? else {
        return Err(Failure::usage("--features: expected --teacher"));
    };
    let augment = args.run.augment();
    let from = args.teacher.as_deref().unwrap_or_default();
    let processors = [&*pipeline.processor, &*teacher.processor];
    let job = Job {
        parameters: &parameters,
        rows: &given.rows,
        validation: &given.held,
        options: &args.run.options(given.rows.len(), format!("distill features to {parts:?} from {from}")),
        read: &|row, draw| Seen::read(row, draw, &augment, processors),
        threads: pipeline.threads,
        write: &|cx, out| write_model(cx, &files, &parameters, out),
        out: &args.run.out,
        resume: args.run.resume,
    };
    let mut learner = FeatureDistiller {
        student: &*pipeline.model,
        parameters: &parameters,
        teacher: &*teacher.model,
        teacher_cx,
    };
    let activations = "activations of the pictures of a row";
    args.run.run(&mut cx, &job, &mut learner, (args.which.model().unwrap_or("demo"), activations))
}
