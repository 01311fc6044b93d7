//! Training: gradients and steps against PyTorch, runs that end early and go on.

mod contrastive;
mod gradients;
mod lora;
mod pairs;
mod reference;
mod runs;
