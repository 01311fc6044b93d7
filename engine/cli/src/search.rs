//! `ocelli index` and `ocelli search`: pictures of a folder by what is in them.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::hub::ModelRef;
use ocelli_engine::image::{DecodeOptions, PictureSource};
use ocelli_engine::store::model_hash;
use ocelli_engine::{Ctx, EmbeddingPipeline, VectorKind};
use ocelli_models::Leftovers;
use ocelli_search::{
    About, Found, Index, Progress, Query, SearchError, Settings, page, shown, thumbnail, update,
};
use serde::Serialize;
use serde_json::json;

use crate::args::{DeviceArgs, IndexArgs, SearchArgs};
use crate::fail::{Failure, Outcome, SOME_FAILED, note, print, print_json};
use crate::interrupt::Gentle;
use crate::open::{self, Setup};
use crate::progress::{Spinner, Steps};

/// Pixels of the longest side of a thumbnail.
const THUMBNAIL: usize = 320;

impl From<SearchError> for Failure {
    fn from(error: SearchError) -> Self {
        let hint = error.hint();
        let failure = match error {
            SearchError::Engine(error) => return error.into(),
            SearchError::Interrupted => Self::interrupted("interrupted; the index has what was done"),
            error => Self::new(error.to_string()),
        };
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// A model that gives vectors of some kind, and what an index of it says.
pub struct Vectors {
    /// What makes vectors.
    pub pipeline: EmbeddingPipeline,
    /// Where that runs.
    pub cx: Ctx,
    /// What an index says of it.
    pub about: About,
}

impl Vectors {
    /// Loads a model; `root` is the folder of the index.
    pub fn load(
        model: Option<&str>,
        processor: &[(String, String)],
        leftovers: Leftovers,
        device: &DeviceArgs,
        root: PathBuf,
    ) -> Result<Self, Failure> {
        let (device, precision) = open::device(device)?;
        let files = open::vector_files(model)?;
        let (loaded, threads, mut cx) =
            open::loaded(&files, &Setup::plain(processor, leftovers), &*device, precision)?;
        let pipeline = EmbeddingPipeline::of_any(&files, loaded, threads, &mut cx)?;
        let about = about(model, &files, &pipeline, processor, root)?;
        Ok(Self { pipeline, cx, about })
    }
}

/// What an index of a model says.
pub fn about(
    model: Option<&str>,
    files: &ModelFiles,
    pipeline: &EmbeddingPipeline,
    processor: &[(String, String)],
    root: PathBuf,
) -> Result<About, Failure> {
    let name = match ModelRef::parse(model)? {
        ModelRef::Local(path) => path.canonicalize()?.display().to_string(),
        other => other.to_string(),
    };
    let info = pipeline.model.info();
    Ok(About {
        model: name,
        model_hash: model_hash(files)?,
        family: info.family.to_owned(),
        kind: pipeline.kind,
        dimension: info.d_model,
        processor: processor.to_vec(),
        root,
    })
}

/// A model's name as an index keeps it, as `--model` takes it.
fn named(model: &str) -> Option<String> {
    (model != "demo").then(|| model.to_owned())
}

/// Runs `ocelli index`: exit code 3 if some pictures failed.
pub fn index(args: &IndexArgs) -> Outcome {
    let named_folder = |error| Failure::new(format!("{}: {error}", args.folder.display()));
    if !args.folder.is_dir() {
        let why = if args.folder.exists() { "expected a folder, found a file" } else { "no such folder" };
        return Err(Failure::new(format!("{}: {why}", args.folder.display())));
    }
    let root = args.folder.canonicalize().map_err(named_folder)?;
    if let Some(folder) =
        args.out.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
    {
        return Err(Failure::new(format!("--out: {}: no such folder", folder.display())));
    }
    let (mut model, mut processor) = (args.model.clone(), args.processor.clone());
    let there = args.out.exists();
    if there {
        let old = Index::open(&args.out)?;
        if model.is_none() {
            model = named(&old.about().model);
        }
        if processor.is_empty() {
            processor.clone_from(&old.about().processor);
        }
    }
    if !args.json {
        open::tell_vectors(model.as_deref());
    }
    let spinner = Spinner::new("loading the model");
    let leftovers = if args.strict { Leftovers::Refuse } else { Leftovers::Warn };
    let Vectors { pipeline, mut cx, about } =
        Vectors::load(model.as_deref(), &processor, leftovers, &args.device, root)?;
    let mut index = match there {
        true => Index::open_for(&args.out, &about)?,
        false => Index::create(&args.out, &about)?,
    };
    drop(spinner);
    if about.kind == VectorKind::PooledTower && !args.json {
        note(&format!(
            "vectors are {} of a {} model: pictures are found by pictures alone",
            about.kind, about.family
        ));
    }
    let decode = DecodeOptions { max_pixels: args.max_pixels, ..DecodeOptions::default() };
    let gentle = Gentle::begin();
    let mut bar = None;
    let mut watch = |progress: Progress<'_>| {
        match progress {
            Progress::Begun(files) => bar = Some(Steps::new("pictures", files)),
            Progress::Done(count) => bar.iter().for_each(|bar| bar.advance(count)),
            Progress::Failed(path, why) => {
                let text = if why.starts_with(path) { why.to_owned() } else { format!("{path}: {why}") };
                let tell = || tracing::warn!("{text}");
                bar.as_ref().map_or_else(tell, |bar| bar.pause(tell));
            }
        }
        if gentle.asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let report = update(&mut index, &pipeline, &mut cx, &Settings { decode, batch: args.batch }, &mut watch);
    drop(bar);
    let report = report?;
    match args.json {
        true => print_json(&Indexed { schema: "ocelli.index.v1", about: &about, report: &report })?,
        false => note(&report.to_string()),
    }
    if report.failed > 0 {
        let all = report.pictures + report.failed;
        Failure::new(format!("{} of {all} pictures failed", report.failed)).tell();
        return Ok(ExitCode::from(SOME_FAILED));
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Indexed<'a> {
    schema: &'static str,
    #[serde(flatten)]
    about: &'a About,
    #[serde(flatten)]
    report: &'a ocelli_search::Report,
}

/// Runs `ocelli search`.
pub fn search(args: &SearchArgs) -> Outcome {
    let index = Index::open(&args.index)?;
    let about = index.about().clone();
    if args.text.is_some() && about.kind == VectorKind::PooledTower {
        return Err(Failure::usage(format!(
            "{}: vectors are {} of a {} model, which texts have none of: expected --image FILE",
            args.index.display(),
            about.kind,
            about.family
        ))
        .hint("an index that was made by a dual encoder, such as CLIP or SigLIP, is asked by texts too"));
    }
    if args.text.as_ref().is_some_and(|text| text.trim().is_empty()) {
        return Err(Failure::usage("the text is empty"));
    }
    let decode = DecodeOptions { max_pixels: args.max_pixels, ..DecodeOptions::default() };
    let picture = args.image.as_ref().map(|path| {
        open::is_file_name(path)?;
        Ok::<_, Failure>((path, PictureSource::File(path.clone())))
    });
    let picture = picture.transpose()?;
    let model = args.model.clone().or_else(|| named(&about.model));
    if !args.json {
        open::tell_vectors(model.as_deref());
    }
    let spinner = Spinner::new("loading the model");
    let root = about.root.clone();
    let loaded = Vectors::load(model.as_deref(), &about.processor, Leftovers::Warn, &args.device, root);
    let Vectors { pipeline, mut cx, about: ours } = loaded?;
    index.is_of(&ours)?;
    let query = match (&args.text, &picture) {
        (_, Some((_, source))) => {
            let prepared = pipeline.read(std::slice::from_ref(source), &decode);
            pipeline.each(&mut cx, prepared).pop()
        }
        (Some(text), None) => Some(
            pipeline
                .tokens(text)
                .and_then(|tokens| Ok(pipeline.texts(&mut cx, &[tokens])?.pop().unwrap_or_default())),
        ),
        (None, None) => None,
    };
    let query = query.ok_or_else(|| Failure::usage("expected a text or --image FILE"))??;
    spinner.say("searching");
    let matrix = index.matrix()?;
    let hits = matrix.nearest(&query, args.k, pipeline.threads);
    let side = if args.html.is_some() { THUMBNAIL } else { 0 };
    let mut found = shown(&about, &matrix, &hits, side, &decode, pipeline.threads);
    drop(spinner);
    if let Some(path) = &args.html {
        let text = match (&args.text, &picture) {
            (_, Some((name, source))) => {
                let small = thumbnail(source, THUMBNAIL, &decode)?;
                page(&about, Query::Picture(&name.display().to_string(), &small), &found)
            }
            (text, None) => page(&about, Query::Text(text.as_deref().unwrap_or_default()), &found),
        };
        write(path, &text)?;
        found.iter_mut().for_each(|found| found.thumbnail = None);
    }
    if args.json {
        let image = args.image.as_ref().map(|path| path.display().to_string());
        print_json(&json!({
            "schema": "ocelli.search.v1", "index": args.index.display().to_string(), "model": about.model,
            "kind": about.kind, "folder": about.root, "pictures": matrix.len(), "text": args.text, "image": image,
            "results": found,
        }))?;
    } else {
        print(
            &found
                .iter()
                .map(|Found { path, score, .. }| format!("{score:.4}  {path}\n"))
                .collect::<String>(),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| Failure::new(format!("--html: {}: {error}", path.display())))
}
