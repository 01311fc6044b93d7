//! `ocelli train sft`: answers about pictures.

use std::collections::HashMap;

use ocelli_engine::Pipeline;
use ocelli_engine::weights::{Checkpoint, Role};
use ocelli_models::Leftovers;
use ocelli_train::run::write_model;
use ocelli_train::{Batcher, Job, Parameters, Trainer};

use crate::args::{PartArg, SftArgs};
use crate::fail::Outcome;
use crate::open;

impl SftArgs {
    /// Whether a tensor is to be trained, by the role of the module that it is of.
    fn chooses(&self, roles: &HashMap<String, Role>, name: &str) -> bool {
        if self.parts.is_empty() {
            return true;
        }
        let mut at = name;
        let role = loop {
            match (roles.get(at), at.rsplit_once('.')) {
                (Some(role), _) => break Some(*role),
                (None, Some((parent, _))) => at = parent,
                (None, None) => break None,
            }
        };
        role.is_some_and(|role| {
            self.parts.iter().any(|part| match part {
                PartArg::Tower => role == Role::Tower,
                PartArg::Connector => role == Role::Connector,
                PartArg::Decoder => role == Role::Decoder,
                PartArg::Embedding => matches!(role, Role::Embedding | Role::Head),
            })
        })
    }
}

/// Runs the task.
pub fn sft(args: &SftArgs) -> Outcome {
    let files = open::files(args.which.model())?;
    let given = args.run.begin()?;
    let (device, mut cx) = args.run.device()?;
    let roles = ocelli_models::owners(&files)?;
    let source = Checkpoint::open(&files).map_err(ocelli_engine::Error::from)?;
    let chooses = |name: &str| args.chooses(&roles, name);
    let (parameters, checkpoint) = Parameters::read(&mut cx, &files, &source, &chooses)?;
    drop(source);
    let mut loaded = ocelli_models::load_from(&files, &checkpoint, &mut cx, Leftovers::Ignore)?;
    open::set_processor(&mut *loaded.processor, &args.processor)?;
    let pipeline = Pipeline::new(&files, loaded, device.caps().units)?;
    drop(checkpoint);
    let batcher = Batcher { pipeline: &pipeline, max_tokens: args.max_tokens };
    let task = format!("sft of {:?}, {} tokens, {} at once", args.parts, args.max_tokens, args.pass_tokens);
    let job = Job {
        parameters: &parameters,
        rows: &given.rows,
        validation: &given.held,
        options: &args.run.options(given.rows.len(), task),
        read: &|row, _| batcher.row(row),
        threads: pipeline.threads,
        write: &|cx, out| write_model(cx, &files, &parameters, out),
        out: &args.run.out,
        resume: args.run.resume,
    };
    let mut trainer = Trainer::new(&*pipeline.model, &parameters, args.pass_tokens);
    let activations = format!("activations of at most {} tokens at once", args.pass_tokens);
    args.run.run(&mut cx, &job, &mut trainer, (args.which.model().unwrap_or("demo"), &activations))
}
