//! What the command line accepts.

#![allow(rustdoc::broken_intra_doc_links, reason = "the comments here are help texts, not Markdown")]

#[path = "args_bench.rs"]
mod bench;
#[path = "args_compare.rs"]
mod compare;
#[path = "args_quantize.rs"]
mod quantize;
#[path = "args_search.rs"]
mod search;
#[path = "args_serve.rs"]
mod serve;
#[path = "args_train.rs"]
mod train;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ocelli_engine::Precision;
use ocelli_engine::devices::{usual_dtype, usual_kv};
use ocelli_kernels::{Arch, Backend, Caps, DType};

use crate::batch::args::BatchArgs;
use crate::form::FormArgs;
pub use bench::{
    BenchArgs, BenchCommand, BenchDiffArgs, BenchKernelsArgs, BenchModelArgs, BenchPicturesArgs,
};
pub use compare::{CompareArgs, ComparedFormat};
pub use quantize::{
    CalibrationArgs, FormatArg, IncludeArg, LayoutArg, QuantizeArgs, RoundingArg, ScalesArg, ScalingArg,
};
pub use search::{IndexArgs, SearchArgs};
pub use serve::ServeArgs;
pub use train::{
    AugmentArgs, ContrastiveArgs, DistillArgs, LearnArgs, LoraArg, MaskedArgs, MergeArgs, PartArg,
    PredictArg, PretrainArgs, ScheduleArg, SftArgs, TrainArgs, TrainTask, WhatArg,
};

/// Run vision language models: pictures and text in, answers out.
#[derive(Debug, Parser)]
#[command(name = "ocelli", version, about, max_term_width = 110)]
pub struct Cli {
    /// Say more on stderr; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say nothing on stderr but errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer a prompt about pictures.
    Run(RunArgs),
    /// Answer prompts about many pictures, into a file that survives whatever ends the run.
    Batch(Box<BatchArgs>),
    /// Draw what a prompt asks for; by a model such as Janus.
    Imagine(ImagineArgs),
    /// Answer over HTTP by OpenAI's protocol, and on a web page.
    Serve(ServeArgs),
    /// Make vectors of pictures and texts, which are alike where those are; by a model such as CLIP or SigLIP. Other models that see
    /// pictures give these alone vectors: pooled features of their tower.
    Embed(EmbedArgs),
    /// Make or renew an index of the pictures in a folder, by which `ocelli search` finds them.
    Index(IndexArgs),
    /// Find pictures of an index by a text, or by a picture that they are like.
    Search(SearchArgs),
    /// Say how well labels fit pictures; by a model such as CLIP or SigLIP.
    Classify(ClassifyArgs),
    /// Compare a model stage by stage with a reference made by transformers.
    Verify(VerifyArgs),
    /// Run a model on several backends, in several types and formats: speed, memory, and how far each drifts from the CPU in f32.
    Compare(Box<CompareArgs>),
    /// Show what a model is, how it would run and with how much memory, without reading its weights.
    Inspect(InspectArgs),
    /// Measure kernels or a model.
    Bench(BenchArgs),
    /// Write a copy of a model with weights rounded to 8 or 4 bits, which other engines load too.
    Quantize(QuantizeArgs),
    /// Train a model: answers, a teacher's knowledge, texts, what is hidden; on the CPU.
    Train(TrainArgs),
    /// List devices, usable or not.
    Devices(DevicesArgs),
    /// List kernel variants, or explain which one runs.
    Kernels(KernelsArgs),
    /// Print a completion script, such as `ocelli completions bash > ~/.local/share/bash-completion/completions/ocelli`.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the man page, or write those of all commands to a directory.
    Man {
        /// Directory for one page each of `ocelli` and its commands; made if absent.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

impl Command {
    /// Where spans of tracing go.
    pub fn otlp(&self) -> Option<&str> {
        match self {
            Self::Run(args) => args.trace.otlp.as_deref(),
            Self::Batch(args) => args.trace.otlp.as_deref(),
            Self::Serve(args) => args.trace.otlp.as_deref(),
            _ => None,
        }
    }
}

/// Where the time of each request is told.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Send a span of each stage of each request to a collector of OpenTelemetry, by OTLP over HTTP, such as
    /// http://127.0.0.1:4318; of each pass of the model too with --verbose.
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
}

/// Which model.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// A directory, or OWNER/NAME[@REVISION] of the Hugging Face hub; without it the embedded demo model.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Override a field of the image processor, such as do_image_splitting=false; may be given several times.
    #[arg(long = "processor", value_name = "KEY=VALUE", value_parser = key_value)]
    pub processor: Vec<(String, String)>,
    /// Refuse a model with fields in config.json that nothing here reads, or tensors that nothing uses, instead of warning.
    #[arg(long)]
    pub strict: bool,
    /// Directory of an adapter in PEFT's layout (LoRA) that is used beside the weights. `ocelli serve` takes several as NAME=DIR,
    /// which requests name as their model.
    #[arg(long = "adapter", value_name = "[NAME=]DIR")]
    pub adapters: Vec<AdapterArg>,
    /// Add the adapter to the weights as they are loaded: answers come faster, and matrices that it changes take memory.
    #[arg(long, requires = "adapters")]
    pub merge_adapter: bool,
}

