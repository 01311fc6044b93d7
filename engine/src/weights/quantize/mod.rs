//! Writes a copy of a model whose matrices are rounded in groups, in a [`Layout`] that other engines load: to nearest, or, where calibration
//! data tells what their inputs are, so that outputs are off by less ([`Rounding::Gptq`], [`Scaling::Awq`]). Every layout holds either.
//!
//! In compressed-tensors' `pack-quantized` each quantized module becomes `weight_packed`, `weight_scale`, `weight_shape` and, with zero
//! points, `weight_zero_point`; `config.json` gains a `quantization_config` with one group for each format in use. A token table
//! is stored the same way, as compressed-tensors does for targets of class `Embedding`: one row is one output. A head
//! that is tied to the table stays tied: only the table has tensors. Names are those of the source in every layout: a model of pictures
//! and text in MLX's has them as transformers does.
//!
//! compressed-tensors 0.20 unpacks all of it to the bit, and MLX 0.32 what is in its layout. transformers 5.23 loads copies whose token table is kept
//! ([`QuantizeOptions::head`]) and that have no zero points; it builds no packed token table, and does not load packed
//! zero points.
//!
//! Weights are streamed into files that are complete one by one; a run that ended early goes on after those of the run before.

mod config;
mod factor;
mod gptq;
mod inputs;
mod known;
mod layout;
mod memory;
mod options;
mod output;
mod plan;
mod products;
mod report;
mod round;
mod scaling;
mod writer;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use ocelli_kernels::{Format, KernelError, ShapeError};

use super::{Bank, Checkpoint, WeightError};
use crate::files::{BESIDE_WEIGHTS, FileError, ModelFiles};
use gptq::Corrections;
pub(crate) use inputs::Gatherer;
pub use inputs::{Calibration, Inputs, Seen};
use known::Known;
pub use layout::Layout;
pub use memory::free as free_memory;
pub use options::{QuantizeOptions, QuantizeScheme, Role, Rounding, Scaling};
use output::{Output, Start};
use plan::{Module, Unit, plan, split};
pub(crate) use products::Products;
pub use report::ModuleReport;
use report::{Measured, relative};
use round::{Factors, Rows, Rule};
pub use scaling::{Fold, Producer};
use scaling::{Scaled, Search};
use writer::Shard;

/// Values that one thread encodes at a time: what bounds the memory in use.
const CHUNK: usize = 1 << 20;

/// Largest file that is written, in bytes.
pub const MAX_SHARD: u64 = 4 << 30;

/// Where the work is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Module or tensor in work.
    pub name: &'a str,
    /// Bytes of the source that are done.
    pub done: u64,
    /// Bytes of the source in all.
    pub total: u64,
}

/// What is told while it is worked on.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Where the work is.
    At(Progress<'a>),
    /// Something to be said once.
    Note(&'a str),
}

/// What a model is made of.
#[derive(Clone, Copy)]
pub struct Anatomy<'a> {
    /// What the module of a name (`model.layers.0.mlp.up_proj`) is; matrices of others are kept.
    pub role: &'a dyn Fn(&str) -> Option<Role>,
    /// Which matrices take what some norm or matrix gives and nothing else takes.
    pub folds: &'a [Fold],
    /// Tensors that hold matrices of all experts of a layer; those of others are kept.
    pub banks: &'a [Bank],
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// Each format with the number of matrices in it, most first.
    pub formats: Vec<(Format, usize)>,
    /// Tensors that were kept as they were.
    pub kept: usize,
    /// Tensors of the same type and shape with other values: norms before columns that are scaled.
    pub scaled: usize,
    /// Bytes of the source's tensors.
    pub bytes_before: u64,
    /// Bytes of the written tensors.
    pub bytes_after: u64,
    /// Names of the written weight files.
    pub files: Vec<String>,
    /// How many of these an earlier run had written.
    pub resumed: usize,
    /// What each quantized matrix is off by, in the order of the files.
    pub modules: Vec<ModuleReport>,
    /// What was left out, in words.
    pub notes: Vec<String>,
}

