//! `ocelli compare`: one model on several backends, in several types and formats.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use ocelli_bench::compare::{
    Bounds, Candidate, Compared, Options, Question, Reference, Report, STORED, is_reference,
};
use ocelli_engine::choices::cache_dir;
use ocelli_engine::devices::tuned;
use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{DecodeOptions, decode_bytes, decode_file};
use ocelli_engine::weights::{self, Event, QuantizeOptions, quantize_with};
use ocelli_engine::{Error, Precision};
use ocelli_kernels::{Backend, DType, Device, DeviceOptions};
use ocelli_models::Leftovers;

use crate::args::{CompareArgs, ComparedFormat, FormatArg};
use crate::fail::{FAILED, Failure, Outcome, note, print, print_json};
use crate::interrupt::Gentle;
use crate::open::{self, Setup};
use crate::progress::Spinner;
use crate::quantize::usual_layout;

impl ComparedFormat {
    fn name(self) -> String {
        let rounded = self.0.and_then(|format| format.to_possible_value());
        rounded.map_or_else(|| STORED.to_owned(), |value| value.get_name().to_owned())
    }
}

/// A folder that is gone when this is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The model in a format.
struct Stored {
    format: ComparedFormat,
    files: ModelFiles,
    _folder: Option<Folder>,
}