/// An adapter, and what requests call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterArg {
    /// None: all requests use it.
    pub name: Option<String>,
    /// Its folder.
    pub folder: PathBuf,
}

impl std::str::FromStr for AdapterArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, folder) = match text.split_once('=') {
            Some(("", _)) => return Err("expected NAME=DIR or DIR".into()),
            Some((name, folder)) => (Some(name.to_owned()), folder),
            None => (None, text),
        };
        if folder.is_empty() {
            return Err("expected the directory of an adapter".into());
        }
        Ok(Self { name, folder: folder.into() })
    }
}

impl ModelArgs {
    /// The adapter that answers, where one request is like the other. Errors if there are several.
    pub fn one_adapter(&self) -> Result<Option<std::sync::Arc<str>>, crate::fail::Failure> {
        match &self.adapters[..] {
            [] => Ok(None),
            _ if self.merge_adapter => Ok(None),
            [one] => Ok(one.name.as_deref().map(Into::into)),
            more => {
                let what = format!("--adapter: expected one here, found {}", more.len());
                Err(crate::fail::Failure::new(what).hint("`ocelli serve` takes several, which requests name"))
            }
        }
    }

    /// How the model is loaded.
    pub fn setup(&self) -> crate::open::Setup<'_> {
        crate::open::Setup {
            processor: &self.processor,
            leftovers: self.leftovers(),
            adapters: &self.adapters,
            merge: self.merge_adapter,
        }
    }

    /// What is done with what a model's files have left over.
    pub fn leftovers(&self) -> ocelli_models::Leftovers {
        if self.strict { ocelli_models::Leftovers::Refuse } else { ocelli_models::Leftovers::Warn }
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".into()),
    }
}

/// Which model, by a flag or bare.
#[derive(Debug, Args)]
pub struct WhichArgs {
    /// A directory, or OWNER/NAME[@REVISION] of the Hugging Face hub; without it the embedded demo model.
    #[arg(value_name = "MODEL")]
    pub bare: Option<String>,
    /// The same as MODEL.
    #[arg(long = "model", value_name = "MODEL", conflicts_with = "bare")]
    pub named: Option<String>,
}

impl WhichArgs {
    /// The model, `None` for the demo.
    pub fn model(&self) -> Option<&str> {
        self.bare.as_deref().or(self.named.as_deref())
    }
}

impl DeviceArgs {
    /// How arithmetic may be rounded on a device with these capabilities.
    pub fn precision(&self, caps: &Caps) -> Precision {
        let dtype = self.dtype.on(caps);
        Precision {
            dtype,
            kv: self.kv_dtype.on(caps, self.fast_int8),
            fast_int8: self.fast_int8,
            fast_fp8: self.fast_fp8,
            reorder: self.reorder,
        }
    }
}

impl DeviceArgs {
    /// The same arguments for another process.
    pub fn pass_on(&self, command: &mut std::process::Command) {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map(|value| value.get_name().to_owned()).unwrap_or_default()
        };
        command.args(["--backend", &name(self.backend.to_possible_value())]);
        command.args(["--device", &self.device.to_string()]);
        command.args(["--dtype", &name(self.dtype.to_possible_value())]);
        command.args(["--kv-dtype", &name(self.kv_dtype.to_possible_value())]);
        if let Some(threads) = self.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        let flags = [
            ("--fast-int8", self.fast_int8),
            ("--fast-fp8", self.fast_fp8),
            ("--reorder", self.reorder),
            ("--no-tune", self.no_tune),
            ("--batch-invariant", self.batch_invariant),
        ];
        command.args(flags.into_iter().filter(|(_, set)| *set).map(|(flag, _)| flag));
    }
}

