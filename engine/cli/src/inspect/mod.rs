//! `ocelli inspect`: what a model is, how it would run, and what it would take.
//!
//! Nothing is computed and no weights are read: the request is planned by the very code that would run it, on a stream
//! that only notes what it is given.

mod fits;
mod modules;
mod table;

use std::collections::BTreeMap;
use std::process::ExitCode;

use ocelli_bench::plan::{Plan, Wanted};
use ocelli_engine::files::ModelFiles;
use ocelli_engine::vlm::PartInfo;
use ocelli_engine::weights::{Checkpoint, Copied, Quantization};
use ocelli_engine::{Ctx, Error, Gives, Precision};
use ocelli_kernels::{Backend, Caps, DType};
use ocelli_models::{Family, Leftovers};
use serde::Serialize;
use serde_json::Value;

use self::fits::Fits;
use self::modules::Module;
use crate::args::InspectArgs;
use crate::fail::{Failure, Outcome, print, print_json};
use crate::open;

/// What is known of a model. Fields from `parts` on are empty if it is refused before they are known.
#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    model: String,
    model_type: Option<String>,
    architectures: Vec<String>,
    family: Option<&'static str>,
    backend: Backend,
    device: String,
    isa: &'static str,
    threads: usize,
    dtype: DType,
    tensors: Tensors,
    /// `quantization_config` in words.
    quantization: Option<String>,
    /// Parameters of all parts.
    parameters: u64,
    parts: Vec<Part>,
    /// The matrices, one by one.
    modules: Vec<Module>,
    /// Tensors of the file that the model does not read.
    unused: Vec<String>,
    /// Bytes of planes that are made beside the file, whose order or width of codes no kernel takes.
    made_bytes: u64,
    /// Tensors that are copied because the file does not align them.
    copied: Copies,
    /// What `--reorder` would change; absent where nothing lies so.
    #[serde(skip_serializing_if = "Option::is_none")]
    reorder: Option<modules::Reorder>,
    /// The reference's class of image processor, and what it does.
    processor: Option<String>,
    plan: Option<Plan>,
    /// Whether prompts that begin likewise are read once, where a command keeps them (`batch`).
    shared_prompts: Option<bool>,
    /// Whether it fits this machine.
    fits: Fits,
    /// Why the model cannot run; empty if it can.
    refused: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Tensors {
    path: String,
    files: usize,
    count: usize,
    bytes: u64,
    /// Number of tensors of each stored type.
    types: BTreeMap<String, usize>,
}

#[derive(Debug, Serialize)]
struct Part {
    name: &'static str,
    parameters: u64,
    bytes: u64,
    /// Number of matrices in each format.
    formats: BTreeMap<String, usize>,
}

#[derive(Debug, Default, Serialize)]
struct Copies {
    tensors: usize,
    bytes: u64,
}

impl From<PartInfo> for Part {
    fn from(part: PartInfo) -> Self {
        let PartInfo { name, parameters, bytes, formats } = part;
        Self { name, parameters, bytes, formats: formats.into_iter().collect() }
    }
}

impl From<Copied> for Copies {
    fn from(copied: Copied) -> Self {
        Self { tensors: copied.tensors, bytes: copied.bytes }
    }
}

/// Runs the command: exit code 1 if the model cannot run.
pub fn inspect(args: &InspectArgs) -> Outcome {
    let files = open::files(args.which.model())?;
    let (device, precision) = open::device(&args.device)?;
    let config: Value = files.require_json("config.json").map_err(Error::from)?;
    let checkpoint = match Checkpoint::open(&files) {
        Ok(checkpoint) => checkpoint.planned(),
        Err(error) => {
            // A model that nobody knows is told as such, whatever else it lacks.
            ocelli_models::family(&files)?;
            return Err(Error::from(error).into());
        }
    };
    let mut report = Report::new(args.which.model(), &config, &checkpoint, device.caps(), precision);
    let wanted = |sees: bool| {
        let (prompt_tokens, max_tokens) = (args.prompt_tokens, args.max_tokens);
        Ok(Wanted { images: sizes(args, sees)?, prompt_tokens, max_tokens })
    };
    let failure = match report.plan(wanted, &args.processor, &files, &checkpoint, device.caps(), precision) {
        Ok(()) => None,
        Err(failure) if failure.is_usage() => return Err(failure),
        Err(failure) => {
            report.refused.push(failure.message().to_owned());
            Some(failure)
        }
    };
    if args.json {
        print_json(&report)?;
    } else {
        let mut text = report.table();
        if args.modules {
            modules::table(&report.modules, &mut text);
        }
        print(&text)?;
    }
    match (failure, report.refused.first()) {
        (Some(failure), _) => Err(failure),
        (None, Some(reason)) => Err(Failure::new(format!("{}: cannot run: {reason}", report.model))),
        (None, None) => Ok(ExitCode::SUCCESS),
    }
}

/// What `ocelli inspect --json` tells of a model on a device, for a picture of 512x512, if it takes such.
///
/// # Errors
/// If the files cannot be read.
pub fn planned(
    model: Option<&str>,
    processor: &[(String, String)],
    caps: &Caps,
    precision: Precision,
) -> Result<Value, Failure> {
    let files = open::files(model)?;
    let config: Value = files.require_json("config.json").map_err(Error::from)?;
    let checkpoint = Checkpoint::open(&files).map_err(Error::from)?;
    let mut report = Report::new(model, &config, &checkpoint, caps, precision);
    let wanted = |sees: bool| {
        let images = if sees { vec![(512, 512)] } else { Vec::new() };
        Ok(Wanted { images, prompt_tokens: 32, max_tokens: 512 })
    };
    if let Err(failure) = report.plan(wanted, processor, &files, &checkpoint, caps, precision) {
        report.refused.push(failure.message().to_owned());
    }
    serde_json::to_value(&report).map_err(|error| Failure::new(format!("a report: {error}")))
}

