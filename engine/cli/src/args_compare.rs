//! What `ocelli compare` accepts.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use ocelli_bench::compare::STORED;

use super::{BackendArg, DTypeArg, FormatArg, WhichArgs, at_least_one, key_value, most_tokens, whole};

/// `ocelli compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    #[command(flatten)]
    pub which: WhichArgs,
    /// Backends, with commas between; without it the CPU and what else this machine has.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "BACKEND")]
    pub backends: Vec<BackendArg>,
    /// Types of activations, with commas between; one that a device does not compute with is left out with its reason.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TYPE", default_value = "f32")]
    pub dtypes: Vec<DTypeArg>,
    /// Formats of the weights, with commas between: as stored, or rounded to fewer bits for this comparison, in a folder that is gone
    /// afterwards.
    #[arg(long, value_parser = format(), value_delimiter = ',', value_name = "FORMAT", default_value = STORED)]
    pub formats: Vec<ComparedFormat>,
    /// Pictures to ask about, with commas between or given several times; without it six that are embedded, or none where the model sees none.
    #[arg(long, visible_alias = "image", value_delimiter = ',', value_name = "FILE")]
    pub images: Vec<PathBuf>,
    /// What is asked about each picture; without it "Describe the picture.", of the embedded ones a question each.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Tokens of each answer.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 16, value_parser = most_tokens)]
    pub max_tokens: usize,
    /// Runs that are timed, after one that is not.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    pub runs: usize,
    /// Largest relative error of a stage that is allowed; without it 1e-4 in f32 and 0.05 in 16 bits with weights as stored, any with others.
    #[arg(long, allow_negative_numbers = true, value_name = "X", value_parser = positive)]
    pub max_error: Option<f64>,
    /// Largest mean divergence of an answer's probabilities, in nats; without it 1e-6 in f32 and 0.01 in 16 bits, likewise.
    #[arg(long, allow_negative_numbers = true, value_name = "X", value_parser = positive)]
    pub max_kl: Option<f64>,
    /// Least share of tokens that both find likeliest; without it 1 in f32 and 0.98 in 16 bits, likewise.
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE", value_parser = positive)]
    pub min_top1: Option<f64>,
    /// Override a field of the image processor, such as do_image_splitting=false; may be given several times.
    #[arg(long = "processor", value_name = "KEY=VALUE", value_parser = key_value)]
    pub processor: Vec<(String, String)>,
    /// Most pixels of a picture, checked before it is decoded.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 100_000_000, value_parser = whole::<u64>)]
    pub max_pixels: u64,
    /// Number of the device within each backend.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0, value_parser = whole::<usize>)]
    pub device: usize,
    /// Threads of the CPU backend; without it every core that the process may use.
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Write a page with the stages side by side and the drift by layer.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print one JSON object, of schema ocelli.compare.v1.
    #[arg(long)]
    pub json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("expected a number that is not negative".into()),
    }
}

/// A format of weights: as the model has them (`None`), or rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComparedFormat(pub Option<FormatArg>);

/// `stored`, or a format of `ocelli quantize`.
fn format() -> impl TypedValueParser<Value = ComparedFormat> {
    let rounded = FormatArg::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    let all = [PossibleValue::new(STORED).help("As the model has them")].into_iter().chain(rounded);
    PossibleValuesParser::new(all).map(|text| ComparedFormat(FormatArg::from_str(&text, false).ok()))
}
