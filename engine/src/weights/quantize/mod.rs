//! Writes a copy of a model whose matrices are rounded to nearest in groups, in a [`Layout`] that other engines load.
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

mod config;
mod layout;
mod output;
mod writer;

use std::ops::ControlFlow;
use std::path::Path;

use ocelli_kernels::quant::grouped;
use ocelli_kernels::{Code, DType, Format, Grouped, ShapeError, Zero};

use super::file::widen;
use super::{Checkpoint, Quantization, StoredType, WeightError};
use crate::files::{FileError, ModelFiles};
pub use layout::Layout;
use layout::Tensors;
use output::Output;
use writer::{Item, Shard};

/// Values that one thread encodes at a time: what bounds the memory in use.
const CHUNK: usize = 1 << 20;

/// Largest file that is written, in bytes.
pub const MAX_SHARD: u64 = 4 << 30;

/// Files beside weights and `config.json` that belong to a model.
const COPIED: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "LICENSE",
];

/// What a matrix is to its model. A model's family knows which is which; see [`quantize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A linear layer of the text decoder.
    Decoder,
    /// A linear layer of a dual encoder's text tower.
    Text,
    /// The output layer.
    Head,
    /// The table of token embeddings.
    Embedding,
    /// A linear layer of the vision tower.
    Tower,
    /// A linear layer between tower and decoder.
    Connector,
    /// What draws pictures.
    Painter,
}

/// What weights are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantizeScheme {
    /// Integers of 4 bits.
    Int4,
    /// Integers of 8 bits.
    Int8,
    /// 8-bit floats (E4M3) with a scale a row; in MLX's layout in groups of 32, with powers of two.
    Fp8,
    /// NF4 in groups of 64.
    Nf4,
    /// 4-bit floats (E2M1) in groups of 32, with powers of two.
    Mxfp4,
    /// 4-bit floats (E2M1) in groups of 16, with scales of 8 bits.
    Nvfp4,
}

impl QuantizeScheme {
    /// Spelling on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int4 => "int4",
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
            Self::Nf4 => "nf4",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
        }
    }

    const fn is_int(self) -> bool {
        matches!(self, Self::Int4 | Self::Int8)
    }
}

/// How to quantize.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// What weights are rounded to.
    pub scheme: QuantizeScheme,
    /// Whose layout the copy has.
    pub layout: Layout,
    /// Of integers, weights that share a scale: 32, 64 or 128, or 0 for a whole row. A matrix whose rows it does not divide gets the
    /// next smaller that does, or one scale a row.
    pub group: u32,
    /// Whether groups of integers have zero points.
    pub zero_points: bool,
    /// Type of the scales of integers and of rows; `None` is the type of each matrix as it is stored.
    pub scales: Option<DType>,
    /// Whether head and token table become 8-bit too.
    pub head: bool,
    /// Whether the tower's linear layers are taken too.
    pub tower: bool,
    /// Whether the connector's linear layers are taken too.
    pub connector: bool,
    /// Largest file, in bytes.
    pub max_shard: u64,
    /// Whether to replace a model that is already at the destination.
    pub force: bool,
}

impl QuantizeOptions {
    /// The decoder's linear layers in symmetric groups of 32; with 4 bits, head and token table in 8 bits too, as they
    /// would outweigh all layers of a small model.
    #[must_use]
    pub const fn new(scheme: QuantizeScheme) -> Self {
        Self {
            scheme,
            layout: Layout::CompressedTensors,
            group: 32,
            zero_points: false,
            scales: None,
            head: matches!(scheme, QuantizeScheme::Int4),
            tower: false,
            connector: false,
            max_shard: MAX_SHARD,
            force: false,
        }
    }