/// Where and how to compute.
#[derive(Clone, Debug, Args)]
pub struct DeviceArgs {
    /// Backend to compute on.
    #[arg(long, value_enum, default_value_t = BackendArg::Auto)]
    pub backend: BackendArg,
    /// Number of the device within the backend.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0, value_parser = whole::<usize>)]
    pub device: usize,
    /// Type of activations; weights stay as stored.
    #[arg(long, value_enum, default_value_t = DTypeArg::Auto)]
    pub dtype: DTypeArg,
    /// Type in which keys and values are kept: 16 bits take half the memory, and half the reading of long answers.
    #[arg(long, value_enum, default_value_t = KvDTypeArg::Auto)]
    pub kv_dtype: KvDTypeArg,
    /// Threads of the CPU backend; without it every core that the process may use.
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Multiply weights of 8 or 4-bit integers with activations rounded to 8-bit integers: faster, less exact.
    #[arg(long)]
    pub fast_int8: bool,
    /// Multiply FP8 weights with activations rounded to FP8, where the device can: faster, less exact.
    #[arg(long)]
    pub fast_fp8: bool,
    /// Store weights of AWQ and GPTQ anew, in the order that kernels like best, as GPUs have them: takes memory beside the file. Without
    /// it the CPU reads them where they lie.
    #[arg(long)]
    pub reorder: bool,
    /// Choose kernels by estimate, not by what `ocelli kernels tune` measured.
    #[arg(long)]
    pub no_tune: bool,
    /// Choose kernels, and how they cut their work, by nothing that depends on what else is answered at the same time: slower.
    #[arg(long)]
    pub batch_invariant: bool,
}

/// `--kv-dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvDTypeArg {
    /// As activations; f16 on the CPU with --fast-int8.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit floats.
    F16,
    /// 8-bit integers with a scale for each head of each token: a quarter of the memory of f32; not with CUDA yet.
    Int8,
}

impl KvDTypeArg {
    /// The type on a device, `None` for that of activations.
    pub fn on(self, caps: &Caps, fast_int8: bool) -> Option<DType> {
        match self {
            Self::Auto => usual_kv(caps, fast_int8),
            Self::F32 => Some(DType::F32),
            Self::Bf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
            Self::Int8 => Some(DType::I8),
        }
    }
}

/// `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// The best that this machine has.
    Auto,
    /// Rust SIMD on the host.
    Cpu,
    /// WGSL through wgpu.
    Wgpu,
    /// CUDA.
    Cuda,
}

impl BackendArg {
    /// The backend, `None` for auto.
    pub fn backend(self) -> Option<Backend> {
        match self {
            Self::Auto => None,
            Self::Cpu => Some(Backend::Cpu),
            Self::Wgpu => Some(Backend::Wgpu),
            Self::Cuda => Some(Backend::Cuda),
        }
    }
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DTypeArg {
    /// bf16 with CUDA, f16 on other GPUs that compute with it, f32 elsewhere.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit floats.
    F16,
}

impl DTypeArg {
    /// The type that is named; `None` for auto.
    pub fn named(self) -> Option<DType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(DType::F32),
            Self::Bf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
        }
    }

    /// The type on a device: auto is bf16 with CUDA, f16 on other GPUs that compute with it, f32 elsewhere.
    pub fn on(self, caps: &Caps) -> DType {
        self.named().unwrap_or_else(|| usual_dtype(caps))
    }
}

