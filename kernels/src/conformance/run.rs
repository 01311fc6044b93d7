//! Runs cases and compares.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cases::{Case, CaseCx, decode};
use crate::buffer::{Storage, View};
use crate::cpu::isa::Isa;
use crate::cpu::pool::Pool;
use crate::cpu::{CpuCx, caps};
use crate::op::{Access, CpuOp, Op};
use crate::oracle::{Expected, Oracle};
use crate::select::select;
use crate::spec::text;

/// What one op's conformance run found.
#[derive(Debug, Default)]
pub struct Report {
    /// Case x variant x instruction set that passed.
    pub passed: usize,
    /// Each failure, with everything needed to repeat it.
    pub failed: Vec<String>,
    /// Variant and reason, with the number of cases that it did not run for it.
    pub skipped: BTreeMap<String, usize>,
    /// Variant and instruction set, with the number of cases that it ran.
    pub ran: BTreeMap<String, usize>,
}

/// Bytes of every storage of an op, and which of them the op may change.
struct Memory {
    storages: Vec<Storage>,
    before: Vec<Vec<u8>>,
    writable: Vec<Vec<bool>>,
    outputs: Vec<View>,
}

impl Memory {
    fn new<O: Op>(op: &O, expected: &[Expected]) -> Self {
        let mut memory = Self { storages: vec![], before: vec![], writable: vec![], outputs: vec![] };
        let (mut inputs, mut outputs): (Vec<View>, Vec<View>) = (vec![], vec![]);
        op.clone().visit(&mut |access, view| {
            if !memory.storages.iter().any(|storage| storage.same(view.storage())) {
                let bytes = view.storage().snapshot();
                memory.writable.push(vec![false; bytes.len()]);
                memory.before.push(bytes);
                memory.storages.push(view.storage().clone());
            }
            match access {
                Access::In => inputs.push(view.clone()),
                Access::Out => outputs.push(view.clone()),
                Access::InOut => {}
            }
        });
        for view in &outputs {
            memory.allow(view, None);
        }
        for one in expected {
            memory.allow(&one.view, one.indices.as_deref());
        }
        outputs.retain(|out| !inputs.iter().any(|input| input.overlaps(out)));
        memory.outputs = outputs;
        memory
    }

    fn slot(&self, view: &View) -> usize {
        self.storages.iter().position(|storage| storage.same(view.storage())).unwrap_or(0)
    }

    fn allow(&mut self, view: &View, indices: Option<&[usize]>) {
        let slot = self.slot(view);
        for (place, start) in element_bytes(view).into_iter().enumerate() {
            if indices.is_none_or(|indices| indices.binary_search(&place).is_ok()) {
                self.writable[slot][start..start + view.dtype().size()].fill(true);
            }
        }
    }

    /// Puts inputs back and NaN into pure outputs.
    fn reset(&self) {
        for (storage, bytes) in self.storages.iter().zip(&self.before) {
            storage.restore(bytes);
        }
        for view in &self.outputs {
            let mut bytes = view.storage().snapshot();
            for start in element_bytes(view) {
                bytes[start..start + view.dtype().size()].fill(0xFF);
            }
            view.storage().restore(&bytes);
        }
    }

    /// The first thing that is wrong after a variant ran.
    fn check(&self, expected: &[Expected]) -> Result<(), String> {
        let after: Vec<Vec<u8>> = self.storages.iter().map(Storage::snapshot).collect();
        for (slot, bytes) in after.iter().enumerate() {
            for (at, (new, old)) in bytes.iter().zip(&self.before[slot]).enumerate() {
                if new != old && !self.writable[slot][at] {
                    return Err(format!("operand {slot}: byte {at} of {} was overwritten", bytes.len()));
                }
            }
        }
        for one in expected {
            let (slot, dtype) = (self.slot(&one.view), one.view.dtype());
            let places = element_bytes(&one.view);
            for (i, (&want, &bound)) in one.values.iter().zip(&one.bounds).enumerate() {
                let index = one.indices.as_ref().map_or(i, |indices| indices[i]);
                let got = decode(dtype, &after[slot][places[index]..]);
                let same = got == want || (got.is_nan() && want.is_nan());
                if !same && ((got - want).abs() > bound || got.is_nan()) {
                    return Err(format!(
                        "element {index} of {:?}: expected {want:e} within {bound:e}, found {got:e} (off by {:e})",
                        one.view,
                        (got - want).abs()
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Byte offset of each element in its storage, in row-major order.
fn element_bytes(view: &View) -> Vec<usize> {
    let mut all = Vec::with_capacity(view.len());
    view.layout().for_each_offset(|offset| all.push(view.offset() + offset * view.dtype().size()));
    all
}

/// Runs every CPU variant of `O` at each instruction set on every case.
pub fn run_cpu<O: CpuOp>(isas: &[Isa], pool: &Arc<Pool>, seed: u64) -> Report {
    let mut report = Report::default();
    let mut cx = CaseCx::new(seed);
    let cases = O::cases(&mut cx);
    if cases.is_empty() || O::cpu_variants().is_empty() {
        report.failed.push(format!("{}: no cases or no CPU kernels", O::NAME));
    }
    for Case { name, op } in cases {
        let about = |what: String| format!("{} `{name}` (seed {seed}): {what}", O::NAME);
        let spec = match op.spec() {
            Ok(spec) => spec,
            Err(error) => {
                report.failed.push(about(error.to_string()));
                continue;
            }
        };
        let spec_text = text::write(&spec);
        if text::read::<O::Spec>(&spec_text).as_ref() != Ok(&spec) {
            report.failed.push(about(format!("spec `{spec_text}` does not survive its text form")));
        }
        let mut oracle = Oracle::new(cx.id(), true);
        if let Err(error) = op.reference(&mut oracle) {
            report.failed.push(about(error.to_string()));
            continue;
        }
        let expected = oracle.into_expected();
        let memory = Memory::new(&op, &expected);
        for &isa in isas {
            let caps = caps(isa, pool.threads());
            let cpu = CpuCx { isa, pool: pool.clone(), id: cx.id() };
            if select(O::cpu_variants(), &spec, &caps).is_none() {
                report.failed.push(about(format!("no variant runs `{spec_text}` at {isa}")));
            }
            for variant in O::cpu_variants() {
                if let Some(reason) = (variant.reject)(&spec, &caps) {
                    *report.skipped.entry(format!("{} at {isa}: {reason}", variant.name)).or_default() += 1;
                    continue;
                }
                memory.reset();
                let result = (variant.launch)(&op, &cpu).map_err(|error| error.to_string());
                match result.and_then(|()| memory.check(&expected)) {
                    Ok(()) => report.passed += 1,
                    Err(what) => {
                        report
                            .failed
                            .push(about(format!("{} at {isa} on `{spec_text}`: {what}", variant.name)));
                    }
                }
                *report.ran.entry(format!("{} at {isa}", variant.name)).or_default() += 1;
            }
        }
        memory.reset();
    }
    report
}