    fn check(&self) -> Result<(), QuantizeError> {
        let fail = |text: String| Err(QuantizeError::Options(text));
        if !matches!(self.group, 0 | 32 | 64 | 128) {
            return fail(format!("group: expected 32, 64, 128 or 0 for whole rows, found {}", self.group));
        }
        if let Some(scales) = self.scales.filter(|dtype| !dtype.is_float()) {
            return fail(format!("scales: expected f32, bf16 or f16, found {scales}"));
        }
        let name = self.scheme.name();
        match (self.layout, self.scheme) {
            (Layout::CompressedTensors, QuantizeScheme::Nf4) => {
                return fail(
                    "nf4: not a format of compressed-tensors; the layout of bitsandbytes has it".into(),
                );
            }
            (Layout::Bitsandbytes, scheme) if scheme != QuantizeScheme::Nf4 => {
                return fail(format!("{name}: not a format of bitsandbytes' layout; expected nf4"));
            }
            (Layout::Mlx, QuantizeScheme::Nf4) => {
                return fail("nf4: not a format of MLX's layout; that of bitsandbytes has it".into());
            }
            _ => {}
        }
        if self.layout == Layout::Mlx && self.scheme.is_int() && self.group == 0 {
            return fail("group: MLX has groups of 32, 64 and 128, found 0 for whole rows".into());
        }
        if self.zero_points && !(self.scheme.is_int() && self.layout == Layout::CompressedTensors) {
            return fail(format!(
                "zero points: of integers in compressed-tensors' layout alone, found {name}"
            ));
        }
        if self.head && !self.scheme.is_int() {
            return fail(format!(
                "head and token table become 8-bit integers beside integers alone, found {name}"
            ));
        }
        Ok(())
    }

    /// Format of a matrix of this role with rows of `k` weights stored as `dtype`; `None` keeps it as it is.
    fn format(&self, role: Role, k: usize, dtype: DType) -> Option<Format> {
        let scheme = match role {
            Role::Decoder | Role::Text => self.scheme,
            Role::Tower => self.tower.then_some(self.scheme)?,
            Role::Connector => self.connector.then_some(self.scheme)?,
            Role::Head | Role::Embedding => self.head.then_some(QuantizeScheme::Int8)?,
            Role::Painter => return None,
        };
        let scale = self.scales.unwrap_or(dtype);
        let mlx = self.layout == Layout::Mlx;
        let of = |code, group: u32, scale| {
            let each = if group == 0 { 32 / Code::bits(code) } else { group as usize };
            k.is_multiple_of(each).then_some(Format::Grouped(Grouped {
                code,
                group,
                zero: Zero::None,
                scale,
            }))
        };
        match scheme {
            QuantizeScheme::Int4 | QuantizeScheme::Int8 => {
                let code = if scheme == QuantizeScheme::Int4 { Code::Int4 } else { Code::Int8 };
                let fits = |group: &u32| *group <= self.group && k.is_multiple_of(*group as usize);
                let group = [128, 64, 32].into_iter().find(fits);
                let zero = match (mlx, self.zero_points) {
                    (true, _) => Zero::Offset,
                    (false, true) => Zero::Codes,
                    (false, false) => Zero::None,
                };
                // MLX has no scale for a whole row.
                let group = if mlx { group? } else { group.unwrap_or(0) };
                Some(Format::Grouped(Grouped { code, group, zero, scale }))
            }
            QuantizeScheme::Fp8 if mlx => of(Code::Fp8, 32, DType::E8M0),
            QuantizeScheme::Fp8 => of(Code::Fp8, 0, scale),
            QuantizeScheme::Nf4 => of(Code::Nf4, 64, DType::F32),
            QuantizeScheme::Mxfp4 => of(Code::Fp4, 32, DType::E8M0),
            QuantizeScheme::Nvfp4 => of(Code::Fp4, 16, DType::E4M3),
        }
    }
}

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

/// What was written.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// Each format with the number of matrices in it, most first.
    pub formats: Vec<(Format, usize)>,
    /// Tensors that were kept as they were.
    pub kept: usize,
    /// Bytes of the source's tensors.
    pub bytes_before: u64,
    /// Bytes of the written tensors.
    pub bytes_after: u64,
    /// Names of the written weight files.
    pub files: Vec<String>,
}

/// Why a model was not quantized. Nothing is left at the destination then.
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
    /// The caller stopped it.
    #[error("cancelled")]
    Cancelled,
}

/// One thing to write, with its tensors in the output.
enum Unit<'a> {
    Keep {
        name: &'a str,
        items: Vec<Item>,
    },
    Module {
        name: &'a str,
        dtype: StoredType,
        n: usize,
        k: usize,
        format: Format,
        factor: f32,
        tensors: Tensors,
    },
}

impl Unit<'_> {
    fn items(&self) -> &[Item] {
        match self {
            Self::Keep { items, .. } | Self::Module { tensors: Tensors { items, .. }, .. } => items,
        }
    }
}