/// How to choose tokens.
#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// Randomness: 0 always takes the most likely token.
    #[arg(long, allow_negative_numbers = true, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Sample among this many most likely tokens; 0 is all.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0, value_parser = top_k)]
    pub top_k: u32,
    /// Sample among the most likely tokens that reach this probability together.
    #[arg(long, allow_negative_numbers = true, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Sample among tokens with at least this part of the largest probability.
    #[arg(long, allow_negative_numbers = true, value_name = "P", default_value_t = 0.0)]
    pub min_p: f32,
    /// Above 1, tokens that occurred become less likely.
    #[arg(long, allow_negative_numbers = true, value_name = "X", default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// Seed of the random numbers.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0, value_parser = whole::<u64>)]
    pub seed: u64,
    /// End the answer at this text, or at this token of the model, which is left out; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// End the answer at this token id; may be given several times.
    #[arg(long, allow_negative_numbers = true, value_name = "ID", value_parser = whole::<u32>)]
    pub stop_token: Vec<u32>,
    /// Most tokens of the answer, which ends at the model's last position whatever this is.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 512, value_parser = most_tokens)]
    pub max_tokens: usize,
    /// Go on after the model's own end tokens.
    #[arg(long)]
    pub ignore_eos: bool,
    /// Guess up to so many tokens at a time, 0 to 64, from where the last ones stood before in prompt or answer, and read them in one
    /// pass: faster where an answer repeats such, and the same answer.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0, value_parser = whole::<usize>)]
    pub speculate: usize,
}

/// `ocelli run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A picture: PNG, JPEG, WebP, GIF or BMP; may be given several times.
    #[arg(long = "image", value_name = "FILE")]
    pub images: Vec<PathBuf>,
    #[command(flatten)]
    pub video: VideoArgs,
    /// The prompt; `-` reads it from standard input. Behind messages it is the user's next one.
    #[arg(value_name = "PROMPT", required_unless_present = "messages")]
    pub prompt: Option<String>,
    /// A system message before the prompt.
    #[arg(long, value_name = "TEXT", conflicts_with = "messages")]
    pub system: Option<String>,
    /// A conversation as JSON, in the layout of OpenAI's chat completions: messages with `role` and `content`, pictures as `image_url`
    /// with a path, from the file's folder on, or `data:` address. `-` reads it from standard input.
    #[arg(long, value_name = "FILE")]
    pub messages: Option<PathBuf>,
    /// Set a variable of the model's chat template, such as enable_thinking=false; the value is JSON or a text. May be given several
    /// times.
    #[arg(long = "chat-template-arg", value_name = "KEY=VALUE")]
    pub template_args: Vec<String>,
    /// Draw the places that the answer names onto the first picture, as a PNG file; of models whose answers name such.
    #[arg(long, value_name = "FILE")]
    pub draw: Option<PathBuf>,
    /// Show on stderr what a model thinks before it answers; --json always has it.
    #[arg(long)]
    pub show_thinking: bool,
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
    /// Print one JSON object in place of the text.
    #[arg(long)]
    pub json: bool,
}

/// `ocelli imagine`.
#[derive(Debug, Args)]
pub struct ImagineArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// What to draw.
    #[arg(value_name = "PROMPT")]
    pub prompt: String,
    /// The picture, a PNG file, which appears when it is whole; of several, NAME-0.png, NAME-1.png and so on. Without it picture.png, which
    /// is refused where one is there already.
    #[arg(long, value_name = "NAME.png")]
    pub out: Option<PathBuf>,
    /// Pictures, drawn together.
    #[arg(long = "n", allow_negative_numbers = true, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub pictures: usize,
    /// How much the prompt counts: 1 not more than the model has it, more with each step above. Without it as the model's
    /// generation_config.json says, else 5.
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    pub guidance: Option<f32>,
    /// Randomness: 0 always takes the most likely token. Without it as the model says, else 1.
    #[arg(long, allow_negative_numbers = true, value_name = "T")]
    pub temperature: Option<f32>,
    /// Sample among this many most likely tokens; 0 is all. Without it as the model says, else 0.
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = top_k)]
    pub top_k: Option<u32>,
    /// Sample among the most likely tokens that reach this probability together. Without it as the model says, else 1.
    #[arg(long, allow_negative_numbers = true, value_name = "P")]
    pub top_p: Option<f32>,
    /// Seed of the random numbers.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0, value_parser = whole::<u64>)]
    pub seed: u64,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print one JSON object in place of the names: token ids, timings.
    #[arg(long)]
    pub json: bool,
}

/// Videos of the prompt.
#[derive(Debug, Args)]
pub struct VideoArgs {
    /// A video: a folder of pictures, which are its frames in order of their names, or a file, whose frames an installed ffmpeg takes
    /// out; may be given several times. Videos come after pictures.
    #[arg(long = "video", value_name = "DIR|FILE")]
    pub videos: Vec<PathBuf>,
    /// Frames a second: those of a folder, or those that are taken out of a file.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 1.0, value_parser = rate)]
    pub fps: f64,
    /// Most frames of a video; of more, so many are taken evenly from the first to the last.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    pub max_frames: usize,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "expected a number above 0".into())
}

