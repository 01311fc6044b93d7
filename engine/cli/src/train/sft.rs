//! `ocelli train sft`: answers about pictures.

use std::path::Path;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::{Checkpoint, Role};
use ocelli_engine::{Ctx, Error, Loaded, Pipeline};
use ocelli_models::Leftovers;
use ocelli_train::run::write_model;
use ocelli_train::{Batcher, Job, Lora, LoraOptions, Parameters, Trainer};

use super::begun::chooses;
use crate::args::{LoraArg, SftArgs};
use crate::fail::{Failure, Outcome};
use crate::open;

/// What is trained.
enum Trains {
    /// Weights.
    Weights(Parameters),
    /// An adapter beside them.
    Adapter(Box<Lora>),
}

impl Trains {
    fn parameters(&self) -> &Parameters {
        match self {
            Self::Weights(parameters) => parameters,
            Self::Adapter(lora) => &lora.parameters,
        }
    }

    fn write(&self, cx: &mut Ctx, files: &ModelFiles, out: &Path) -> Result<(), Error> {
        match self {
            Self::Weights(parameters) => write_model(cx, files, parameters, out),
            Self::Adapter(lora) => lora.write(cx, out),
        }
    }
}

impl SftArgs {
    /// Loads the model, all or parts of it as what is trained, or with an adapter.
    fn load(&self, files: &ModelFiles, cx: &mut Ctx) -> Result<(Loaded, Trains), Failure> {
        let roles = ocelli_models::owners(files)?;
        let source = Checkpoint::open(files).map_err(Error::from)?;
        let Some(LoraArg { r, alpha, targets }) = self.lora.clone() else {
            let chosen = |name: &str| chooses(&self.parts, &roles, name);
            let (parameters, checkpoint) = Parameters::read(cx, files, &source, &chosen)?;
            let loaded = ocelli_models::load_from(files, &checkpoint, cx, Leftovers::Ignore)?;
            return Ok((loaded, Trains::Weights(parameters)));
        };
        let loaded = ocelli_models::load_from(files, &source, cx, Leftovers::Ignore)?;
        let options = LoraOptions { r, alpha, targets, seed: self.run.seed };
        let chosen = |path: &str| match self.parts.is_empty() {
            true => roles.get(path) == Some(&Role::Decoder),
            false => chooses(&self.parts, &roles, path),
        };
        let base = self.which.model();
        Ok((loaded, Trains::Adapter(Box::new(Lora::new(cx, &options, &chosen, base)?))))
    }
}

/// Runs the task.
pub fn sft(args: &SftArgs) -> Outcome {
    let files = open::files(args.which.model())?;
    let given = args.run.begin()?;
    let (device, mut cx) = args.run.device()?;
    let (mut loaded, trains) = args.load(&files, &mut cx)?;
    open::set_processor(&mut *loaded.processor, &args.processor)?;
    let pipeline = Pipeline::new(&files, loaded, device.caps().units)?;
    let asks = args.run.exact_match;
    let batcher = Batcher { pipeline: &pipeline, max_tokens: args.max_tokens, asks };
    let augment = args.run.augment();
    let task = format!(
        "sft of {:?}, adapter {:?}, {} tokens, {} at once",
        args.parts, args.lora, args.max_tokens, args.pass_tokens
    );
    let job = Job {
        parameters: trains.parameters(),
        rows: &given.rows,
        validation: &given.held,
        options: &args.run.options(given.rows.len(), task),
        read: &|row, draw| batcher.row(row, draw, &augment),
        threads: pipeline.threads,
        write: &|cx, out| trains.write(cx, &files, out),
        out: &args.run.out,
        resume: args.run.resume,
    };
    let mut trainer = Trainer::new(&*pipeline.model, trains.parameters(), args.pass_tokens);
    trainer.lean = args.recompute;
    trainer.asks = asks.then_some(&pipeline);
    let activations = format!("activations of at most {} tokens at once", args.pass_tokens);
    args.run.run(&mut cx, &job, &mut trainer, (args.which.model().unwrap_or("demo"), &activations))
}
