//! `ocelli quantize`: writes a quantized copy of a model.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::process::ExitCode;

use ocelli_engine::calibration::{CalibrationSet, Drift};
use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::{
    self, Calibration, Checkpoint, Event, Layout, ModuleReport, QuantizeError, QuantizeOptions,
    QuantizeScheme, Quantized, Rounding, Scaling, quantize_with,
};
use ocelli_engine::{Ctx, Error, Pipeline, Precision};
use ocelli_kernels::{Backend, DType, DeviceOptions};
use ocelli_models::{Anatomy, Leftovers};
use serde::Serialize;

use crate::args::{FormatArg, IncludeArg, LayoutArg, QuantizeArgs, RoundingArg, ScalesArg, ScalingArg};
use crate::calibrate::Data;
use crate::fail::{Failure, Outcome, note, print, print_json};
use crate::interrupt::Gentle;
use crate::open;
use crate::progress::Bytes;
use crate::units::bytes;

#[derive(Serialize)]
struct Output<'a> {
    schema: &'static str,
    model: &'a str,
    out: String,
    /// Number of matrices written in each format.
    formats: BTreeMap<String, usize>,
    /// Tensors that stayed as they were.
    kept: usize,
    /// Norms whose weights were scaled.
    scaled: usize,
    bytes_before: u64,
    bytes_after: u64,
    files: &'a [String],
    /// Files that an earlier run had written.
    resumed: usize,
    /// What the quantized matrices are off by in the mean, relative to what they are.
    weight_error: f64,
    /// The same of their outputs, of those whose inputs are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    output_error: Option<f64>,
    modules: Vec<Module<'a>>,
    /// What was left out.
    notes: &'a [String],
    /// How far answers to the calibration data are.
    #[serde(skip_serializing_if = "Option::is_none")]
    drift: Option<Drift>,
}

/// What became of a matrix.
#[derive(Serialize)]
struct Module<'a> {
    name: &'a str,
    format: String,
    rounding: &'static str,
    /// The power of mean magnitudes that its columns are scaled by.
    #[serde(skip_serializing_if = "Option::is_none")]
    scaling: Option<f32>,
    weight_error: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_error: Option<f64>,
}

impl<'a> Module<'a> {
    fn of(report: &'a ModuleReport) -> Self {
        Self {
            name: &report.module,
            format: report.format.to_string(),
            rounding: report.rounding.name(),
            scaling: report.scaling,
            weight_error: report.weight_error,
            output_error: report.output_error,
        }
    }
}

/// Modules that are listed without --modules.
const WORST: usize = 5;

impl FormatArg {
    /// What weights become.
    pub fn scheme(self) -> QuantizeScheme {
        match self {
            Self::Int4 => QuantizeScheme::Int4,
            Self::Int8 => QuantizeScheme::Int8,
            Self::Fp8 => QuantizeScheme::Fp8,
            Self::Nf4 => QuantizeScheme::Nf4,
            Self::Mxfp4 => QuantizeScheme::Mxfp4,
            Self::Nvfp4 => QuantizeScheme::Nvfp4,
        }
    }
}

/// Whose layout copies of a scheme have unless another is named.
pub fn usual_layout(scheme: QuantizeScheme) -> Layout {
    if scheme == QuantizeScheme::Nf4 { Layout::Bitsandbytes } else { Layout::CompressedTensors }
}