/// Why a model was not quantized. Nothing is left at the destination then; what is complete stays beside it, for the next run.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// The source's weights cannot be read.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// Another file of the source cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// The options do not go together.
    #[error("{0}")]
    Options(String),
    /// There is something at the destination.
    #[error("{0}: already exists")]
    Exists(String),
    /// What is at the destination must not be replaced.
    #[error("{path}: will not be replaced: {reason}")]
    Protected {
        /// The destination.
        path: String,
        /// The reason.
        reason: &'static str,
    },
    /// The source is quantized already.
    #[error("{path}: already quantized ({how}); quantize the original")]
    Already {
        /// The source.
        path: String,
        /// How.
        how: String,
    },
    /// No matrix was chosen.
    #[error("{path}: nothing to quantize: none of {tensors} tensors is a linear layer of the decoder")]
    Nothing {
        /// The source.
        path: String,
        /// Its tensors.
        tensors: usize,
    },
    /// A matrix cannot be rounded.
    #[error("{path}: `{module}`: {source}")]
    Module {
        /// The source.
        path: String,
        /// The module.
        module: String,
        /// The reason.
        source: ShapeError,
    },
    /// The model cannot run on the calibration data.
    #[error("calibration: {0}")]
    Calibration(Box<crate::Error>),
    /// The CPU cannot compute what calibration asks for.
    #[error(transparent)]
    Device(#[from] KernelError),
    /// Another process writes to the destination.
    #[error("{0}: another process is writing it")]
    Busy(String),
    /// The caller stopped it.
    #[error("{}", cancelled(*.done, *.all))]
    Cancelled {
        /// Files that are complete; they stay for the next run.
        done: usize,
        /// Files in all.
        all: usize,
    },
}

fn cancelled(done: usize, all: usize) -> String {
    match done {
        0 => "cancelled".into(),
        _ => format!("cancelled; {done} of {all} files are complete: the same command goes on after them"),
    }
}

impl From<crate::Error> for QuantizeError {
    fn from(error: crate::Error) -> Self {
        match error {
            crate::Error::Cancelled => Self::Cancelled { done: 0, all: 0 },
            error => Self::Calibration(Box::new(error)),
        }
    }
}

