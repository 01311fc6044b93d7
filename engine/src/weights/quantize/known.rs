//! Inputs of matrices, of all at once where there is memory, else of some at a time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::QuantizeError;
use super::inputs::{Calibration, Inputs, Seen};

type ByModule = HashMap<String, Arc<Inputs>>;

/// What is done with inputs, and the modules that it is done for: those whose inputs are not among them have none.
type Take<'a> = dyn FnMut(&ByModule, &HashSet<String>) -> Result<(), QuantizeError> + 'a;

/// Where inputs come from.
pub(super) struct Known<'a> {
    calibration: Option<&'a mut dyn Calibration>,
    every: HashSet<String>,
    memory: u64,
    /// Whether it is known if memory holds all.
    asked: bool,
    all: Option<ByModule>,
}

impl<'a> Known<'a> {
    /// Of `every` module, with so many bytes.
    pub fn new(calibration: Option<&'a mut dyn Calibration>, every: HashSet<String>, memory: u64) -> Self {
        Self { calibration, every, memory, asked: false, all: None }
    }

    /// Gives `take` each of the wanted modules once, with the inputs of those that memory holds together.
    pub fn in_turns(
        &mut self,
        mut wanted: HashSet<String>,
        take: &mut Take<'_>,
    ) -> Result<(), QuantizeError> {
        while !wanted.is_empty() {
            if let Some(all) = &self.all {
                return take(all, &wanted);
            }
            let Some(calibration) = &mut self.calibration else { return take(&ByModule::new(), &wanted) };
            let first = !std::mem::replace(&mut self.asked, true);
            let asked = if first { &self.every } else { &wanted };
            let asked = asked.iter().map(String::as_str).collect();
            let Seen { inputs, left } = calibration.inputs(&asked, self.memory)?;
            if first && left.is_empty() {
                self.all = Some(inputs);
                continue;
            }
            let mut now: HashSet<String> = wanted.difference(&left).cloned().collect();
            if now.is_empty() && !first {
                // There is no memory for a single one.
                now.clone_from(&wanted);
            }
            take(&inputs, &now)?;
            wanted.retain(|name| !now.contains(name));
        }
        Ok(())
    }
}
