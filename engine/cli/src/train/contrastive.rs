//! `ocelli train contrastive`: pairs of pictures and texts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ocelli_engine::EmbeddingPipeline;
use ocelli_engine::Error;
use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::Checkpoint;
use ocelli_models::Leftovers;
use ocelli_train::run::write_model;
use ocelli_train::{Augment, Contrastive, Draw, Fresh, Job, Pair, Parameters, RunOptions, TrainRow};
use tracing::subscriber::NoSubscriber;

use super::Needs;
use crate::args::ContrastiveArgs;
use crate::fail::{Failure, Outcome};
use crate::open;

impl ContrastiveArgs {
    fn model(&self) -> Option<&str> {
        self.bare.as_deref().or(self.named.as_deref())
    }

    /// The files of the model, or those of its configuration alone.
    fn files(&self) -> Result<ModelFiles, Failure> {
        let Some(config) = &self.config else {
            if !self.run.json {
                open::tell_vectors(self.model());
            }
            return open::vector_files(self.model());
        };
        if config.file_name().is_none_or(|name| name != "config.json") || !config.is_file() {
            let what = format!("--config: expected a file config.json, found {}", config.display());
            return Err(
                Failure::usage(what).hint("files of tokenizer and processor are looked for beside it")
            );
        }
        let folder = config.parent().filter(|folder| !folder.as_os_str().is_empty());
        Ok(ModelFiles::dir(folder.unwrap_or(std::path::Path::new("."))))
    }

    /// Whether a tensor is to be trained.
    fn chooses(&self, name: &str) -> bool {
        let chosen = self.parts.is_empty() || self.parts.iter().any(|part| part.has(name));
        chosen && !self.freeze.iter().any(|start| name.starts_with(start.as_str()))
    }
}

/// Makes pairs of rows.
struct Reader<'a> {
    pipeline: &'a EmbeddingPipeline,
    augment: Augment,
    /// Texts that were longer than the model takes.
    cut: AtomicUsize,
}

impl Reader<'_> {
    /// The pair of a row. A text that is cut is told the first time that it is seen.
    fn pair(&self, row: &TrainRow, draw: Option<Draw>) -> ocelli_engine::Result<Pair> {
        let pictures = self.augment.pictures(row, draw)?;
        let (Some(image), Some(text)) = (pictures.first(), row.text()) else {
            return Err(Error::Train("expected a picture and a text".into()));
        };
        let picture = Arc::new(self.pipeline.processor.prepare(image, 1)?);
        let silent = NoSubscriber::default();
        let tokens = tracing::subscriber::with_default(silent, || self.pipeline.tokens(text))?;
        let (most, first) =
            (self.pipeline.model.info().max_positions, draw.is_none_or(|draw| draw.epoch == 0));
        if first && tokens.len() == most {
            let found = self.pipeline.tokenizer.encode(text)?.len();
            if found > most && self.cut.fetch_add(1, Ordering::Relaxed) < MOST_CUT {
                tracing::warn!("line {}: a text of {found} tokens is cut to {most}", row.line);
            }
        }
        Ok(Pair { picture, text: tokens })
    }
}

/// Texts that are cut and told one by one.
const MOST_CUT: usize = 3;

/// Runs the task.
pub fn contrastive(args: &ContrastiveArgs) -> Outcome {
    let files = args.files()?;
    let given = args.run.begin_with(Needs { text: true, pairs: true, ..Needs::default() })?;
    let (device, mut cx) = args.run.device()?;
    let chooses = |name: &str| args.chooses(name);
    let (parameters, checkpoint) = match &args.config {
        Some(_) => {
            let tensors = ocelli_models::tensors(&files)?;
            let fresh = Fresh::of(&files, args.run.seed)?;
            Parameters::fresh(&mut cx, &files, &tensors.all, &fresh, &chooses)?
        }
        None => {
            let source = Checkpoint::open(&files).map_err(Error::from)?;
            Parameters::read(&mut cx, &files, &source, &chooses)?
        }
    };
    let mut loaded = ocelli_models::load_from(&files, &checkpoint, &mut cx, Leftovers::Ignore)?;
    open::set_processor(&mut *loaded.processor, &args.processor)?;
    let pipeline = EmbeddingPipeline::new(&files, loaded, device.caps().units)?;
    drop(checkpoint);
    let task = format!("contrastive of {:?} but {:?}, {} at once", args.parts, args.freeze, args.chunk);
    let reader = Reader { pipeline: &pipeline, augment: args.run.augment(), cut: AtomicUsize::new(0) };
    let job = Job {
        parameters: &parameters,
        rows: &given.rows,
        validation: &given.held,
        options: &RunOptions { together: args.together, ..args.run.options(given.rows.len(), task) },
        read: &|row, draw| reader.pair(row, draw),
        threads: pipeline.threads,
        write: &|cx, out| write_model(cx, &files, &parameters, out),
        out: &args.run.out,
        resume: args.run.resume,
    };
    let mut learner = Contrastive::new(&*pipeline.model, &parameters, (args.run.batch, args.chunk))?;
    let activations = format!("activations of at most {} pairs at once", args.chunk);
    let name = args.config.as_ref().map(|config| config.display().to_string());
    let name = name.as_deref().or(args.model()).unwrap_or("demo");
    let done = args.run.run(&mut cx, &job, &mut learner, (name, &activations));
    let cut = reader.cut.load(Ordering::Relaxed);
    if cut > MOST_CUT {
        tracing::warn!("{cut} texts were cut");
    }
    done
}