/// Writes to the directory `out` a copy of the model in which the matrices that `options` choose are rounded to nearest. `role`
/// tells what the module of a name (`model.layers.0.mlp.up_proj`) is; others are kept. Weights are streamed: memory in
/// use does not grow with the model. The directory appears only when all is written.
///
/// # Errors
/// See [`QuantizeError`].
pub fn quantize(
    files: &ModelFiles,
    out: &Path,
    role: &dyn Fn(&str) -> Option<Role>,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Quantized, QuantizeError> {
    let anatomy = Anatomy { role, folds: &[], banks: &[] };
    quantize_with(files, out, anatomy, options, None, &mut |event| match event {
        Event::At(at) => progress(at),
        Event::Note(note) => {
            tracing::debug!("{note}");
            ControlFlow::Continue(())
        }
    })
}

/// As [`quantize`], with what calibration data tells of the inputs of matrices. These take memory: [`QuantizeOptions::memory`].
///
/// # Errors
/// See [`QuantizeError`].
pub fn quantize_with(
    files: &ModelFiles,
    out: &Path,
    anatomy: Anatomy<'_>,
    options: &QuantizeOptions,
    calibration: Option<&mut dyn Calibration>,
    watch: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Quantized, QuantizeError> {
    options.check()?;
    if options.needs_inputs() && calibration.is_none() {
        return Err(QuantizeError::Options(
            "rounding gptq, scaling awq and clipping: expected calibration data, found none".into(),
        ));
    }
    output::check(files, out, options.force)?;
    let checkpoint = Checkpoint::open(files)?;
    let (mut units, planned) = plan(&checkpoint, anatomy, options)?;
    let identity = calibration.as_ref().map(|data| data.identity()).unwrap_or_default();
    let key = output::key(files, &checkpoint, &units, options, anatomy.folds, &identity)?;
    let (mut output, start) = Output::begin(out, key)?;
    let files_of = split(&units, options.max_shard).len();
    let resumed = output.done.files.len();
    if let Some(note) = told(start, resumed, files_of)
        && watch(Event::Note(&note)).is_break()
    {
        return Err(QuantizeError::Cancelled { done: resumed, all: files_of });
    }
    let worked = work(files, anatomy, options, calibration, watch, &checkpoint, &mut units, &mut output);
    let written = match worked {
        Err(QuantizeError::Cancelled { .. }) => {
            return Err(QuantizeError::Cancelled { done: output.done.files.len(), all: files_of });
        }
        written => written?,
    };
    output.commit()?;
    let notes = planned.into_iter().chain(written.notes).collect();
    Ok(Quantized { resumed, notes, ..written })
}

/// What is to be said of how the work begins.
fn told(start: Start, done: usize, all: usize) -> Option<String> {
    match start {
        Start::Fresh => None,
        Start::Resumed => Some(format!("goes on after {done} of {all} files that an earlier run completed")),
        Start::Anew => {
            Some("begins anew: what an earlier run left is of another source, or of other options".into())
        }
    }
}

/// Writes all files of a copy.
#[expect(clippy::too_many_arguments, reason = "all of what quantize_with holds")]
fn work(
    files: &ModelFiles,
    anatomy: Anatomy<'_>,
    options: &QuantizeOptions,
    calibration: Option<&mut dyn Calibration>,
    watch: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    checkpoint: &Checkpoint,
    units: &mut [Unit<'_>],
    output: &mut Output,
) -> Result<Quantized, QuantizeError> {
    let names = units.iter().flat_map(Unit::modules).map(|module| module.name.clone()).collect();
    let mut known = Known::new(calibration, names, options.memory);
    let scaled = {
        let modules: HashMap<&str, &Module<'_>> =
            units.iter().flat_map(Unit::modules).map(|module| (module.name.as_str(), module)).collect();
        if options.scaling == Scaling::Awq && output.done.scales.is_none() {
            let mut search = Search::new(checkpoint, anatomy.folds, &modules, options.layout)?;
            let wanted = search.wanted().into_iter().map(str::to_owned).collect();
            known.in_turns(wanted, &mut |inputs, names| {
                for name in names {
                    if let Some(inputs) = inputs.get(name) {
                        let at = Progress { name, done: 0, total: checkpoint.bytes() };
                        if watch(Event::At(at)).is_break() {
                            return Err(QuantizeError::Cancelled { done: 0, all: 0 });
                        }
                        search.take(name, inputs)?;
                    }
                }
                Ok(())
            })?;
            output.done.scales = Some(search.finish());
            output.note()?;
        }
        let scales = output.done.scales.as_ref().map_or(&[][..], |(scales, _)| scales);
        Scaled::new(checkpoint, anatomy.folds, &modules, scales)?
    };
    let none = Factors::default();
    for unit in units.iter_mut() {
        if let Unit::Module(module) = unit
            && module.has_factor(options.layout)
        {
            let factors = scaled.factors.get(&module.name).unwrap_or(&none);
            let factor = Rows::of(checkpoint, module)?.factor(factors);
            module.set_factor(factor, options.layout);
        }
    }
    let units = &*units;
    let shards = split(units, options.max_shard);
    let mut names = Vec::with_capacity(shards.len());
    let mut index = serde_json::Map::new();
    let mut job = Job {
        checkpoint,
        watch,
        options,
        scaled: &scaled,
        corrections: None,
        products: Products::new()?,
        done: 0,
        total: checkpoint.bytes(),
        measured: Vec::new(),
    };
    for (number, part) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => super::checkpoint::SINGLE.to_owned(),
            all => format!("model-{:05}-of-{all:05}.safetensors", number + 1),
        };
        for item in part.iter().flat_map(Unit::items) {
            index.insert(item.name.clone(), name.clone().into());
        }
        if !output.done.files.contains_key(&name) {
            let items = part.iter().flat_map(Unit::items);
            let mut shard = Shard::create(&output.in_work(&name)?, options.layout.metadata(), items)?;
            job.fill(part, &mut known, &mut shard)?;
            shard.finish()?;
            output.complete(&name, std::mem::take(&mut job.measured))?;
        } else {
            job.done += part.iter().map(|unit| unit.source_bytes()).sum::<u64>();
        }
        names.push(name);
    }
    let bytes_after = units.iter().flat_map(Unit::items).map(|item| item.bytes).sum();
    if names.len() > 1 {
        index.sort_keys();
        let value = serde_json::json!({"metadata": {"total_size": bytes_after}, "weight_map": index});
        output.json(super::checkpoint::INDEX, &value)?;
    }
    let modules: Vec<(&str, Format)> = units.iter().filter_map(Unit::stored).collect();
    let by_name: HashMap<&str, Format> =
        units.iter().flat_map(Unit::modules).map(|module| (module.name.as_str(), module.format)).collect();
    let kept: Vec<&str> = units.iter().filter_map(|unit| unit.kept_matrix(checkpoint)).collect();
    let mut config: serde_json::Value = files.require_json("config.json")?;
    if let Some(fields) = config.as_object_mut() {
        let block = config::block(options.layout, &modules, &kept);
        if options.layout == Layout::Mlx {
            fields.insert("quantization".into(), block.clone());
        }
        fields.insert("quantization_config".into(), block);
    }
    output.json("config.json", &config)?;
    for name in BESIDE_WEIGHTS {
        if let Some(bytes) = files.read(name)? {
            output.file(name, &bytes)?;
        }
    }
    let mut formats: Vec<(Format, usize)> = Vec::new();
    for format in units.iter().flat_map(Unit::modules).map(|module| &module.format) {
        match formats.iter_mut().find(|(known, _)| known == format) {
            Some((_, count)) => *count += 1,
            None => formats.push((*format, 1)),
        }
    }
    formats.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let kept = units.len() - modules.len() - scaled.kept.len();
    let measured =
        names.iter().filter_map(|name| output.done.files.get(name)).flat_map(|(_, all)| all.clone());
    let reports: Vec<ModuleReport> = measured
        .filter_map(|of| by_name.get(of.module.as_str()).copied().map(|format| of.with(format)))
        .collect();
    let mut notes = output.done.scales.take().map(|(_, notes)| notes).unwrap_or_default();
    notes.extend(left_out(&reports, options));
    Ok(Quantized {
        formats,
        kept,
        scaled: scaled.kept.len(),
        bytes_before: checkpoint.bytes(),
        bytes_after,
        files: names,
        resumed: 0,
        modules: reports,
        notes,
    })
}

/// What is to be said of matrices that were treated otherwise than the options say.
fn left_out(reports: &[ModuleReport], options: &QuantizeOptions) -> Vec<String> {
    let named = |what: &str, all: Vec<&ModuleReport>| {
        let first: Vec<&str> = all.iter().take(3).map(|report| report.module.as_str()).collect();
        let more = if all.len() > 3 { ", ..." } else { "" };
        (!all.is_empty()).then(|| format!("{} matrices {what}: {}{more}", all.len(), first.join(", ")))
    };
    let unseen = reports.iter().filter(|report| report.output_error.is_none()).collect();
    let plain =
        |report: &&ModuleReport| report.output_error.is_some() && report.rounding == Rounding::Nearest;
    let unscaled = |report: &&ModuleReport| report.output_error.is_some() && report.scaling.is_none();
    let mut notes = Vec::new();
    if options.needs_inputs() {
        let what = "are rounded to nearest, as no inputs of them were seen, or kept for want of memory";
        notes.extend(named(what, unseen));
    }
    if options.rounding == Rounding::Gptq {
        notes.extend(named(
            "are rounded to nearest (token table and head, inputs that are not finite, or want of memory)",
            reports.iter().filter(plain).collect(),
        ));
    }
    if options.scaling == Scaling::Awq {
        let what =
            "are not scaled: nothing is known that could take the scales, or none makes outputs better";
        notes.extend(named(what, reports.iter().filter(unscaled).collect()));
    }
    notes
}

/// Tells where the work is.
fn at(
    watch: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    name: &str,
    done: u64,
    total: u64,
) -> Result<(), QuantizeError> {
    match watch(Event::At(Progress { name, done, total })) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(QuantizeError::Cancelled { done: 0, all: 0 }),
    }
}