impl Report {
    /// What configuration and headers alone tell.
    fn new(
        model: Option<&str>,
        config: &Value,
        checkpoint: &Checkpoint,
        caps: &Caps,
        precision: Precision,
    ) -> Self {
        let mut types: BTreeMap<String, usize> = BTreeMap::new();
        for (_, info) in checkpoint.infos() {
            *types.entry(info.dtype.to_string()).or_default() += 1;
        }
        let architectures = config["architectures"].as_array().into_iter().flatten();
        let quantization = checkpoint.quantization().map(Quantization::name);
        Self {
            schema: "ocelli.inspect.v1",
            model: model.unwrap_or("demo").to_owned(),
            model_type: config["model_type"].as_str().map(str::to_owned),
            architectures: architectures.filter_map(Value::as_str).map(str::to_owned).collect(),
            family: None,
            backend: caps.backend,
            device: caps.device.clone(),
            isa: caps.isa.name(),
            threads: caps.units,
            dtype: precision.dtype,
            tensors: Tensors {
                path: checkpoint.path().to_owned(),
                files: checkpoint.files().len(),
                count: checkpoint.names().count(),
                bytes: checkpoint.bytes(),
                types,
            },
            quantization,
            parameters: 0,
            parts: Vec::new(),
            modules: Vec::new(),
            unused: Vec::new(),
            made_bytes: 0,
            copied: Copies::default(),
            reorder: None,
            processor: None,
            plan: None,
            shared_prompts: None,
            fits: Fits::of(checkpoint.bytes(), caps.backend),
            refused: Vec::new(),
        }
    }

    /// Loads the model without a device and plans the request. Errors are the reason why it cannot run.
    fn plan(
        &mut self,
        wanted: impl FnOnce(bool) -> Result<Wanted, Failure>,
        processor_fields: &[(String, String)],
        files: &ModelFiles,
        checkpoint: &Checkpoint,
        caps: &Caps,
        precision: Precision,
    ) -> Result<(), Failure> {
        let family = ocelli_models::family(files)?;
        self.family = Some(family.name);
        self.processor = Some(processor(files, family)?);
        let (mut cx, log) = Ctx::dry(caps.clone(), precision);
        let mut loaded = ocelli_models::load_from(files, checkpoint, &mut cx, Leftovers::Ignore)?;
        self.parts = loaded.model.parts().into_iter().map(Part::from).collect();
        self.shared_prompts =
            matches!(loaded.model.gives(), Gives::Answers).then(|| loaded.model.info().kv.shares());
        self.modules = modules::of(checkpoint.notes(), &checkpoint.banks(), caps, precision.dtype);
        self.reorder = modules::Reorder::of(&self.modules, caps, precision.dtype);
        self.parameters = self.parts.iter().map(|part| part.parameters).sum();
        self.unused = checkpoint.unused().map(str::to_owned).collect();
        self.copied = checkpoint.copied().into();
        self.made_bytes = checkpoint.made();
        open::set_processor(&mut *loaded.processor, processor_fields)?;
        let wanted = wanted(loaded.processor.sees())?;
        let bytes = checkpoint.used_bytes() + checkpoint.made();
        let plan = match Plan::make(&wanted, files, loaded, &mut cx, &log, bytes) {
            Err(error @ Error::PromptTooLong { .. }) if !wanted.images.is_empty() => {
                let whole = || -> ocelli_engine::Result<usize> {
                    let (mut cx, log) = Ctx::dry(caps.clone(), precision);
                    let mut loaded = ocelli_models::load_from(files, checkpoint, &mut cx, Leftovers::Ignore)?;
                    loaded.processor.set("do_image_splitting", "false")?;
                    let plan = Plan::make(&wanted, files, loaded, &mut cx, &log, 0)?;
                    Ok(plan.request.prompt_tokens)
                };
                return Err(open::shorter(error, whole().ok()));
            }
            plan => plan?,
        };
        self.refused.extend(plan.refusals());
        self.fits = Fits::of(plan.memory.total, caps.backend);
        self.plan = Some(plan);
        Ok(())
    }
}

/// The class that the files name, and what becomes of pictures.
fn processor(files: &ModelFiles, family: &Family) -> Result<String, Failure> {
    let read = |name: &str| files.json::<Value>(name).map_err(Error::from);
    let (outer, flat) = (read("processor_config.json")?, read("preprocessor_config.json")?);
    let nested = outer.as_ref().and_then(|outer| outer.get("image_processor"));
    let named = |from: &Value| {
        let keys = ["image_processor_type", "feature_extractor_type"];
        keys.iter().find_map(|key| Some(from.get(*key)?.as_str()?.to_owned()))
    };
    let class = nested.and_then(named).or_else(|| flat.as_ref().and_then(named));
    Ok(class.map_or_else(String::new, |class| class + ": ") + family.pictures)
}

/// Width and height of each picture; by default there is one, if the model `sees` pictures.
fn sizes(args: &InspectArgs, sees: bool) -> Result<Vec<(usize, usize)>, Failure> {
    let mut sizes = args.image_sizes.clone();
    if sizes.is_empty() && (sees || args.images.is_some()) {
        sizes.push((512, 512));
    }
    if let Some(count) = args.images.map(usize::from) {
        if count < args.image_sizes.len() {
            let given = args.image_sizes.len();
            return Err(Failure::usage(format!(
                "--images {count}: expected at least {given}, the number of --image-size"
            )));
        }
        sizes.resize(count, sizes[sizes.len() - 1]);
    }
    Ok(sizes)
}