impl QuantizeArgs {
    fn options(&self) -> QuantizeOptions {
        let scheme = self.format.scheme();
        let mut options = QuantizeOptions::new(scheme);
        options.layout = match self.layout {
            Some(LayoutArg::CompressedTensors) => Layout::CompressedTensors,
            Some(LayoutArg::Mlx) => Layout::Mlx,
            Some(LayoutArg::Bitsandbytes) => Layout::Bitsandbytes,
            None => usual_layout(scheme),
        };
        options.group = self.group;
        options.zero_points = self.zero_point;
        options.scales = match self.scales {
            ScalesArg::Stored => None,
            ScalesArg::F32 => Some(DType::F32),
            ScalesArg::Bf16 => Some(DType::BF16),
            ScalesArg::F16 => Some(DType::F16),
        };
        for part in &self.include {
            match part {
                IncludeArg::Tower => options.tower = true,
                IncludeArg::Connector => options.connector = true,
                IncludeArg::Head => options.head = true,
            }
        }
        let calibrated = !self.calibration.calibrate.is_empty();
        options.rounding = match self.rounding {
            Some(RoundingArg::Nearest) => Rounding::Nearest,
            Some(RoundingArg::Gptq) => Rounding::Gptq,
            None if calibrated && scheme != QuantizeScheme::Fp8 => Rounding::Gptq,
            None => Rounding::Nearest,
        };
        options.scaling = match self.scaling {
            ScalingArg::None => Scaling::None,
            ScalingArg::Awq => Scaling::Awq,
        };
        options.clip = self.clip;
        options.memory = self.calibration.calibration_memory;
        options.max_shard = self.shard_size;
        options.force = self.force;
        options
    }
}

/// Runs the command.
pub fn quantize(args: &QuantizeArgs) -> Outcome {
    let files = open::files(args.which.model())?;
    let anatomy = match ocelli_models::anatomy(&files) {
        Ok(anatomy) => anatomy,
        // What is quantized already is told as such.
        Err(error) => match Checkpoint::open(&files) {
            Ok(checkpoint) if checkpoint.quantization().is_some() => {
                Anatomy { roles: HashMap::new(), folds: Vec::new(), banks: Vec::new() }
            }
            _ => return Err(error.into()),
        },
    };
    let options = args.options();
    if options.needs_inputs() && args.calibration.calibrate.is_empty() {
        let what = if args.rounding == Some(RoundingArg::Gptq) {
            "--rounding gptq"
        } else if args.scaling == ScalingArg::Awq {
            "--scaling awq"
        } else {
            "--clip"
        };
        return Err(Failure::usage(format!("{what}: expected --calibrate"))
            .hint("--calibrate names pictures, folders or lists; their inputs tell which weights matter"));
    }
    let gentle = Gentle::begin();
    let (done, drift) = match args.calibration.calibrate.is_empty() {
        true => (written(args, &files, &anatomy, &options, None, &gentle)?, None),
        false => calibrated(args, &files, &anatomy, &options, &gentle)?,
    };
    drop(gentle);
    told(args, &done, drift)
}

