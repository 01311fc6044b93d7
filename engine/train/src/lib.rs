//! Training: what is trained, examples, the loss and its gradient, the optimizer, runs that survive whatever ends them.
//!
//! Gradients come from a [tape](ocelli_engine::tape) of the very forward pass that answers requests. All parameters lie in one buffer in
//! the layout of the checkpoint that they become, and so do gradients and moments: a step of the optimizer is a pass over flat
//! memory, and saving is writing it.

pub mod augment;
pub mod contrastive;
pub mod data;
pub mod distill;
pub mod exact;
pub mod examples;
pub mod fresh;
pub mod learner;
pub mod lora;
pub mod optimizer;
pub mod parameters;
pub mod patches;
pub mod random;
pub mod run;
pub mod stored;
pub mod texts;
pub mod trainer;

pub use augment::Augment;
pub use contrastive::{Contrastive, Pair, Recall};
pub use data::{Rows, TrainRow};
pub use examples::{Batcher, Example};
pub use fresh::Fresh;
pub use learner::{Checked, Draw, Learner, Loss, Read};
pub use lora::{Lora, LoraOptions};
pub use optimizer::{AdamWOptions, Optimizer, Schedule, Stepped};
pub use parameters::{Parameter, Parameters};
pub use run::{Job, RunOptions, Watcher, run};
pub use texts::{Hiding, Texts};
pub use trainer::{TextTrainer, Trainer};
