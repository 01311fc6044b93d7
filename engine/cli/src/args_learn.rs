//! What `ocelli train distill`, `pretrain` and `masked` accept, and how every task changes pictures.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{LearnArgs, PartArg, not_negative, positive, share};
use crate::args::{WhichArgs, at_least_one, key_value};

/// How pictures are changed before they are learnt from; those for validation never are.
#[derive(Debug, Args)]
pub struct AugmentArgs {
    /// See a part of each picture, of at least a share S of its area, resized to the picture's size.
    #[arg(long, help_heading = "Augmentation", allow_negative_numbers = true, value_name = "S", value_parser = share)]
    pub crop: Option<f64>,
    /// Mirror every other picture left to right.
    #[arg(long, help_heading = "Augmentation")]
    pub flip: bool,
    /// Change brightness, contrast and saturation by factors between 1 - S and 1 + S.
    #[arg(long, help_heading = "Augmentation", visible_alias = "color", allow_negative_numbers = true, value_name = "S", value_parser = share)]
    pub colour: Option<f64>,
}

/// `ocelli train distill`.
#[derive(Debug, Args)]
pub struct DistillArgs {
    #[command(flatten)]
    pub which: WhichArgs,
    #[command(flatten)]
    pub run: LearnArgs,
    /// The teacher: a directory, or OWNER/NAME[@REVISION] of the hub; quantized ones too. It has the student's vocabulary.
    #[arg(long, value_name = "MODEL", required_unless_present = "teacher_logits")]
    pub teacher: Option<String>,
    /// Learn from logits that --store-logits wrote for the same --data, without the teacher.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["teacher", "features", "store_logits"])]
    pub teacher_logits: Option<PathBuf>,
    /// Write the teacher's logits of all rows to a safetensors file before it begins, and learn from them: each row is asked once,
    /// however many epochs there are. With --resume a file that is there is used.
    #[arg(long, value_name = "FILE", requires = "teacher", conflicts_with = "features")]
    pub store_logits: Option<PathBuf>,
    /// Store the K likeliest tokens of each place alone; the rest of the probability is taken to be spread evenly over the others.
    #[arg(long, allow_negative_numbers = true, value_name = "K", value_parser = at_least_one, requires = "store_logits")]
    pub top_k: Option<usize>,
    /// Temperature T of both softmaxes; the loss by the teacher is T^2 KL(teacher || student).
    #[arg(long, allow_negative_numbers = true, value_name = "T", default_value_t = 2.0, value_parser = positive)]
    pub temperature: f64,
    /// Weight of the loss of the right tokens, which is added.
    #[arg(long, allow_negative_numbers = true, value_name = "W", default_value_t = 0.5, value_parser = not_negative)]
    pub hard: f64,
    /// Learn the features that the teacher's tower and connector make of pictures, by the mean of squared distances; tower and connector
    /// are trained unless --train says otherwise. Features are as many and as wide as the student's.
    #[arg(long, conflicts_with_all = ["temperature", "hard"])]
    pub features: bool,
    /// Parts that are trained, with commas between; all of them without it.
    #[arg(long = "train", value_enum, value_delimiter = ',', value_name = "PART")]
    pub parts: Vec<PartArg>,
    /// Most tokens of a row; longer ones are left out and told.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 4096, value_parser = at_least_one)]
    pub max_tokens: usize,
    /// Most tokens that go through the model at once: bounds the memory of activations.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 2048, value_parser = at_least_one)]
    pub pass_tokens: usize,
    /// Set a field of the student's image processor.
    #[arg(long = "processor", value_name = "KEY=VALUE", value_parser = key_value)]
    pub processor: Vec<(String, String)>,
}

/// `ocelli train pretrain`.
#[derive(Debug, Args)]
pub struct PretrainArgs {
    #[command(flatten)]
    pub which: WhichArgs,
    /// Begin from nothing: a config.json, with tokenizer and processor beside it. Weights are drawn by --seed.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["bare", "named"])]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub run: LearnArgs,
    /// Parts that are trained, with commas between; all of them without it.
    #[arg(long = "train", value_enum, value_delimiter = ',', value_name = "PART")]
    pub parts: Vec<PartArg>,
    /// Most tokens of a sequence: longer texts are cut into several; with pictures they are left out and told.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 1024, value_parser = at_least_one)]
    pub max_tokens: usize,
    /// Most tokens that go through the model at once, several sequences packed: bounds the memory of activations.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 2048, value_parser = at_least_one)]
    pub pass_tokens: usize,
    /// Set a field of the image processor.
    #[arg(long = "processor", value_name = "KEY=VALUE", value_parser = key_value)]
    pub processor: Vec<(String, String)>,
}

/// `ocelli train masked`.
#[derive(Debug, Args)]
pub struct MaskedArgs {
    #[command(flatten)]
    pub which: WhichArgs,
    #[command(flatten)]
    pub run: LearnArgs,
    /// What is hidden.
    #[arg(long, value_enum, default_value_t = WhatArg::Text)]
    pub what: WhatArg,
    /// Share of a text's tokens, or of a picture's patches, that is hidden: 0.15 and 0.5 without it.
    #[arg(long, allow_negative_numbers = true, value_name = "S", value_parser = share)]
    pub share: Option<f64>,
    /// Token that stands for hidden ones; without it the tokenizer's own, and random ones alone if there is none.
    #[arg(long, value_name = "TOKEN")]
    pub mask_token: Option<String>,
    /// What is told of a hidden patch: its pixels, normalized within the patch, or the teacher's features of it.
    #[arg(long, value_enum, default_value_t = PredictArg::Pixels)]
    pub predict: PredictArg,
    /// Whose features are told, of a tower that sees pictures in the same patches.
    #[arg(long, value_name = "MODEL")]
    pub teacher: Option<String>,
    /// Parts that are trained, with commas between; without it all of them, and of hidden patches the tower.
    #[arg(long = "train", value_enum, value_delimiter = ',', value_name = "PART")]
    pub parts: Vec<PartArg>,
    /// Most tokens of a row; longer ones are left out and told.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 4096, value_parser = at_least_one)]
    pub max_tokens: usize,
    /// Most tokens that go through the model at once: bounds the memory of activations.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 2048, value_parser = at_least_one)]
    pub pass_tokens: usize,
    /// Set a field of the image processor.
    #[arg(long = "processor", value_name = "KEY=VALUE", value_parser = key_value)]
    pub processor: Vec<(String, String)>,
}

/// What `ocelli train masked` hides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhatArg {
    /// Tokens of texts. Each is told from what stands before it: decoders see no further.
    Text,
    /// Patches of pictures, which become gray.
    Patches,
}

/// What is told of hidden patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PredictArg {
    /// Their pixels.
    Pixels,
    /// The features that a teacher's tower makes of them.
    Features,
}
