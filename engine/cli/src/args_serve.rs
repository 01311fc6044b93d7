//! What `ocelli serve` accepts.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::{DeviceArgs, ModelArgs, TraceArgs, at_least_one, whole};

/// `ocelli serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// What the model is called; without it its name on the hub, or that of its directory.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Address to listen at; 0.0.0.0 is every one of this machine.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port to listen at; 0 takes one that is free.
    #[arg(long, value_name = "N", default_value_t = 8080)]
    pub port: u16,
    /// A key of which clients must have one; may be given several times.
    #[arg(long = "api-key", value_name = "KEY", value_parser = key)]
    pub api_keys: Vec<String>,
    /// Answers that run at once.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 256, value_parser = at_least_one)]
    pub max_running: usize,
    /// Answers that wait beside those that run; further ones are refused with status 429.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 1024, value_parser = whole::<usize>)]
    pub max_queue: usize,
    /// Tokens of all running prompts and answers for which keys and values are kept.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 32_768, value_parser = at_least_one)]
    pub kv_tokens: usize,
    /// Most bytes of a request, or of a picture that it names.
    #[arg(long, allow_negative_numbers = true, value_name = "BYTES", default_value_t = 32 << 20, value_parser = at_least_one)]
    pub max_body: usize,
    /// Most pictures of a request.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 16, value_parser = whole::<usize>)]
    pub max_images: usize,
    /// Most pixels of a request's pictures together, checked before they are decoded.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 100_000_000, value_parser = whole::<u64>)]
    pub max_pixels: u64,
    /// Longest time of an answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub timeout: u64,
    /// Longest time that running answers get after SIGTERM or Ctrl-C; new ones are refused with status 503.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub drain: u64,
    /// Take pictures by path or file: address from below this folder, wherever links lead.
    #[arg(long, value_name = "DIR")]
    pub media_root: Option<PathBuf>,
    /// Take pictures by http: and https: address from these hosts, with commas between: names, *.DOMAIN, or * for all. Addresses that
    /// are not of the public internet are refused but for those of networks that are listed too, such as 10.1.0.0/16.
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub allow_remote_images: Vec<String>,
    /// An index of `ocelli index`, made by this model, that can be searched: at /v1/search, and on the page.
    #[arg(long, value_name = "IDX")]
    pub index: Option<PathBuf>,
    /// Folder for files and batches of requests (/v1/files, /v1/batches); it is made if it is not there. A server that is started
    /// again goes on with the batches in it.
    #[arg(long, value_name = "DIR")]
    pub files_dir: Option<PathBuf>,
    /// The origin of web pages that may ask, such as `https://app.example`, or * for all.
    #[arg(long, value_name = "ORIGIN")]
    pub cors: Option<String>,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub trace: TraceArgs,
}

fn key(text: &str) -> Result<String, String> {
    match text.bytes().all(|byte| byte.is_ascii_graphic()) && !text.is_empty() {
        true => Ok(text.to_owned()),
        false => Err("expected letters, digits and signs".into()),
    }
}