/// Corrections with the inputs and the factors of columns that they are of.
type Last = (Arc<Inputs>, Option<Vec<f32>>, Option<Corrections>);

struct Job<'a> {
    checkpoint: &'a Checkpoint,
    watch: &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    options: &'a QuantizeOptions,
    scaled: &'a Scaled,
    /// Those that were found last: matrices of one input follow each other.
    corrections: Option<Last>,
    products: Products,
    done: u64,
    total: u64,
    measured: Vec<Measured>,
}

impl Job<'_> {
    fn report(&mut self, name: &str, bytes: usize) -> Result<(), QuantizeError> {
        self.done += bytes as u64;
        at(self.watch, name, self.done, self.total)
    }

    /// Writes all units of a file.
    fn fill(
        &mut self,
        units: &[Unit<'_>],
        known: &mut Known<'_>,
        shard: &mut Shard,
    ) -> Result<(), QuantizeError> {
        let mut modules: HashMap<&str, &Module<'_>> = HashMap::new();
        let mut order = Vec::new();
        for unit in units {
            match unit {
                Unit::Keep { name, items } => {
                    let stored = self.checkpoint.raw(name)?;
                    let bytes = self.scaled.kept.get(*name).map_or(stored, Vec::as_slice);
                    for item in items {
                        shard.write(&item.name, 0, bytes)?;
                    }
                    self.report(name, stored.len())?;
                }
                Unit::Module(_) | Unit::Stack { .. } => {
                    for module in unit.modules() {
                        modules.insert(&module.name, module);
                        order.push(module.name.as_str());
                    }
                }
            }
        }
        let wanted = order.iter().map(|&name| name.to_owned()).collect();
        known.in_turns(wanted, &mut |inputs, names| {
            // Those of one input one after the other, else in the order of the file.
            let mut turn: Vec<(usize, &str)> = Vec::new();
            let mut firsts: HashMap<*const Inputs, usize> = HashMap::new();
            for (place, &name) in order.iter().enumerate().filter(|(_, name)| names.contains(**name)) {
                let first = inputs.get(name).map(|of| *firsts.entry(Arc::as_ptr(of)).or_insert(place));
                turn.push((first.unwrap_or(place), name));
            }
            turn.sort_by_key(|(first, _)| *first);
            for (_, name) in turn {
                if let Some(module) = modules.get(name) {
                    self.module(module, inputs.get(name), shard)?;
                }
            }
            Ok(())
        })?;
        self.corrections = None;
        // In the order of the file, whatever came first.
        let places: HashMap<&str, usize> = order.iter().copied().zip(0..).collect();
        self.measured.sort_by_key(|of| places.get(of.module.as_str()).copied());
        Ok(())
    }

    /// How the columns of a matrix make up for each other.
    fn correct(
        &mut self,
        name: &str,
        inputs: &Arc<Inputs>,
        cols: Option<&Vec<f32>>,
    ) -> Result<(), QuantizeError> {
        let known = |(of, with, _): &Last| Arc::ptr_eq(of, inputs) && with.as_ref() == cols;
        if self.corrections.as_ref().is_some_and(known) {
            return Ok(());
        }
        // The memory of the one is free for the other.
        self.corrections = None;
        let k = inputs.mean.len();
        let found = match memory::lacks(Corrections::bytes(k), memory::free()) {
            Some(lacks) => {
                let note =
                    format!("{name}: rounded to nearest: corrections of rows of {k} weights take {lacks}");
                if (self.watch)(Event::Note(&note)).is_break() {
                    return Err(QuantizeError::Cancelled { done: 0, all: 0 });
                }
                None
            }
            None => {
                let (watch, done, total) = (&mut *self.watch, self.done, self.total);
                let mut step = |block: usize, blocks: usize| {
                    at(watch, &format!("{name}: inputs, {block} of {blocks}"), done, total)
                };
                let cols = cols.map(Vec::as_slice);
                Corrections::new(&mut self.products, &inputs.gram.0, k, cols, &mut step)?
            }
        };
        self.corrections = Some((inputs.clone(), cols.cloned(), found));
        Ok(())
    }

    fn module(
        &mut self,
        module: &Module<'_>,
        inputs: Option<&Arc<Inputs>>,
        shard: &mut Shard,
    ) -> Result<(), QuantizeError> {
        let none = Factors::default();
        let factors = self.scaled.factors.get(&module.name).unwrap_or(&none);
        let inputs = inputs.filter(|inputs| inputs.mean.len() == module.k && inputs.rows > 0);
        // Rows of a table are looked up too, and a head has a code of 8 bits.
        let treated = inputs.filter(|_| !matches!(module.role, Role::Head | Role::Embedding));
        if self.options.rounding == Rounding::Gptq
            && let Some(inputs) = treated
        {
            self.correct(&module.name, inputs, factors.cols.as_ref())?;
        }
        let last = self.corrections.take();
        let corrections = match &last {
            Some((_, _, found)) if self.options.rounding == Rounding::Gptq && treated.is_some() => {
                found.as_ref()
            }
            _ => None,
        };
        let clip = treated.filter(|_| self.options.clip).map(|of| of.squares(factors.cols.as_deref()));
        let rule = Rule {
            format: module.format,
            factor: module.factor,
            factors,
            corrections,
            clip: clip.as_deref(),
            keep: inputs.is_some(),
        };
        let tensors = &module.tensors;
        let planes = tensors.items.len() - tensors.constants.len();
        let items = &tensors.items[..planes];
        let mut offsets: Vec<u64> = items.iter().map(|item| module.number as u64 * item.bytes).collect();
        let (mut weights, mut outputs) = ([0.0; 2], [0.0; 2]);
        let (watch, done, total) = (&mut *self.watch, &mut self.done, self.total);
        Rows::of(self.checkpoint, module)?.round(
            &rule,
            &mut self.products,
            |products, rows, mut rounded| {
                for (at, plane) in rounded.planes.iter_mut().enumerate() {
                    self.options.layout.arrange(at, plane);
                }
                for ((item, plane), offset) in items.iter().zip(&rounded.planes).zip(&mut offsets) {
                    shard.write(&item.name, *offset, plane)?;
                    *offset += plane.len() as u64;
                }
                (0..2).for_each(|at| weights[at] += rounded.squares[at]);
                if let Some(inputs) = inputs {
                    outputs[0] += products.squares(rounded.weights, &inputs.gram)?;
                    outputs[1] += products.squares(rounded.off, &inputs.gram)?;
                }
                *done += (rows.len() * module.row_bytes()) as u64;
                at(watch, &module.name, *done, total)
            },
        )?;
        for (item, bytes) in tensors.items[planes..].iter().zip(&tensors.constants) {
            shard.write(&item.name, 0, bytes)?;
        }
        let rounding = if corrections.is_some() { Rounding::Gptq } else { Rounding::Nearest };
        let scaling = self.scaled.powers.get(&module.name).copied();
        let output_error = inputs.map(|_| relative(outputs));
        self.measured.push(Measured::new(&module.name, rounding, scaling, relative(weights), output_error));
        self.corrections = last;
        Ok(())
    }
}
