//! What a run asks of a task: examples of rows, and their loss with its gradient.

use ocelli_engine::{Ctx, Result};

use crate::contrastive::Recall;
use crate::data::TrainRow;

/// The loss of some examples.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loss {
    /// Sum over what is learnt, in nats.
    pub nats: f64,
    /// How much is learnt: tokens, pictures, or pairs.
    pub tokens: usize,
    /// Tokens that were read.
    pub read: usize,
}

impl Loss {
    /// Nats a token.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.nats / self.tokens.max(1) as f64
    }

    /// Adds that of other examples.
    pub fn add(&mut self, other: Self) {
        self.nats += other.nats;
        self.tokens += other.tokens;
        self.read += other.read;
    }
}

/// What a validation came to.
#[derive(Clone, Copy, Debug)]
pub struct Checked {
    /// Mean loss.
    pub loss: f64,
    /// Share of the rows that came out as they should, where that was computed.
    pub exact: Option<f64>,
}

/// What is drawn for a row may depend on this alone, so that a run which goes on draws the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Of the run.
    pub seed: u64,
    /// Times that all rows were seen before.
    pub epoch: u64,
    /// Line of the row.
    pub line: usize,
}

/// Makes the example of a row; rows for validation draw nothing.
pub type Read<'a, E> = dyn Fn(&TrainRow, Option<Draw>) -> Result<E> + Sync + 'a;

/// Learns from examples.
pub trait Learner<E> {
    /// Adds the gradient of the mean loss over all examples to that of the parameters, and gives the loss.
    ///
    /// # Errors
    /// If the model cannot run an example, an op has no gradient, or the loss is not finite.
    fn gradient(&mut self, cx: &mut Ctx, examples: &[E]) -> Result<Loss>;

    /// The loss alone, and what else tells how good the model is.
    ///
    /// # Errors
    /// If the model cannot run an example.
    fn check(&mut self, cx: &mut Ctx, examples: &[E]) -> Result<Checked>;

    /// The recall of the last [`check`](Self::check), of learners of pairs.
    fn recall(&self) -> Option<Recall> {
        None
    }

    /// What guessing costs, in nats.
    fn guess(&self) -> f64;

    /// Is called after each step of the optimizer.
    ///
    /// # Errors
    /// If a parameter cannot be set.
    fn stepped(&mut self, cx: &mut Ctx) -> Result<()> {
        let _ = cx;
        Ok(())
    }
}
