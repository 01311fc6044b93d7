//! Training: gradients and steps against PyTorch, runs that end early and go on, each task.

mod contrastive;
mod directions;
mod early;
mod faults;
mod gradients;
mod hidden;
mod lora;
mod pairs;
mod reference;
mod runs;
mod taught;
