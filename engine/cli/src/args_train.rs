//! What `ocelli train` accepts.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{WhichArgs, at_least_one, key_value, whole};

#[path = "args_learn.rs"]
mod learn;
pub use learn::{AugmentArgs, DistillArgs, MaskedArgs, PredictArg, PretrainArgs, WhatArg};

/// `ocelli train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// What is trained for.
    #[command(subcommand)]
    pub task: TrainTask,
}

/// What a model is trained for.
#[derive(Debug, Subcommand)]
pub enum TrainTask {
    /// Answers about pictures: captions, questions, conversations. The loss is that of the next token of each answer.
    Sft(Box<SftArgs>),
    /// A teacher's probabilities: those of a larger model that is here, or of a file; or the features that its tower makes of pictures.
    Distill(Box<DistillArgs>),
    /// Texts as they are, without prompts: from nothing by a configuration, or from a model.
    Pretrain(Box<PretrainArgs>),
    /// What is hidden: tokens of texts about pictures, or patches of pictures.
    Masked(Box<MaskedArgs>),
    /// Pairs of pictures and texts, by dual encoders such as CLIP and SigLIP. The loss is the model's own: softmax or sigmoid over all pairs
    /// of a step.
    Contrastive(Box<ContrastiveArgs>),
    /// Adds an adapter to the weights of its model, for engines that take none beside it. Nothing is trained.
    Merge(MergeArgs),
}

/// What every task takes.
#[derive(Debug, Args)]
pub struct LearnArgs {
    /// JSON lines: `image` (or `images`), `prompt` and `text`, the answer; or `messages`. Paths are relative to the file.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Rows of the same kind whose loss is told, and which nothing is learnt from.
    #[arg(long, value_name = "FILE")]
    pub validation: Option<PathBuf>,
    /// Share of the rows of --data, drawn by --seed, that is for validation in place of a file.
    #[arg(long, allow_negative_numbers = true, value_name = "S", value_parser = below_one, conflicts_with = "validation")]
    pub validation_share: Option<f64>,
    /// Tell the share of the rows for validation that the model answers, greedily, just as they say; of tasks that learn answers.
    #[arg(long)]
    pub exact_match: bool,
    /// End after N validations in a row without a smaller loss; the model is that of the smallest one.
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = at_least_one)]
    pub patience: Option<usize>,
    #[command(flatten)]
    pub augment: AugmentArgs,
    /// Directory of the trained model, with `metrics.jsonl` and what --resume goes on from.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Field with the picture's path, or a list of them.
    #[arg(long, value_name = "FIELD", default_value = "image")]
    pub image_column: String,
    /// Field with what is asked.
    #[arg(long, value_name = "FIELD", default_value = "prompt")]
    pub prompt_column: String,
    /// Field with the answer.
    #[arg(long, value_name = "FIELD", default_value = "text")]
    pub answer_column: String,
    /// Times that all rows are seen.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 1, value_parser = at_least_one, conflicts_with = "steps")]
    pub epochs: usize,
    /// Steps in all, in place of --epochs.
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = at_least_one)]
    pub steps: Option<usize>,
    /// Rows of a step.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    pub batch: usize,
    /// Highest learning rate.
    #[arg(long, visible_alias = "lr", allow_negative_numbers = true, value_name = "R", default_value_t = 1e-4, value_parser = positive)]
    pub rate: f64,
    /// How the learning rate goes after it has risen.
    #[arg(long, value_enum, default_value_t = ScheduleArg::Cosine)]
    pub schedule: ScheduleArg,
    /// Steps on which the learning rate rises; a tenth of all, 100 at most, without it.
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = whole::<u64>)]
    pub warmup: Option<u64>,
    /// Weight decay of matrices.
    #[arg(long, allow_negative_numbers = true, value_name = "D", default_value_t = 0.01, value_parser = not_negative)]
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0: any.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 1.0, value_parser = not_negative)]
    pub clip: f64,
    /// Of the order of rows.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 0, value_parser = whole::<u64>)]
    pub seed: u64,
    /// Steps between checkpoints; 0: one at the end alone.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 100, value_parser = whole::<u64>)]
    pub save_every: u64,
    /// Steps between validations; 0: one at the end alone.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 100, value_parser = whole::<u64>)]
    pub check_every: u64,
    /// Threads; all cores without it.
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Go on where a run with the same arguments ended.
    #[arg(long)]
    pub resume: bool,
    /// Say what would be trained, with how much memory, and end.
    #[arg(long)]
    pub dry_run: bool,
    /// A page with plots of losses, rate, norm and speed, as one HTML file that asks for nothing else; written at the end, also where a
    /// run fails.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Print one JSON object at the end.
    #[arg(long)]
    pub json: bool,
}

