//! What `ocelli index` and `ocelli search` accept.

use std::path::PathBuf;

use clap::Args;

use super::{DeviceArgs, at_least_one, key_value, whole};

/// `ocelli index`.
#[derive(Debug, Args)]
pub struct IndexArgs {
    /// The folder; all pictures in it and below are taken: PNG, JPEG, WebP, GIF or BMP, by the ends of their names.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// File of the index. One that is there is made what the folder is: only what is new or has changed is computed.
    #[arg(long, value_name = "IDX")]
    pub out: PathBuf,
    /// A directory, or OWNER/NAME[@REVISION] of the Hugging Face hub. Without it that of the index; of a new one, the embedded dual
    /// encoder of drawn scenes. One that gives no vectors finds pictures by pictures alone, by pooled features of its tower.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Override a field of the image processor, such as max_num_patches=512; may be given several times. The index keeps them.
    #[arg(long = "processor", value_name = "KEY=VALUE", value_parser = key_value)]
    pub processor: Vec<(String, String)>,
    /// Refuse a model with fields in config.json that nothing here reads, or tensors that nothing uses, instead of warning.
    #[arg(long)]
    pub strict: bool,
    /// Most pixels of a picture, checked before it is decoded.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 100_000_000, value_parser = whole::<u64>)]
    pub max_pixels: u64,
    /// Pictures that are computed and written together.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    pub batch: usize,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print what was done as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `ocelli search`.
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// File of an index, as `ocelli index` makes it.
    #[arg(value_name = "IDX")]
    pub index: PathBuf,
    /// The text; of an index that was made by a dual encoder, such as CLIP or SigLIP.
    #[arg(value_name = "TEXT", required_unless_present = "image", conflicts_with = "image")]
    pub text: Option<String>,
    /// A picture that others are like.
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Most pictures that are found.
    #[arg(short, allow_negative_numbers = true, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    pub k: usize,
    /// Write a page with the pictures, which needs no other file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// The index's model, where it is not at its place any more: a directory, or OWNER/NAME[@REVISION] of the Hugging Face hub.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Most pixels of a picture, checked before it is decoded.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 100_000_000, value_parser = whole::<u64>)]
    pub max_pixels: u64,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print one JSON object in place of the lines.
    #[arg(long)]
    pub json: bool,
}
