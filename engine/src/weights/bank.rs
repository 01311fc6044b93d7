//! Tensors that hold matrices of all experts of a layer, and what these are called where they lie apart.

use ocelli_kernels::{DType, View};

use super::{Checkpoint, Role, Scope};

/// A tensor `[experts, n, k]`, or `[experts, k, n]` where it is [turned](Self::turned): the same projections of each expert.
#[derive(Clone, Debug, PartialEq)]
pub struct Bank {
    /// Name of the tensor.
    pub tensor: String,
    /// How many experts there are.
    pub experts: usize,
    /// Columns of each matrix.
    pub k: usize,
    /// Type of the weights.
    pub dtype: DType,
    /// Whether rows and columns are exchanged.
    pub turned: bool,
    /// What the matrices are to the model.
    pub role: Option<Role>,
    /// The projections of an expert, the rows of each below those of the one before: names, and how many rows they have.
    pub projections: Vec<(String, usize)>,
    /// Where experts lie one by one: a projection of expert 3 is the module `{single}.3.{projection}`.
    pub single: String,
    /// Where MLX has all experts: a projection of all is the module `{stack}.{projection}`.
    pub stack: String,
    /// Where a loaded model has the matrices.
    place: Place,
}

/// Memory of the first of equal matrices that follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    storage: usize,
    offset: usize,
    step: usize,
}

impl Bank {
    /// A bank whose matrices a model takes from `view`, where those of each expert follow those of the one before, rows below rows.
    #[must_use]
    pub fn new(
        tensor: String,
        [experts, k]: [usize; 2],
        turned: bool,
        projections: Vec<(String, usize)>,
        [single, stack]: [String; 2],
        view: &View,
    ) -> Self {
        let rows: usize = projections.iter().map(|(_, rows)| rows).sum();
        let place = Place {
            storage: view.storage().id(),
            offset: view.offset(),
            step: rows * k * view.dtype().size(),
        };
        Self {
            tensor,
            experts,
            k,
            dtype: view.dtype(),
            turned,
            role: None,
            projections,
            single,
            stack,
            place,
        }
    }

    /// The module of a projection of one expert.
    #[must_use]
    pub fn module(&self, expert: usize, projection: &str) -> String {
        format!("{}.{expert}.{projection}", self.single)
    }

    /// Rows of all projections of an expert.
    pub(super) fn rows(&self) -> usize {
        self.projections.iter().map(|(_, rows)| rows).sum()
    }

    /// The memory of an expert's matrices, by which products are known.
    pub(crate) const fn place(&self, expert: usize) -> (usize, usize) {
        (self.place.storage, self.place.offset + expert * self.place.step)
    }
}

impl Scope<'_> {
    /// Declares that a tensor here holds matrices of all experts.
    pub fn bank(&self, bank: Bank) {
        if let Ok(mut banks) = self.checkpoint().banks.lock() {
            banks.push(Bank { role: self.role_here(), ..bank });
        }
    }
}

impl Checkpoint {
    /// The banks that were declared so far, in order.
    #[must_use]
    pub fn banks(&self) -> Vec<Bank> {
        self.banks.lock().map(|banks| banks.clone()).unwrap_or_default()
    }
}