/// Runs the command: exit code 1 if a run drifts past its bounds.
pub fn compare(args: &CompareArgs) -> Outcome {
    let files = open::files(args.which.model())?;
    args.html.as_deref().map(writable).transpose()?;
    let questions = questions(args)?;
    let gentle = Gentle::begin();
    let devices = devices(args)?;
    let stored = formats(args, &files, &gentle)?;
    let spinner = Spinner::new("loading");
    let mut progress = |text: &str| {
        spinner.say(text);
        if gentle.asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let options = Options { tokens: args.max_tokens, runs: args.runs };

    let cpu = device(args, Backend::Cpu)?;
    let (pipeline, mut cx) = open::pipeline_of(
        &files,
        &Setup::plain(&args.processor, Leftovers::Warn),
        &*cpu,
        Precision::default(),
    )?;
    let reference = Reference::new(&pipeline, &mut cx, &questions, options.tokens, &mut progress)?;
    let mut base = Candidate {
        format: STORED,
        caps: cpu.caps(),
        pipeline: &pipeline,
        cx: &mut cx,
        bounds: Bounds::default(),
    };
    let mut runs = vec![reference.compare(&mut base, options, true, &mut progress)?];
    drop((pipeline, cx));

    let mut left_out = Vec::new();
    for device in &devices {
        for model in &stored {
            for dtype in args.dtypes.iter().map(|dtype| dtype.on(device.caps())) {
                let (caps, format) = (device.caps(), model.format.name());
                if is_reference(caps.backend, dtype, &format) {
                    continue;
                }
                match one(args, &**device, model, dtype, &reference, options, &mut progress) {
                    Ok(run) => runs.push(run),
                    Err(Error::Cancelled) => return Err(Error::Cancelled.into()),
                    Err(error) => left_out.push(format!("{} {dtype} {format}: {error}", caps.backend)),
                }
            }
        }
    }
    drop(spinner);
    drop(gentle);
    let report =
        Report { left_out, ..Report::new(args.which.model().unwrap_or("demo"), &reference, options, runs) };
    if let Some(path) = &args.html {
        write_page(path, &ocelli_bench::page::compared(&report))?;
    }
    report.left_out.iter().for_each(|text| note(&format!("left out: {text}")));
    if args.json {
        print_json(&report)?;
    } else {
        print(&report.table())?;
    }
    Ok(if report.pass { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Fails if a report cannot be written there, before the work that it tells of.
pub fn writable(path: &Path) -> Result<(), Failure> {
    open::is_file_name(path)?;
    let new = !path.exists();
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    if file.is_ok() && new {
        let _ = std::fs::remove_file(path);
    }
    file.map(drop).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

/// Writes a report.
pub fn write_page(path: &Path, page: &str) -> Result<(), Failure> {
    std::fs::write(path, page).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

fn one(
    args: &CompareArgs,
    device: &dyn Device,
    model: &Stored,
    dtype: DType,
    reference: &Reference,
    options: Options,
    progress: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Compared, Error> {
    let precision = Precision { dtype, ..Precision::default() };
    let (pipeline, mut cx) =
        open::pipeline_of(&model.files, &Setup::plain(&args.processor, Leftovers::Ignore), device, precision)
            .map_err(|failure| Error::Request(failure.message().to_owned()))?;
    let usual = Bounds::usual(dtype, model.format.0.is_none());
    let bounds = Bounds {
        error: args.max_error.or(usual.error),
        kl: args.max_kl.or(usual.kl),
        top1: args.min_top1.or(usual.top1),
    };
    let format = model.format.name();
    let mut run =
        Candidate { format: &format, caps: device.caps(), pipeline: &pipeline, cx: &mut cx, bounds };
    reference.compare(&mut run, options, false, progress)
}

fn device(args: &CompareArgs, backend: Backend) -> Result<std::sync::Arc<dyn Device>, Failure> {
    let index = if backend == Backend::Cpu { 0 } else { args.device };
    let options = DeviceOptions {
        index,
        threads: args.threads.map(usize::from),
        picks: open::picks()?,
        cache: cache_dir(),
    };
    let mut opened =
        ocelli_kernels::open(backend, &options).map_err(|error| open::no_device(error.into()))?;
    let picks = tuned(opened.caps(), options.picks);
    // Nobody else holds the device yet.
    if let Some(device) = std::sync::Arc::get_mut(&mut opened) {
        device.prefer(picks);
    }
    Ok(opened)
}

/// The devices that are asked for; the CPU and what else there is where none is.
fn devices(args: &CompareArgs) -> Result<Vec<std::sync::Arc<dyn Device>>, Failure> {
    if args.backends.is_empty() {
        return Ok(Backend::ALL.into_iter().filter_map(|backend| device(args, backend).ok()).collect());
    }
    let options = DeviceOptions { index: args.device, ..DeviceOptions::default() };
    let mut backends = Vec::new();
    for &backend in &args.backends {
        let backend = open::backend(backend, &options)?;
        if !backends.contains(&backend) {
            backends.push(backend);
        }
    }
    backends.into_iter().map(|backend| device(args, backend)).collect()
}

/// The model as it is, and rounded copies of it.
fn formats(args: &CompareArgs, files: &ModelFiles, gentle: &Gentle) -> Result<Vec<Stored>, Failure> {
    let mut all: Vec<Stored> = Vec::new();
    for &format in &args.formats {
        if all.iter().any(|stored| stored.format == format) {
            continue;
        }
        let Some(scheme) = format.0.map(FormatArg::scheme) else {
            all.push(Stored { format, files: files.clone(), _folder: None });
            continue;
        };
        let name = format!("ocelli-compare-{}-{}", std::process::id(), format.name());
        let folder = Folder(std::env::temp_dir().join(name));
        let anatomy = ocelli_models::anatomy(files)?;
        let role = |module: &str| anatomy.roles.get(module).copied();
        let mut options = QuantizeOptions::new(scheme);
        options.layout = usual_layout(scheme);
        options.force = true;
        let parts = weights::Anatomy { role: &role, folds: &[], banks: &anatomy.banks };
        let spinner = Spinner::new(&format!("rounding to {}", format.name()));
        quantize_with(files, &folder.0, parts, &options, None, &mut |event| {
            if let Event::At(at) = event {
                spinner.say(&format!("rounding to {}: {}", format.name(), at.name));
            }
            if gentle.asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        all.push(Stored { format, files: ModelFiles::dir(&folder.0), _folder: Some(folder) });
    }
    Ok(all)
}

fn questions(args: &CompareArgs) -> Result<Vec<Question>, Failure> {
    const USUAL: &str = "Describe the picture.";
    let options = DecodeOptions { max_pixels: args.max_pixels, ..DecodeOptions::default() };
    if args.images.is_empty() {
        let examples = ocelli_models::demo::EXAMPLES.into_iter().map(|(name, bytes, question)| {
            let prompt = args.prompt.clone().unwrap_or_else(|| question.to_owned());
            let image = Some(decode_bytes(name, bytes, &options)?);
            Ok(Question { name: name.to_owned(), image, chosen: false, prompt })
        });
        return examples.collect();
    }
    let given = args.images.iter().map(|path| {
        open::is_file_name(path)?;
        let prompt = args.prompt.clone().unwrap_or_else(|| USUAL.to_owned());
        let image = Some(decode_file(path, &options)?);
        Ok(Question { name: path.display().to_string(), image, chosen: true, prompt })
    });
    given.collect()
}