/// Which model that gives vectors, and what it reads.
#[derive(Debug, Args)]
pub struct VectorArgs {
    /// A directory, or OWNER/NAME[@REVISION] of the Hugging Face hub, of a model that gives vectors; without it the embedded dual
    /// encoder of drawn scenes.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Override a field of the image processor, such as max_num_patches=512; may be given several times.
    #[arg(long = "processor", value_name = "KEY=VALUE", value_parser = key_value)]
    pub processor: Vec<(String, String)>,
    /// Refuse a model with fields in config.json that nothing here reads, or tensors that nothing uses, instead of warning.
    #[arg(long)]
    pub strict: bool,
    /// Most pixels of a picture, checked before it is decoded.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 100_000_000, value_parser = whole::<u64>)]
    pub max_pixels: u64,
    /// Pictures that are computed together.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    pub batch: usize,
}

/// `ocelli embed`.
#[derive(Debug, Args)]
pub struct EmbedArgs {
    #[command(flatten)]
    pub vectors: VectorArgs,
    /// Pictures (PNG, JPEG, WebP, GIF or BMP), or folders, which stand for all pictures in them and below, in order of their names.
    #[arg(value_name = "PICTURE", required_unless_present = "texts")]
    pub pictures: Vec<PathBuf>,
    /// A text; may be given several times. Texts come after pictures.
    #[arg(long = "text", id = "texts", value_name = "TEXT")]
    pub texts: Vec<String>,
    /// How vectors are written.
    #[arg(long, value_enum, default_value_t = VectorFormat::Jsonl)]
    pub format: VectorFormat,
    /// File to write, which appears when all is done; without it standard output.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// `--format` of `embed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VectorFormat {
    /// A line with a JSON object each: `picture` or `text`, and `vector`, or `error` in its place.
    Jsonl,
    /// One NumPy array of 32-bit floats with a row each; those of pictures that cannot be read are NaN.
    Npy,
}

/// `ocelli classify`.
#[derive(Debug, Args)]
pub struct ClassifyArgs {
    #[command(flatten)]
    pub vectors: VectorArgs,
    /// Pictures (PNG, JPEG, WebP, GIF or BMP), or folders, which stand for all pictures in them and below, in order of their names.
    #[arg(value_name = "PICTURE", required = true)]
    pub pictures: Vec<PathBuf>,
    /// The labels, with commas between; may be given several times.
    #[arg(long, value_name = "LABEL", value_delimiter = ',', required = true)]
    pub labels: Vec<String>,
    /// The text that is made of a label, which takes the place of `{}`; without it "a photo of a {}.", or "a {}" for the embedded
    /// model.
    #[arg(long, value_name = "TEXT", value_parser = template)]
    pub template: Option<String>,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print one JSON object in place of the table.
    #[arg(long)]
    pub json: bool,
}

fn template(text: &str) -> Result<String, String> {
    if text.contains("{}") { Ok(text.to_owned()) } else { Err("expected a text with {} in it".into()) }
}

