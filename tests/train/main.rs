//! Training: gradients and steps against PyTorch, runs that end early and go on, each task.

mod directions;
mod early;
mod faults;
mod gradients;
mod hidden;
mod lora;
mod reference;
mod runs;
mod taught;
