//! Time of each op of a run, added up over layers and steps.

use std::collections::HashMap;
use std::time::Duration;

use ocelli_kernels::Cost;
use serde::Serialize;

use crate::timing::Phase;

/// What the calls of one op in one module came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpTime {
    /// In which stage.
    pub phase: Phase,
    /// Name of the op.
    pub op: &'static str,
    /// Path of the module, the numbers of layers written as `*`.
    pub module: String,
    /// Number of calls.
    pub calls: u64,
    /// Milliseconds of all calls.
    pub ms: f64,
    /// Floating-point operations of all calls.
    pub flops: u64,
    /// Bytes that the calls could not avoid to read or write.
    pub bytes: u64,
}

/// Collects the time of ops; see [`Ctx::trace`](crate::Ctx::trace).
#[derive(Debug, Default)]
pub struct Trace(HashMap<(Phase, &'static str, String), (u64, Duration, Cost)>);

impl Trace {
    /// Adds a call.
    pub(crate) fn add(&mut self, phase: Phase, op: &'static str, path: &str, time: Duration, cost: Cost) {
        let total = self.0.entry((phase, op, module(path))).or_default();
        total.0 += 1;
        total.1 += time;
        total.2 += cost;
    }

    /// What was collected, the longest time of each stage first.
    #[must_use]
    pub fn rows(&self) -> Vec<OpTime> {
        let row = |((phase, op, module), (calls, time, cost)): (
            &(Phase, &'static str, String),
            &(u64, Duration, Cost),
        )| OpTime {
            phase: *phase,
            op,
            module: module.clone(),
            calls: *calls,
            ms: time.as_secs_f64() * 1e3,
            flops: cost.flops,
            bytes: cost.bytes(),
        };
        let mut rows: Vec<OpTime> = self.0.iter().map(row).collect();
        rows.sort_by(|a, b| {
            a.phase.cmp(&b.phase).then(b.ms.total_cmp(&a.ms)).then_with(|| a.module.cmp(&b.module))
        });
        rows
    }
}

/// A path without the numbers of its layers.
fn module(path: &str) -> String {
    let part = |part| if str::parse::<usize>(part).is_ok() { "*" } else { part };
    path.split('.').map(part).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_layers_are_added_up() {
        let mut trace = Trace::default();
        let cost = Cost { flops: 8, read: 3, written: 1 };
        for (path, ms) in [("a.0.mlp", 1), ("a.17.mlp", 2), ("a.norm", 9)] {
            trace.add(Phase::Decode, "matmul", path, Duration::from_millis(ms), cost);
        }
        trace.add(Phase::Tower, "norm", "v", Duration::from_millis(1), cost);
        let rows: Vec<_> =
            trace.rows().into_iter().map(|r| (r.phase, r.module, r.calls, r.ms, r.bytes)).collect();
        let expected = [
            (Phase::Tower, "v".to_owned(), 1, 1.0, 4),
            (Phase::Decode, "a.norm".to_owned(), 1, 9.0, 4),
            (Phase::Decode, "a.*.mlp".to_owned(), 2, 3.0, 8),
        ];
        assert_eq!(rows, expected);
    }
}
