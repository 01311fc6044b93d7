//! Weights of a model: safetensors files, mapped and shared with the kernels without a copy.
//!
//! A [`Checkpoint`] is one file or several shards; a [`Scope`] is a place in its tree of names, from which a model's
//! parts take their tensors. Tensors that are not aligned to their type are copied, each alone, and counted. How a
//! linear layer is stored is found from its tensors and told to nobody but the kernels.

mod bank;
mod checkpoint;
mod compressed;
mod error;
mod file;
mod fp8;
mod header;
mod imagined;
mod linear;
mod notes;
mod published;
mod quantize;
mod scope;
mod stack;

pub use bank::Bank;
pub use checkpoint::Checkpoint;
pub use compressed::{Quantization, Scheme};
pub use error::WeightError;
pub use file::{Aligned, Copied, TensorFile, TensorInfo};
pub use header::{MAX_AXES, MAX_HEADER};
pub use notes::Note;
pub use published::sources;
pub use quantize::free_memory;
pub use quantize::{
    Anatomy, Calibration, Event, Fold, Inputs, Layout, MAX_SHARD, ModuleReport, Producer, Progress,
    QuantizeError, QuantizeOptions, QuantizeScheme, Quantized, Role, Rounding, Scaling, Seen, quantize,
    quantize_with,
};
pub(crate) use quantize::{Gatherer, Products};
pub use safetensors::Dtype as StoredType;
pub use scope::Scope;
pub use stack::{Columns, stacked, stacked_in_order};

/// The stored names that most resemble `wanted`, best first, at most three.
fn near<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let shared = |a: &mut dyn Iterator<Item = (u8, u8)>| a.take_while(|(x, y)| x == y).count();
    let mut found: Vec<(usize, &str)> = names
        .map(|name| {
            let head = shared(&mut wanted.bytes().zip(name.bytes()));
            let tail = shared(&mut wanted.bytes().rev().zip(name.bytes().rev()));
            ((head + tail).min(wanted.len()).min(name.len()), name)
        })
        .filter(|(score, name)| 2 * score > wanted.len().max(name.len()) && name.len() <= 200)
        .collect();
    found.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.len().cmp(&b.1.len())).then(a.1.cmp(b.1)));
    found.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}