/// `ocelli train sft`.
#[derive(Debug, Args)]
pub struct SftArgs {
    #[command(flatten)]
    pub which: WhichArgs,
    #[command(flatten)]
    pub run: LearnArgs,
    /// Parts that are trained, with commas between; all of them without it.
    #[arg(long = "train", value_enum, value_delimiter = ',', value_name = "PART")]
    pub parts: Vec<PartArg>,
    /// Train an adapter of low rank (LoRA) in place of the weights, which stay as they are, quantized or not: such as
    /// r=16,alpha=32,targets=q_proj+v_proj. Without targets all linear layers of the decoder, or of the parts of --train. The
    /// folder has PEFT's layout then.
    #[arg(long, value_name = "r=N[,alpha=A][,targets=NAME+...]", value_parser = lora)]
    pub lora: Option<LoraArg>,
    /// Most tokens of a row; longer ones are left out and told.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 4096, value_parser = at_least_one)]
    pub max_tokens: usize,
    /// Most tokens that go through the model at once: bounds the memory of activations, and changes no result but for rounding.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 2048, value_parser = at_least_one)]
    pub pass_tokens: usize,
    /// Compute the activations of layers again when their gradient is wanted, in place of keeping them: half the memory, half as much more time.
    #[arg(long)]
    pub recompute: bool,
    /// Set a field of the image processor.
    #[arg(long = "processor", value_name = "KEY=VALUE", value_parser = key_value)]
    pub processor: Vec<(String, String)>,
}

/// `ocelli train contrastive`.
#[derive(Debug, Args)]
pub struct ContrastiveArgs {
    /// A directory, or OWNER/NAME[@REVISION] of the Hugging Face hub; without it the embedded dual encoder.
    #[arg(value_name = "MODEL")]
    pub bare: Option<String>,
    /// The same as MODEL.
    #[arg(long = "model", value_name = "MODEL", conflicts_with = "bare")]
    pub named: Option<String>,
    /// Begin with fresh weights for this config.json, which lies beside the files of tokenizer and processor.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["bare", "named"])]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub run: LearnArgs,
    /// Parts that are trained, with commas between; all of them without it.
    #[arg(long = "train", value_enum, value_delimiter = ',', value_name = "PART")]
    pub parts: Vec<DualPartArg>,
    /// Tensors whose names begin so are not trained; may be given several times, or with commas between.
    #[arg(long, value_delimiter = ',', value_name = "PREFIX")]
    pub freeze: Vec<String>,
    /// Neighbouring rows of the file that a step sees together: a picture and others that differ from it in one thing teach more than others.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub together: usize,
    /// Most pairs that go through the model at once: bounds the memory of activations, and changes no result but for rounding. A batch of
    /// more goes through it twice.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    pub chunk: usize,
    /// Set a field of the image processor.
    #[arg(long = "processor", value_name = "KEY=VALUE", value_parser = key_value)]
    pub processor: Vec<(String, String)>,
}

/// Parts of a dual encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DualPartArg {
    /// What makes vectors of pictures.
    Pictures,
    /// What makes vectors of texts.
    Texts,
    /// What products of vectors are multiplied with, and what is added.
    Scale,
}

impl DualPartArg {
    /// Whether a tensor is of this part.
    pub fn has(self, name: &str) -> bool {
        let starts: &[&str] = match self {
            Self::Pictures => &["vision_model.", "visual_projection."],
            Self::Texts => &["text_model.", "text_projection."],
            Self::Scale => &["logit_"],
        };
        starts.iter().any(|start| name.starts_with(start))
    }
}

/// `ocelli train merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    #[command(flatten)]
    pub which: WhichArgs,
    /// Directory of the adapter, in PEFT's layout.
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// Directory of the merged model.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// What an adapter is to be like.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraArg {
    /// Rank.
    pub r: usize,
    /// Factor times rank; twice the rank without it.
    pub alpha: f64,
    /// Last parts of paths; none: all.
    pub targets: Vec<String>,
}

/// Parts of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PartArg {
    /// What sees pictures.
    Tower,
    /// What stands between tower and decoder.
    Connector,
    /// The layers of the decoder.
    Decoder,
    /// The table of tokens, and the head where it has weights of its own.
    Embedding,
}

/// How a learning rate goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScheduleArg {
    /// It stays.
    Constant,
    /// It falls to zero in a line.
    Linear,
    /// It falls to zero as half a wave of the cosine.
    Cosine,
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text).ok_or_else(|| "expected a number, 0 or more".into())
}

fn positive(text: &str) -> Result<f64, String> {
    number(text).filter(|&number| number > 0.0).ok_or_else(|| "expected a number above 0".into())
}

fn lora(text: &str) -> Result<LoraArg, String> {
    let (mut r, mut alpha, mut targets) = (None, None, Vec::new());
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or("expected r=N[,alpha=A][,targets=NAME+NAME]")?;
        match key.trim() {
            "r" => {
                let rank = value.parse().ok().filter(|&r| (1..=4096).contains(&r));
                r = Some(rank.ok_or("r: expected a rank of 1 to 4096")?);
            }
            "alpha" => alpha = Some(positive(value).map_err(|why| format!("alpha: {why}"))?),
            "targets" => targets = value.split('+').map(|name| name.trim().to_owned()).collect(),
            other => return Err(format!("expected r, alpha or targets, found `{other}`")),
        }
    }
    if targets.iter().any(String::is_empty) {
        return Err("targets: expected names of linear layers with + between, such as q_proj+v_proj".into());
    }
    let r: usize = r.ok_or("expected a rank, r=N")?;
    Ok(LoraArg { r, alpha: alpha.unwrap_or(2.0 * r as f64), targets })
}

/// Above 0 and below 1.
fn below_one(text: &str) -> Result<f64, String> {
    number(text)
        .filter(|&share| share > 0.0 && share < 1.0)
        .ok_or_else(|| "expected a number between 0 and 1".into())
}

/// Above 0, 1 at most.
fn share(text: &str) -> Result<f64, String> {
    number(text)
        .filter(|&share| share > 0.0 && share <= 1.0)
        .ok_or_else(|| "expected a number above 0, 1 at most".into())
}
