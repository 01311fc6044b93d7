//! Arguments of `ocelli bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{BackendArg, DeviceArgs, ModelArgs, at_least_one, most_tokens, size, whole};

/// `ocelli bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: BenchCommand,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure a model: time to encode a picture, tokens a second of prompt and of answer, as medians.
    Model(BenchModelArgs),
    /// Measure this machine's roofs and each kernel's fraction of them, at the shapes of real models.
    Kernels(BenchKernelsArgs),
    /// Measure how long pictures take to decode, on one core.
    Pictures(BenchPicturesArgs),
    /// Compare two records of one kind: what is slower or faster by more than noise. Exit code 1 if anything is slower.
    Diff(BenchDiffArgs),
}

/// `ocelli bench diff`.
#[derive(Debug, Args)]
pub struct BenchDiffArgs {
    /// The earlier record: what `bench kernels`, `bench model` or `compare` printed with --json.
    #[arg(value_name = "BEFORE")]
    pub before: PathBuf,
    /// The later one.
    #[arg(value_name = "AFTER")]
    pub after: PathBuf,
    /// Percent by which a figure has to change to count; its spread has to be apart from the other's too.
    #[arg(long, allow_negative_numbers = true, value_name = "PERCENT", default_value_t = 5.0, value_parser = percent)]
    pub least: f64,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..100.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to below 100".into()),
    }
}

/// `ocelli bench pictures`.
#[derive(Debug, Args)]
pub struct BenchPicturesArgs {
    /// Pictures: PNG, JPEG, WebP, GIF or BMP.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Runs that count, after one that does not.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 9, value_parser = at_least_one)]
    pub runs: usize,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `ocelli bench kernels`.
#[derive(Debug, Args)]
pub struct BenchKernelsArgs {
    /// Backend to measure.
    #[arg(long, value_enum, default_value_t = BackendArg::Auto)]
    pub backend: BackendArg,
    /// Number of the device within the backend.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0, value_parser = whole::<usize>)]
    pub device: usize,
    /// Threads of the CPU backend; without it every core that the process may use.
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Only shapes whose op, description or spec contains this text.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Only this op, such as matmul or attention; may be given several times.
    #[arg(long = "op", value_name = "OP")]
    pub ops: Vec<String>,
    /// The ops that a request to this model runs (a picture of 512x512, 32 tokens of text), with random weights in its formats: a directory,
    /// or OWNER/NAME[@REVISION] of the Hugging Face hub.
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["decoders", "published", "shapes"])]
    pub model: Option<String>,
    /// The shapes of a file: TOML as those of bench/shapes.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["decoders", "published"])]
    pub shapes: Option<PathBuf>,
    /// The products of decode steps of eight published models instead, in every storage format: takes a quarter of an hour.
    #[arg(long)]
    pub decoders: bool,
    /// Products in the formats of published quantized checkpoints instead, with one row, 8 and 256: takes a quarter of an hour.
    #[arg(long, conflicts_with = "decoders")]
    pub published: bool,
    /// Begin no new shape after so many seconds; 1800 with --decoders or --published unless given.
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..), default_value_t = ocelli_bench::kernels::LIMIT.as_secs(), default_value_ifs([("decoders", "true", "1800"), ("published", "true", "1800")]))]
    pub limit: u64,
    /// Every variant that runs a spec, not just the one that is picked.
    #[arg(long, visible_alias = "all-variants")]
    pub all: bool,
    /// Exit with code 1 if a variant that is not picked is faster than the one that is, by more than noise; measures every variant.
    #[arg(long)]
    pub assert: bool,
    /// Note a variant that fails or gives wrong results and go on, instead of ending.
    #[arg(long)]
    pub keep_going: bool,
    /// Append each row to this file as it is measured, as a line of JSON.
    #[arg(long, value_name = "FILE")]
    pub rows: Option<PathBuf>,
    /// Write a page with the roofs and each kernel below them.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Choose kernels by estimate, not by what `ocelli kernels tune` measured.
    #[arg(long)]
    pub no_tune: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `ocelli bench model`.
#[derive(Debug, Args)]
pub struct BenchModelArgs {
    /// The same as --model.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub bare: Option<String>,
    #[command(flatten)]
    pub model: ModelArgs,
    /// A picture; without it noise of the size given by --image-size.
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Size of the picture of noise.
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = size, default_value = "512x512", conflicts_with = "image")]
    pub image_size: (usize, usize),
    /// Pictures of each request; those beyond the given one are of noise, as large.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub images: usize,
    /// Requests that are answered together, each with pictures of its own.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub batch: usize,
    /// Measure too how long a fresh process takes to its first token, about --image if that is given, with the model's files in memory and, where the system lets them go,
    /// with none of them there.
    #[arg(long)]
    pub cold_start: bool,
    /// The prompt.
    #[arg(long, value_name = "TEXT", default_value = "Describe this picture.")]
    pub prompt: String,
    /// Ask about so many made-up tokens of text instead of a picture.
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = at_least_one, conflicts_with_all = ["image", "image_size", "images", "batch", "prompt", "depth"])]
    pub prompt_tokens: Option<usize>,
    /// Fill the prompt up to so many tokens with made-up ones: the answer begins there.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0, value_parser = whole::<usize>)]
    pub depth: usize,
    /// Tokens of the answer that are measured.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 64, value_parser = most_tokens)]
    pub max_tokens: usize,
    /// Runs that count, after one that does not.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pub runs: usize,
    /// Time each op too, in one more run: where the time goes.
    #[arg(long)]
    pub ops: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

impl BenchModelArgs {
    /// The model, by a flag or bare.
    pub fn which(&self) -> ModelArgs {
        ModelArgs { model: self.model.model.clone().or_else(|| self.bare.clone()), ..self.model.clone() }
    }
}
