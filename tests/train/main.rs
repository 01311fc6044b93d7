//! Training: gradients and steps against PyTorch, runs that end early and go on.

mod gradients;
mod lora;
mod reference;
mod runs;