/// Writes to the directory `out` a copy of the model in which the matrices that `options` choose are quantized. `role`
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
    options.check()?;
    let output = Output::begin(files, out, options.force)?;
    let checkpoint = Checkpoint::open(files)?;
    let units = plan(&checkpoint, role, options)?;
    let shards = split(&units, options.max_shard);
    let total = checkpoint.bytes();
    let mut job = Job { checkpoint: &checkpoint, progress, layout: options.layout, done: 0, total };
    let mut names = Vec::with_capacity(shards.len());
    let mut index = serde_json::Map::new();
    for (number, part) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => super::checkpoint::SINGLE.to_owned(),
            all => format!("model-{:05}-of-{all:05}.safetensors", number + 1),
        };
        let items = part.iter().flat_map(Unit::items);
        let mut shard = Shard::create(&output.path(&name), options.layout.metadata(), items)?;
        for unit in *part {
            for item in unit.items() {
                index.insert(item.name.clone(), name.clone().into());
            }
            job.write(unit, &mut shard)?;
        }
        shard.finish()?;
        names.push(name);
    }
    let bytes_after = units.iter().flat_map(Unit::items).map(|item| item.bytes).sum();
    if names.len() > 1 {
        index.sort_keys();
        let value = serde_json::json!({"metadata": {"total_size": bytes_after}, "weight_map": index});
        output.json(super::checkpoint::INDEX, &value)?;
    }
    let modules: Vec<(&str, Format)> = units.iter().filter_map(Unit::module).collect();
    let kept: Vec<&str> = units.iter().filter_map(|unit| unit.kept_matrix(&checkpoint)).collect();
    let mut config: serde_json::Value = files.require_json("config.json")?;
    if let Some(fields) = config.as_object_mut() {
        let block = config::block(options.layout, &modules, &kept);
        if options.layout == Layout::Mlx {
            fields.insert("quantization".into(), block.clone());
        }
        fields.insert("quantization_config".into(), block);
    }
    output.json("config.json", &config)?;
    for name in COPIED {
        if let Some(bytes) = files.read(name)? {
            output.file(name, &bytes)?;
        }
    }
    output.commit()?;
    let mut formats: Vec<(Format, usize)> = Vec::new();
    for (_, format) in &modules {
        match formats.iter_mut().find(|(known, _)| known == format) {
            Some((_, count)) => *count += 1,
            None => formats.push((*format, 1)),
        }
    }
    formats.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let kept = units.len() - modules.len();
    Ok(Quantized { formats, kept, bytes_before: checkpoint.bytes(), bytes_after, files: names })
}

impl<'a> Unit<'a> {
    fn module(&self) -> Option<(&'a str, Format)> {
        match self {
            Self::Module { name, format, .. } => Some((name, *format)),
            Self::Keep { .. } => None,
        }
    }

    /// The module of a matrix that stays as it is.
    fn kept_matrix(&self, checkpoint: &Checkpoint) -> Option<&'a str> {
        match self {
            Self::Keep { name, .. } => {
                let module = name.strip_suffix(".weight")?;
                checkpoint.info(name).filter(|info| info.shape.len() == 2).map(|_| module)
            }
            Self::Module { .. } => None,
        }
    }
}

/// Decides for each tensor of the source.
fn plan<'a>(
    checkpoint: &'a Checkpoint,
    role: &dyn Fn(&str) -> Option<Role>,
    options: &QuantizeOptions,
) -> Result<Vec<Unit<'a>>, QuantizeError> {
    let already = |how: String| QuantizeError::Already { path: checkpoint.path().to_owned(), how };
    if let Some(quantization) = checkpoint.quantization() {
        return Err(already(Quantization::to_string(quantization)));
    }
    let mut units = Vec::new();
    for (name, info) in checkpoint.infos() {
        if name.ends_with(".weight_packed") || name.ends_with(".qweight") {
            return Err(already(format!("it has `{name}`")));
        }
        let dtype = info.kernel_dtype().filter(|dtype| dtype.is_float());
        if let (Some(module), &[n, k], Some(dtype)) = (name.strip_suffix(".weight"), info.shape, dtype)
            && let Some(format) = role(module).and_then(|role| options.format(role, k, dtype))
        {
            let Format::Grouped(grouped) = format else { continue };
            let mut factor = 1.0;
            if options.layout.has_factor() && grouped.scale == DType::E4M3 {
                let values = widen(checkpoint.raw(name)?, info.dtype).unwrap_or_default();
                factor = grouped::factor(format, &values);
            }
            let tensors = options.layout.tensors(module, n, k, grouped, factor);
            units.push(Unit::Module { name: module, dtype: info.dtype, n, k, format, factor, tensors });
        } else {
            let item = Item {
                name: name.to_owned(),
                dtype: info.dtype.to_string(),
                align: (info.dtype.bitsize() / 8).max(1) as u64,
                shape: info.shape.to_vec(),
                bytes: info.bytes as u64,
            };
            units.push(Unit::Keep { name, items: vec![item] });
        }
    }
    if units.iter().all(|unit| unit.module().is_none()) {
        return Err(QuantizeError::Nothing { path: checkpoint.path().to_owned(), tensors: units.len() });
    }
    Ok(units)
}