/// Writes the copy.
fn written(
    args: &QuantizeArgs,
    files: &ModelFiles,
    anatomy: &Anatomy,
    options: &QuantizeOptions,
    calibration: Option<&mut dyn Calibration>,
    gentle: &Gentle,
) -> Result<Quantized, QuantizeError> {
    let role = |module: &str| anatomy.roles.get(module).copied();
    let anatomy = weights::Anatomy { role: &role, folds: &anatomy.folds, banks: &anatomy.banks };
    let mut bar = Bytes::new();
    quantize_with(files, &args.out, anatomy, options, calibration, &mut |event| {
        match event {
            Event::At(at) => bar.at(at.name, at.done, at.total),
            Event::Note(text) => note(&format!("{}: {text}", args.out.display())),
        }
        if gentle.asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

/// Writes the copy by what the model does with the calibration data, on the CPU.
fn calibrated(
    args: &QuantizeArgs,
    files: &ModelFiles,
    anatomy: &Anatomy,
    options: &QuantizeOptions,
    gentle: &Gentle,
) -> Result<(Quantized, Option<Drift>), Failure> {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).map_err(Error::from)?;
    let checkpoint = Checkpoint::open(files).map_err(Error::from)?;
    let mut cx = Ctx::new(&*device, Precision::default())?;
    let threads = device.caps().units;
    let mut loaded = ocelli_models::load_from(files, &checkpoint, &mut cx, Leftovers::Warn)?;
    open::set_processor(&mut *loaded.processor, &args.calibration.processor)?;
    let pipeline = Pipeline::new(files, loaded, threads)?;
    let data = Data::new(&args.calibration, &pipeline, gentle)?;
    let tokens = args.calibration.calibration_tokens;
    let mut set = CalibrationSet::new(&pipeline, &mut cx, &checkpoint, &data, tokens)?;
    let done = written(args, files, anatomy, options, Some(&mut set), gentle);
    data.rest();
    let done = done?;
    let copy_files = ModelFiles::dir(&args.out);
    let mut copy_cx = Ctx::new(&*device, Precision::default())?;
    let loaded = ocelli_models::load_with(&copy_files, &mut copy_cx, Leftovers::Ignore)?;
    let copy = Pipeline::new(&copy_files, loaded, threads)?;
    let drift = match set.drift(&copy, &mut copy_cx) {
        Ok(drift) => Some(drift),
        // The copy is there all the same.
        Err(Error::Cancelled) => None,
        Err(error) => return Err(error.into()),
    };
    data.rest();
    Ok((done, drift))
}

/// The mean of some numbers.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// Tells what was done.
fn told(args: &QuantizeArgs, done: &Quantized, drift: Option<Drift>) -> Outcome {
    let formats: BTreeMap<String, usize> =
        done.formats.iter().map(|(format, count)| (format.to_string(), *count)).collect();
    let (model, out) = (args.which.model().unwrap_or("demo"), args.out.display().to_string());
    let weight_error = mean(done.modules.iter().map(|of| of.weight_error)).unwrap_or_default();
    let output_error = mean(done.modules.iter().filter_map(|of| of.output_error));
    if args.json {
        print_json(&Output {
            schema: "ocelli.quantize.v1",
            model,
            out,
            formats,
            kept: done.kept,
            scaled: done.scaled,
            bytes_before: done.bytes_before,
            bytes_after: done.bytes_after,
            files: &done.files,
            resumed: done.resumed,
            weight_error,
            output_error,
            modules: done.modules.iter().map(Module::of).collect(),
            notes: &done.notes,
            drift,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let listed: Vec<String> = formats.iter().map(|(format, count)| format!("{count} {format}")).collect();
    let norms = if done.scaled > 0 { format!("{} norms scaled, ", done.scaled) } else { String::new() };
    let mut text = format!(
        "{out}: {} matrices, {norms}{} tensors as they were; {} instead of {}\n",
        listed.join(", "),
        done.kept,
        bytes(done.bytes_after),
        bytes(done.bytes_before)
    );
    let percent = |error: f64| format!("{:.2}%", 100.0 * error);
    text += &format!("in the mean weights are off by {}", percent(weight_error));
    if let Some(error) = output_error {
        text += &format!(", outputs by {}", percent(error));
    }
    text += if args.modules { ":\n" } else { "; most of all:\n" };
    let mut modules: Vec<&ModuleReport> = done.modules.iter().collect();
    if !args.modules {
        let size = |of: &ModuleReport| of.output_error.unwrap_or(of.weight_error);
        modules.sort_by(|a, b| size(b).total_cmp(&size(a)));
        modules.truncate(WORST);
    }
    for of in modules {
        let output = of.output_error.map_or_else(|| "-".to_owned(), percent);
        let scaled = of.scaling.map_or_else(String::new, |power| format!(", scaled by ^{power}"));
        text += &format!(
            "  weights {:>7}  outputs {output:>7}  {} ({}, {}{scaled})\n",
            percent(of.weight_error),
            of.module,
            of.format,
            of.rounding.name()
        );
    }
    if let Some(drift) = drift {
        text += &format!(
            "drift on {} tokens of {} answers: {:.5} nats in the mean, {:.3} at most; {} likeliest alike\n",
            drift.tokens,
            drift.rows,
            drift.kl,
            drift.kl_max,
            percent(drift.top1)
        );
    }
    print(&text)?;
    done.notes.iter().for_each(|text| note(text));
    Ok(ExitCode::SUCCESS)
}

impl From<QuantizeError> for Failure {
    fn from(error: QuantizeError) -> Self {
        let text = error.to_string();
        match error {
            QuantizeError::Options(_) => Self::usage(text),
            QuantizeError::Exists(_) => Self::new(text).hint("--force replaces a model that is there"),
            QuantizeError::Cancelled { .. } => Self::interrupted(text),
            _ => Self::new(text),
        }
    }
}
