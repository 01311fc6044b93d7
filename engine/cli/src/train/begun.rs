//! A model that is to be trained.

use std::collections::HashMap;
use std::path::Path;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::{Checkpoint, Role};
use ocelli_engine::{Ctx, Error, Loaded, Pipeline};
use ocelli_models::Leftovers;
use ocelli_train::{Fresh, Parameters};

use crate::args::{LearnArgs, PartArg};
use crate::fail::Failure;
use crate::open;

/// Whether a tensor is to be trained, by the role of the module that it is of; all are where no parts are named.
pub fn chooses(parts: &[PartArg], roles: &HashMap<String, Role>, name: &str) -> bool {
    if parts.is_empty() {
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
        parts.iter().any(|part| match part {
            PartArg::Tower => role == Role::Tower,
            PartArg::Connector => role == Role::Connector,
            PartArg::Decoder => role == Role::Decoder,
            PartArg::Embedding => matches!(role, Role::Embedding | Role::Head),
        })
    })
}

/// A model on the memory of its parameters.
pub struct Begun {
    /// Its files.
    pub files: ModelFiles,
    /// The context that it is in.
    pub cx: Ctx,
    /// What is trained.
    pub parameters: Parameters,
    /// The model.
    pub loaded: Loaded,
    /// Threads of the context.
    pub threads: usize,
}

/// Tensors that are trained beside a model: names, shapes, first values.
pub type Beside = Vec<(String, Vec<usize>, Vec<f32>)>;

impl Begun {
    /// The weights of a model, those of some parts to be trained.
    pub fn read(
        run: &LearnArgs,
        files: ModelFiles,
        parts: &[PartArg],
        processor: &[(String, String)],
        beside: &Beside,
    ) -> Result<Self, Failure> {
        let (_, mut cx) = run.device()?;
        let roles = ocelli_models::owners(&files)?;
        let source = Checkpoint::open(&files).map_err(Error::from)?;
        let chosen = |name: &str| chooses(parts, &roles, name);
        let (parameters, checkpoint) = Parameters::read_beside(&mut cx, &files, &source, &chosen, beside)?;
        Self::load(files, cx, (parameters, &checkpoint), processor)
    }

    /// Fresh weights by a configuration, whose folder has the model's other files.
    pub fn fresh(
        run: &LearnArgs,
        config: &Path,
        parts: &[PartArg],
        processor: &[(String, String)],
    ) -> Result<Self, Failure> {
        if config.file_name().is_none_or(|name| name != "config.json") || !config.is_file() {
            let what = format!("{}: expected a file config.json", config.display());
            return Err(
                Failure::new(what).hint("tokenizer and processor lie beside it, as in any model's folder")
            );
        }
        let files = ModelFiles::dir(config.parent().unwrap_or(Path::new("")));
        let (_, mut cx) = run.device()?;
        let tensors = ocelli_models::tensors(&files)?;
        let chosen = |name: &str| chooses(parts, &tensors.owners, name);
        let fresh = Fresh::of(&files, run.seed)?;
        let (parameters, checkpoint) = Parameters::fresh(&mut cx, &files, &tensors.all, &fresh, &chosen)?;
        Self::load(files, cx, (parameters, &checkpoint), processor)
    }

    fn load(
        files: ModelFiles,
        mut cx: Ctx,
        (parameters, checkpoint): (Parameters, &Checkpoint),
        processor: &[(String, String)],
    ) -> Result<Self, Failure> {
        let mut loaded = ocelli_models::load_from(&files, checkpoint, &mut cx, Leftovers::Ignore)?;
        open::set_processor(&mut *loaded.processor, processor)?;
        let threads = cx.stream().caps().units;
        Ok(Self { files, cx, parameters, loaded, threads })
    }

    /// The model as one that answers, and the rest.
    pub fn pipeline(self) -> Result<(ModelFiles, Ctx, Parameters, Pipeline), Failure> {
        let pipeline = Pipeline::new(&self.files, self.loaded, self.threads)?;
        Ok((self.files, self.cx, self.parameters, pipeline))
    }
}
