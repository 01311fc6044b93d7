//! Adapters that are added to the weights as they are loaded: `W + s B A`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Peft;
use crate::error::{Error, Result};
use crate::weights::Checkpoint;

/// What is added to one matrix: `B A`, the scale in A.
pub struct Delta {
    n: usize,
    k: usize,
    r: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    used: AtomicBool,
}

impl Delta {
    /// Adds it to the values of a matrix `[n, k]`, row by row; false if that is of another shape.
    #[must_use]
    pub fn add_to(&self, [n, k]: [usize; 2], values: &mut [f32]) -> bool {
        self.used.store(true, Ordering::Relaxed);
        if [n, k] != [self.n, self.k] || values.len() != n * k {
            return false;
        }
        let mut sum = vec![0f64; k];
        for (row, b) in values.chunks_exact_mut(k.max(1)).zip(self.b.chunks_exact(self.r)) {
            sum.fill(0.0);
            for (a, &b) in self.a.chunks_exact(k.max(1)).zip(b) {
                sum.iter_mut().zip(a).for_each(|(sum, &a)| *sum += f64::from(a) * f64::from(b));
            }
            row.iter_mut().zip(&sum).for_each(|(value, sum)| *value = (f64::from(*value) + sum) as f32);
        }
        true
    }

    /// The shape of the matrix, `[n, k]`.
    #[must_use]
    pub const fn shape(&self) -> [usize; 2] {
        [self.n, self.k]
    }
}

/// What is added to the matrices of a checkpoint, by the paths of their modules.
#[derive(Default)]
pub struct Deltas(HashMap<String, Delta>);

impl Deltas {
    /// What an adapter adds to a checkpoint.
    ///
    /// # Errors
    /// If the adapter is of another model.
    pub fn of(peft: &Peft, checkpoint: &Checkpoint) -> Result<Self> {
        let mut modules: Vec<&str> =
            checkpoint.names().filter_map(|name| name.rsplit_once('.')).map(|(module, _)| module).collect();
        modules.dedup();
        modules.sort_unstable();
        modules.dedup();
        let all = peft
            .matrices(&modules)?
            .into_iter()
            .map(|(module, [n, k, r], a, b)| (module, Delta { n, k, r, a, b, used: AtomicBool::new(false) }));
        Ok(Self(all.collect()))
    }

    /// What is added to a module's matrix, if anything is.
    #[must_use]
    pub fn get(&self, module: &str) -> Option<&Delta> {
        self.0.get(module)
    }

    /// Errors if something was not added to any matrix.
    ///
    /// # Errors
    /// The first module that no linear layer was loaded from.
    pub fn check(&self, name: &str) -> Result<()> {
        let left =
            self.0.iter().filter(|(_, delta)| !delta.used.load(Ordering::Relaxed)).map(|(module, _)| module);
        match left.min() {
            None => Ok(()),
            Some(module) => Err(Error::Adapter {
                name: name.to_owned(),
                reason: format!(
                    "`{module}`: the model has no linear layer of this name that adapters can be merged into"
                ),
            }),
        }
    }
}

impl std::fmt::Debug for Deltas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "of {} matrices", self.0.len())
    }
}