/// `ocelli verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A directory, or OWNER/NAME[@REVISION] of the Hugging Face hub.
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Directory with inputs.json and golden.safetensors.
    #[arg(long, value_name = "DIR")]
    pub reference: PathBuf,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `ocelli devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `ocelli kernels`.
#[derive(Debug, Args)]
pub struct KernelsArgs {
    #[command(subcommand)]
    pub command: KernelsCommand,
}

/// What to show of the kernels.
#[derive(Debug, Subcommand)]
pub enum KernelsCommand {
    /// List the variants of each op.
    List {
        /// One op only.
        op: Option<String>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Explain which variant runs a spec, and why the others do not: `ocelli kernels why matmul m=1 n=576 k=576 w=bf16`.
    Why {
        /// The op.
        op: String,
        /// Fields of its spec, FIELD=VALUE; the others are at their default.
        spec: Vec<String>,
        /// The backend.
        #[arg(long, value_enum, default_value_t = BackendArg::Cpu)]
        backend: BackendArg,
        /// A typical GPU of this architecture instead of a device of this machine: sm_80, sm_86, sm_89, sm_90a or sm_120.
        #[arg(long, value_name = "ARCH", conflicts_with = "backend")]
        arch: Option<Arch>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Compile the CUDA kernels that a model needs ahead of its run; needs no GPU. A run takes them from the folder that
    /// OCELLI_CUBINS names. They are those of a dry run on a typical GPU: what another one chooses is compiled when it is met.
    Compile(CompileArgs),
    /// Time the variants that could run each op and keep the fastest ones for this device; other commands then use them.
    Tune(TuneArgs),
}

/// `ocelli kernels compile`.
#[derive(Debug, Args)]
pub struct CompileArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Architectures, with commas between: sm_80 (A100), sm_86 (RTX 30), sm_89 (RTX 40), sm_90a (H100, H200), sm_120 (RTX 50).
    #[arg(long, value_name = "ARCH", value_delimiter = ',', required = true)]
    pub arch: Vec<Arch>,
    /// The folder to write to; made if absent.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Type of activations.
    #[arg(long, value_enum, default_value_t = DTypeArg::Auto)]
    pub dtype: DTypeArg,
    /// Type in which keys and values are kept.
    #[arg(long, value_enum, default_value_t = KvDTypeArg::Auto)]
    pub kv_dtype: KvDTypeArg,
    /// Those that round activations to FP8 for FP8 weights.
    #[arg(long)]
    pub fast_fp8: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `ocelli kernels tune`.
#[derive(Debug, Args)]
pub struct TuneArgs {
    /// Tune what this model runs too: a directory, or OWNER/NAME[@REVISION] of the Hugging Face hub.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Only shapes whose op, description or spec contains this text.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Begin no new shape after so many seconds.
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", default_value_t = 600, value_parser = whole::<u64>)]
    pub limit: u64,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `ocelli inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    pub which: WhichArgs,
    /// Override a field of the image processor, such as do_image_splitting=false; may be given several times.
    #[arg(long = "processor", value_name = "KEY=VALUE", value_parser = key_value)]
    pub processor: Vec<(String, String)>,
    /// Size of a picture of the planned request; may be given several times. Without it one of 512x512, if the model takes pictures.
    #[arg(long = "image-size", value_name = "WIDTHxHEIGHT", value_parser = size)]
    pub image_sizes: Vec<(usize, usize)>,
    /// Pictures of the planned request, those beyond the given sizes being of the last one.
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=256))]
    pub images: Option<u16>,
    /// Tokens of text in the planned request, besides pictures and chat template.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 32, value_parser = whole::<usize>)]
    pub prompt_tokens: usize,
    /// Most tokens of the answer, for which keys and values are kept.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 512, value_parser = most_tokens)]
    pub max_tokens: usize,
    /// List the matrices too: shape, format, the kernels for one row and for a prompt, and how they are published.
    #[arg(long)]
    pub modules: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Most pixels of a picture that is only planned with, as `run` has by default.
const MAX_PIXELS: usize = 100_000_000;

pub fn size(text: &str) -> Result<(usize, usize), String> {
    let (width, height) = text.split_once(['x', 'X']).ok_or("expected WIDTHxHEIGHT, such as 512x512")?;
    let side = |text: &str| text.parse::<usize>().ok().filter(|&side| side > 0);
    match (side(width), side(height)) {
        (Some(width), Some(height))
            if width.checked_mul(height).is_some_and(|pixels| pixels <= MAX_PIXELS) =>
        {
            Ok((width, height))
        }
        (Some(_), Some(_)) => Err(format!("more than {MAX_PIXELS} pixels")),
        _ => Err("expected WIDTHxHEIGHT, such as 512x512".into()),
    }
}

/// A number of things.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&count| count > 0).ok_or_else(|| "expected a whole number, 1 or more".into())
}

/// A whole number.
pub fn whole<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "expected a whole number, 0 or more".into())
}

fn top_k(text: &str) -> Result<u32, String> {
    whole(text).map_err(|expected: String| format!("{expected}\n{TIP}0 keeps all tokens"))
}

/// A limit of tokens: any positive number, however large.
pub fn most_tokens(text: &str) -> Result<usize, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && text.bytes().any(|b| b != b'0') {
        return Ok(text.parse().unwrap_or(usize::MAX));
    }
    let tip = "a large number is no limit: an answer ends by itself or at the model's last position";
    Err(format!("expected a whole number, 1 or more\n{TIP}{tip}"))
}

/// What begins a line of a parser's error that is to be the hint.
pub const TIP: &str = "tip: ";
