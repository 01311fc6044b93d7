//! What `ocelli batch` accepts.

#![allow(rustdoc::broken_intra_doc_links, reason = "the comments here are help texts, not Markdown")]

use std::path::PathBuf;

use clap::Args;

use crate::args::{DeviceArgs, ModelArgs, SamplingArgs, TraceArgs, at_least_one, whole};
use crate::form::FormArgs;

/// `ocelli batch`.
#[derive(Debug, Args)]
pub struct BatchArgs {
    /// Pictures, folders of them (with all folders below), or lists with a row each: JSON lines (.jsonl, .ndjson), CSV (.csv) or
    /// Parquet (.parquet). A name may have * and ? in it. Paths in a list are relative to its folder.
    #[arg(value_name = "INPUT", required = true)]
    pub inputs: Vec<PathBuf>,
    /// File of results, a row for each row of the input, as JSON lines or, if it ends in .parquet, as Parquet.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    #[command(flatten)]
    pub model: ModelArgs,
    /// The prompt; fields of the row can stand in it, as in "What is {{ name }}?". Given several times, each picture is asked each,
    /// and seen once. Without it rows have prompts of their own.
    #[arg(long = "prompt", value_name = "TEXT")]
    pub prompts: Vec<String>,
    /// A system message before the prompt.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub columns: ColumnArgs,
    /// Go on with a file of results: rows that it has are left as they are.
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// With --resume, try rows again that failed.
    #[arg(long, requires = "resume")]
    pub retry_errors: bool,
    /// Replace a file of results, and captions beside pictures.
    #[arg(long)]
    pub overwrite: bool,
    /// Write rows in the order of the input, not as they end.
    #[arg(long)]
    pub ordered: bool,
    /// End when more than so many rows have failed.
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = whole::<usize>)]
    pub max_errors: Option<usize>,
    /// Do every Nth row from the Ith on, counted from 0, so that N machines share the work; their files put together are the whole.
    #[arg(long, value_name = "I/N", value_parser = shard)]
    pub shard: Option<(usize, usize)>,
    /// Write each answer into a file beside its picture too, with this end of its name, such as txt.
    #[arg(long, value_name = "END")]
    pub sidecar: Option<String>,
    /// Requests that are answered at once, as far as the memory for keys and values goes.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    pub parallel: usize,
    /// Memory for keys and values, in MB; without it a quarter of what is free, at most what the requests can use.
    #[arg(long, allow_negative_numbers = true, value_name = "MB", value_parser = at_least_one)]
    pub kv_memory: Option<usize>,
    /// Folder where what the model sees in pictures is kept for other runs.
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Set a variable of the model's chat template, such as enable_thinking=false; may be given several times.
    #[arg(long = "chat-template-arg", value_name = "KEY=VALUE")]
    pub template_args: Vec<String>,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub form: FormArgs,
    #[command(flatten)]
    pub trace: TraceArgs,
    /// Most pixels of a picture, checked before it is decoded.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 100_000_000, value_parser = whole::<u64>)]
    pub max_pixels: u64,
    /// Write how the run went to a file: as a page if it ends in .html, else as JSON.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Print how the run went as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What fields of a list's rows are called.
#[derive(Debug, Default, Args)]
pub struct ColumnArgs {
    /// Field with the picture, or with a list of pictures: paths or data: addresses. Without it `image`, or `images`.
    #[arg(long, value_name = "NAME")]
    pub image_column: Option<String>,
    /// Field with the prompt.
    #[arg(long, value_name = "NAME", default_value = "prompt")]
    pub prompt_column: String,
    /// Field that names the row in the results; without it `id`, or the row's number where there is none.
    #[arg(long, value_name = "NAME")]
    pub id_column: Option<String>,
}

fn shard(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once('/').and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
    parts
        .filter(|(part, of)| part < of)
        .ok_or_else(|| "expected I/N with I from 0 to N - 1, such as 0/4".into())
}