/// Runs of units that fill a file each; all tensors of a module lie in one.
fn split<'a, 'b>(units: &'a [Unit<'b>], max: u64) -> Vec<&'a [Unit<'b>]> {
    let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (at, unit) in units.iter().enumerate() {
        let more: u64 = unit.items().iter().map(|item| item.bytes).sum();
        if bytes + more > max && at > start {
            shards.push(&units[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += more;
    }
    shards.push(&units[start..]);
    shards
}

struct Job<'a> {
    checkpoint: &'a Checkpoint,
    progress: &'a mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    layout: Layout,
    done: u64,
    total: u64,
}

impl Job<'_> {
    fn report(&mut self, name: &str, bytes: usize) -> Result<(), QuantizeError> {
        self.done += bytes as u64;
        match (self.progress)(Progress { name, done: self.done, total: self.total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(QuantizeError::Cancelled),
        }
    }

    fn write(&mut self, unit: &Unit<'_>, shard: &mut Shard) -> Result<(), QuantizeError> {
        match unit {
            Unit::Keep { name, items } => {
                let bytes = self.checkpoint.raw(name)?;
                for item in items {
                    shard.write(&item.name, 0, bytes)?;
                }
                self.report(name, bytes.len())
            }
            Unit::Module { name, dtype, n, k, format, factor, tensors } => {
                self.module(name, *dtype, [*n, *k], (*format, *factor), tensors, shard)
            }
        }
    }

    /// Encodes a matrix block of rows by block of rows, several at a time. Blocks hold whole words of zero points.
    fn module(
        &mut self,
        module: &str,
        dtype: StoredType,
        [n, k]: [usize; 2],
        (format, factor): (Format, f32),
        tensors: &Tensors,
        shard: &mut Shard,
    ) -> Result<(), QuantizeError> {
        let bytes = self.checkpoint.raw(&format!("{module}.weight"))?;
        let row_bytes = k * dtype.bitsize() / 8;
        let rows = (CHUNK / k.max(1)).next_multiple_of(8).max(8);
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(8));
        let mut starts = (0..n).step_by(rows);
        let (layout, items) = (self.layout, &tensors.items);
        let planes = items.len() - tensors.constants.len();
        let mut offsets = vec![0u64; planes];
        loop {
            let batch: Vec<usize> = starts.by_ref().take(threads).collect();
            if batch.is_empty() {
                break;
            }
            let encode = |start: usize| {
                let count = rows.min(n - start);
                let values = widen(&bytes[start * row_bytes..(start + count) * row_bytes], dtype);
                let mut planes = grouped::encode(format, count, k, &values.unwrap_or_default(), factor)?;
                planes.iter_mut().enumerate().for_each(|(at, bytes)| layout.arrange(at, bytes));
                Ok(planes)
            };
            let encoded: Vec<Result<Vec<Vec<u8>>, ShapeError>> = std::thread::scope(|scope| {
                let all: Vec<_> = batch.iter().map(|&start| scope.spawn(move || encode(start))).collect();
                all.into_iter()
                    .map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                    .collect()
            });
            for (start, planes) in batch.into_iter().zip(encoded) {
                let planes = planes.map_err(|source| QuantizeError::Module {
                    path: self.checkpoint.path().to_owned(),
                    module: format!("{module}, rows from {start}"),
                    source,
                })?;
                for ((item, plane), offset) in items.iter().zip(&planes).zip(&mut offsets) {
                    shard.write(&item.name, *offset, plane)?;
                    *offset += plane.len() as u64;
                }
                self.report(module, rows.min(n - start) * row_bytes)?;
            }
        }
        for (item, bytes) in items[planes..].iter().zip(&tensors.constants) {
            shard.write(&item.name, 0, bytes)?;
        }
        Ok(())
    }
}
