//! What `ocelli quantize` accepts.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{WhichArgs, at_least_one, key_value, whole};

/// `ocelli quantize`.
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    #[command(flatten)]
    pub which: WhichArgs,
    /// Directory to write; it appears when all is done.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Format of the decoder's linear layers; with int4, head and token embedding become int8.
    #[arg(long, value_enum)]
    pub format: FormatArg,
    /// Whose layout the copy has; that of compressed-tensors, of nf4 that of bitsandbytes.
    #[arg(long, value_enum)]
    pub layout: Option<LayoutArg>,
    /// Of integers, weights that share a scale: 32, 64 or 128, or 0 for a whole row.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 32, value_parser = whole::<u32>)]
    pub group: u32,
    /// Give each group a zero point besides its scale.
    #[arg(long, visible_alias = "asymmetric")]
    pub zero_point: bool,
    /// Type of the scales.
    #[arg(long, value_enum, default_value_t = ScalesArg::Stored)]
    pub scales: ScalesArg,
    /// Further parts to quantize, with commas between.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    pub include: Vec<IncludeArg>,
    #[command(flatten)]
    pub calibration: CalibrationArgs,
    /// How weights become codes: each the nearest, or so that each makes up for those before it (gptq), which takes --calibrate. With that
    /// gptq, of fp8 nearest.
    #[arg(long, value_enum)]
    pub rounding: Option<RoundingArg>,
    /// Scale channels by how large they are before weights are rounded (awq), which takes --calibrate. Norms and the matrices before take the
    /// inverse: the copy has no tensors more.
    #[arg(long, value_enum, default_value_t = ScalingArg::None)]
    pub scaling: ScalingArg,
    /// Clip the largest weights of a group where that makes outputs better; takes --calibrate.
    #[arg(long)]
    pub clip: bool,
    /// Largest file to write, in MB. A file that is complete survives a run that ends early: the same command goes on after it.
    #[arg(long, allow_negative_numbers = true, value_name = "MB", default_value_t = 4096, value_parser = megabytes)]
    pub shard_size: u64,
    /// Print what each matrix is off by, not those alone that are off by most.
    #[arg(long)]
    pub modules: bool,
    /// Replace a model that is at the destination.
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `--format` of `quantize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// Integers of 8 bits.
    Int8,
    /// Integers of 4 bits.
    Int4,
    /// 8-bit floats (E4M3), a scale a row.
    Fp8,
    /// NF4 in groups of 64.
    Nf4,
    /// 4-bit floats in groups of 32, with powers of two.
    Mxfp4,
    /// 4-bit floats in groups of 16, with scales of 8 bits.
    Nvfp4,
}

/// `--layout` of `quantize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LayoutArg {
    /// compressed-tensors (llm-compressor, vLLM, transformers).
    CompressedTensors,
    /// MLX.
    Mlx,
    /// bitsandbytes.
    Bitsandbytes,
}

/// `--scales` of `quantize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScalesArg {
    /// The type of the stored weights.
    Stored,
    /// bfloat16.
    Bf16,
    /// 16-bit floats.
    F16,
    /// 32-bit floats.
    F32,
}

/// `--include` of `quantize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IncludeArg {
    /// Linear layers of the vision tower.
    Tower,
    /// The connector.
    Connector,
    /// Head and token embedding, in 8 bits.
    Head,
}

/// Calibration data of `quantize`.
#[derive(Debug, Args)]
pub struct CalibrationArgs {
    /// Pictures, folders of them, or lists with a row each (JSON lines, CSV or Parquet, as for `ocelli batch`; a row's `prompt` or `question`
    /// is asked about its `image` or `images`): the model answers them on the CPU, and what it is off by is told of these answers.
    #[arg(long, value_name = "INPUT", num_args = 1..)]
    pub calibrate: Vec<PathBuf>,
    /// What is asked about pictures that come without a prompt.
    #[arg(long, value_name = "TEXT", default_value = "Describe this image.", requires = "calibrate")]
    pub prompt: String,
    /// Most rows to take, evenly from all.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 128, value_parser = at_least_one, requires = "calibrate")]
    pub calibration_rows: usize,
    /// Most tokens of an answer.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 32, value_parser = at_least_one, requires = "calibrate")]
    pub calibration_tokens: usize,
    /// Memory for what is known of inputs, in MB; what takes more is seen in several runs over the data.
    #[arg(long, allow_negative_numbers = true, value_name = "MB", default_value_t = 2048, value_parser = megabytes, requires = "calibrate")]
    pub calibration_memory: u64,
    /// Override a field of the image processor for calibration, such as do_image_splitting=false; may be given several times.
    #[arg(long = "processor", value_name = "KEY=VALUE", value_parser = key_value, requires = "calibrate")]
    pub processor: Vec<(String, String)>,
}

fn megabytes(text: &str) -> Result<u64, String> {
    let size = text.parse().ok().filter(|&size: &u64| size > 0).and_then(|size| size.checked_mul(1 << 20));
    size.ok_or_else(|| "expected a whole number, 1 or more".into())
}

/// `--rounding` of `quantize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoundingArg {
    /// Each weight the nearest code.
    Nearest,
    /// Column by column (GPTQ).
    Gptq,
}

/// `--scaling` of `quantize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScalingArg {
    /// None.
    None,
    /// By a power of mean magnitudes (AWQ).
    Awq,
}
