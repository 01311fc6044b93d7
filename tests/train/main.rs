//! Training: gradients and steps against PyTorch, runs that end early and go on.

mod gradients;
mod reference;
mod runs;
