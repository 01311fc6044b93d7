//! Runs cases and compares.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cases::{Case, CaseCx};
use crate::buffer::{Storage, View};
use crate::cpu::isa::Isa;
use crate::cpu::pool::Pool;
use crate::cpu::{CpuCx, CpuOp, caps};
use crate::op::{Access, Op};
use crate::oracle::decode;
use crate::oracle::{Expected, Oracle};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::select::Rows;
use crate::select::Variant;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::spec::DType;
use crate::spec::{Caps, KernelError, text};

/// Cases in a row that belong to one [`Part`]: neighbours often ask for the same kernels, which each part compiles.
const BLOCK: usize = 2;

/// A part of an op's cases, so that several tests share them.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    index: usize,
    of: usize,
    /// One block of those of the part in so many.
    every: usize,
}

impl Part {
    /// All cases.
    pub const WHOLE: Self = Self { index: 0, of: 1, every: 1 };

    /// The part called `name` among `all`.
    ///
    /// # Panics
    ///
    /// Where there is no such name.
    #[must_use]
    pub fn named(name: &str, all: &[&str]) -> Self {
        let index = all.iter().position(|one| *one == name).expect("the name of a part");
        Self { index, of: all.len(), every: 1 }
    }

    /// Whether a case belongs to it, by its number.
    #[must_use]
    pub const fn has(self, case: usize) -> bool {
        let block = case / BLOCK;
        block % self.of == self.index && (block / self.of).is_multiple_of(self.every)
    }

    /// A share of the part: of so many blocks of neighbouring cases the first.
    #[must_use]
    pub const fn share(self, every: usize) -> Self {
        Self { every, ..self }
    }
}

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
    /// Why the op has no kernels on the backend, if so.
    pub absent: Option<&'static str>,
    /// Whether the device was lost or did not answer: what follows did not run.
    pub over: bool,
}

/// Has each case of each variant told as it is done, for whoever may end the process at any moment.
const EACH: &str = "OCELLI_EACH_CASE";

impl Report {
    /// Prints what ran and what did not, of the op called `op`.
    ///
    /// # Panics
    ///
    /// Where something failed, or, unless `may_be_empty`, where nothing ran.
    pub fn settle(&self, op: &str, may_be_empty: bool) {
        if let Some(why) = self.absent {
            println!("not run: {op}: no kernels: {why}");
        }
        for (what, cases) in &self.ran {
            println!("{op} {what}: {cases} cases");
        }
        for (what, cases) in &self.skipped {
            let (kernel, why) = what.split_once(": ").unwrap_or((what, ""));
            if self.ran.contains_key(kernel) {
                println!("{op} {what}: {cases} cases left out");
            } else {
                println!("not run: {op} {kernel}: {why}");
            }
        }
        let failed = self.failed.len();
        let few: Vec<&str> = self.failed.iter().take(20).map(String::as_str).collect();
        assert!(failed == 0, "{failed} failed, {} passed:\n{}", self.passed, few.join("\n"));
        assert!(self.passed > 0 || may_be_empty || self.absent.is_some(), "{op}: nothing ran");
    }
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

    /// Every storage before a variant runs: inputs as they are, NaN in pure outputs.
    fn fresh(&self) -> Vec<Vec<u8>> {
        let mut all = self.before.clone();
        for view in &self.outputs {
            let bytes = &mut all[self.slot(view)];
            for start in element_bytes(view) {
                bytes[start..start + view.dtype().size()].fill(0xFF);
            }
        }
        all
    }

    /// Puts inputs back and NaN into pure outputs.
    fn reset(&self) {
        for (storage, bytes) in self.storages.iter().zip(self.fresh()) {
            storage.restore(&bytes);
        }
    }

    fn snapshot(&self) -> Vec<Vec<u8>> {
        self.storages.iter().map(Storage::snapshot).collect()
    }

    /// The first thing that is wrong with what a variant left behind.
    fn check(&self, after: &[Vec<u8>], expected: &[Expected]) -> Result<(), String> {
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
            one.compare(|index| decode(dtype, &after[slot][places[index]..]))?;
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

/// A case by its spec.
struct Listed<O: Op> {
    op: O,
    spec: O::Spec,
    text: String,
    about: String,
}

/// What a case's reference expects, and the memory that the case lies in.
struct Ready {
    expected: Vec<Expected>,
    memory: Memory,
}

/// Calls `each` for every case of a part, with a context that owns its memory.
fn each_case<O: Op>(
    seed: u64,
    part: Part,
    report: &mut Report,
    mut each: impl FnMut(&mut Report, &CaseCx, &Listed<O>),
) {
    let mut cx = CaseCx::new(seed);
    let cases = O::cases(&mut cx);
    if cases.is_empty() {
        report.failed.push(format!("{}: no cases", O::NAME));
    }
    for (_, Case { name, op }) in cases.into_iter().enumerate().filter(|(number, _)| part.has(*number)) {
        if report.over {
            break;
        }
        let about = format!("{} `{name}` (seed {seed})", O::NAME);
        let spec = match op.spec() {
            Ok(spec) => spec,
            Err(error) => {
                report.failed.push(format!("{about}: {error}"));
                continue;
            }
        };
        let text = text::write(&spec);
        if text::read::<O::Spec>(&text).as_ref() != Ok(&spec) {
            report.failed.push(format!("{about}: spec `{text}` does not survive its text form"));
        }
        each(report, &cx, &Listed { op, spec, text, about });
    }
}

impl<O: Op> Listed<O> {
    /// The rows that run the case on a device; not those that a device of capabilities `elsewhere` runs too.
    fn rows<L>(
        &self,
        report: &mut Report,
        rows: &'static [Variant<O::Spec, L>],
        caps: &Caps,
        place: &str,
        elsewhere: Option<&Caps>,
    ) -> Vec<&'static Variant<O::Spec, L>> {
        let (mut all, mut some) = (Vec::new(), false);
        for variant in rows {
            if let Some(reason) = (variant.reject)(&self.spec, caps) {
                *report.skipped.entry(format!("{} at {place}: {reason}", variant.name)).or_default() += 1;
                continue;
            }
            some = true;
            if elsewhere.is_none_or(|caps| (variant.reject)(&self.spec, caps).is_some()) {
                all.push(variant);
            }
        }
        if !some && !self.op.is_optional() {
            report.failed.push(format!("{}: no variant runs `{}` at {place}", self.about, self.text));
        }
        all
    }

    /// Runs the reference; `None` where it failed.
    fn ready(&self, report: &mut Report, cx: &CaseCx) -> Option<Ready> {
        let mut oracle = Oracle::new(cx.id(), true);
        if let Err(error) = self.op.reference(&mut oracle) {
            report.failed.push(format!("{}: {error}", self.about));
            return None;
        }
        let expected = oracle.into_expected();
        if let Some(error) = expected.iter().find_map(|one| one.check().err()) {
            report.failed.push(format!("{}: {error}", self.about));
            return None;
        }
        let memory = Memory::new(&self.op, &expected);
        Some(Ready { expected, memory })
    }

    /// Runs rows with `run`, which gives what each left in every storage.
    fn run<L>(
        &self,
        report: &mut Report,
        ready: &Ready,
        rows: &[&'static Variant<O::Spec, L>],
        place: &str,
        mut run: impl FnMut(&'static Variant<O::Spec, L>) -> Result<Vec<Vec<u8>>, KernelError>,
    ) {
        for variant in rows {
            let result = run(variant).map_err(|error| {
                report.over |= error.ends_device();
                error.to_string()
            });
            let checked = result.and_then(|after| ready.memory.check(&after, &ready.expected));
            let what = format!("{}: {} at {place} on `{}`", self.about, variant.name, self.text);
            if std::env::var_os(EACH).is_some() {
                let word = checked.as_ref().map_or_else(|why| format!("FAILED: {why}"), |()| "ok".to_owned());
                println!("case: {what}: {}", word.replace('\n', " "));
            }
            match checked {
                Ok(()) => report.passed += 1,
                Err(why) => report.failed.push(format!("{what}: {why}")),
            }
            *report.ran.entry(format!("{} at {place}", variant.name)).or_default() += 1;
            if report.over {
                return;
            }
        }
    }
}

/// Runs every CPU variant of `O` at each instruction set on every case.
pub fn run_cpu<O: CpuOp>(isas: &[Isa], pool: &Arc<Pool>, seed: u64) -> Report {
    let mut report = Report::default();
    if O::cpu_variants().is_empty() {
        report.failed.push(format!("{}: no CPU kernels", O::NAME));
    }
    each_case::<O>(seed, Part::WHOLE, &mut report, |report, cx, case| {
        let rows = |isa: &Isa| {
            let caps = caps(*isa, pool.threads());
            (*isa, case.rows(report, O::cpu_variants(), &caps, &isa.to_string(), None))
        };
        let todo: Vec<_> = isas.iter().map(rows).collect();
        let Some(ready) = case.ready(report, cx) else { return };
        for (isa, rows) in todo {
            let cpu = CpuCx { isa, pool: pool.clone(), id: cx.id() };
            case.run(report, &ready, &rows, &isa.to_string(), |variant| {
                ready.memory.reset();
                (variant.launch)(&case.op, &cpu)?;
                Ok(ready.memory.snapshot())
            });
        }
        ready.memory.reset();
    });
    report
}

/// What runs on a device.
#[derive(Clone, Copy, Debug)]
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub struct Plan<'a> {
    /// Names the device in the report.
    pub place: &'a str,
    /// The seed of the cases.
    pub seed: u64,
    /// The part of them that runs.
    pub part: Part,
    /// Those whose name contains this.
    pub only: Option<&'a str>,
    /// What a device of these capabilities runs too is left out.
    pub elsewhere: Option<&'a Caps>,
}

/// Runs rows of a table on cases, on copies of their memory on a device.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn run_copies<O: Op, Q: crate::op::Queue, L>(
    stream: &mut Q,
    rows: Rows<O::Spec, L>,
    plan: Plan<'_>,
    launch: impl Fn(&mut Q, &O, &'static Variant<O::Spec, L>) -> Result<(), KernelError>,
) -> Report {
    let mut report = Report::default();
    let rows = match rows {
        Ok(rows) => rows,
        Err(why) => return Report { absent: Some(why), ..report },
    };
    let Plan { place, seed, part, only, elsewhere } = plan;
    if rows.is_empty() {
        report.failed.push(format!("{}: no kernels at {place}", O::NAME));
    }
    let caps = stream.caps().clone();
    each_case::<O>(seed, part, &mut report, |report, cx, case| {
        if only.is_some_and(|only| !case.about.contains(only)) {
            return;
        }
        let rows = case.rows(report, rows, &caps, place, elsewhere);
        if rows.is_empty() {
            return;
        }
        let Some(ready) = case.ready(report, cx) else { return };
        let memory = &ready.memory;
        let written: Vec<bool> = memory.writable.iter().map(|bytes| bytes.contains(&true)).collect();
        let fresh = memory.fresh();
        let mut copies = Vec::new();
        let mut copy = || -> Result<(), KernelError> {
            for bytes in &fresh {
                let view = View::dense(stream.alloc(bytes.len())?, &[bytes.len()], DType::U8)?;
                stream.write(&view, bytes)?;
                copies.push(view);
            }
            Ok(())
        };
        if let Err(error) = copy() {
            report.failed.push(format!("{}: {error}", case.about));
            return;
        }
        let mut op = case.op.clone();
        op.visit(&mut |_, view| {
            if let Ok(moved) = view.with_storage(copies[memory.slot(view)].storage().clone()) {
                *view = moved;
            }
        });
        case.run(report, &ready, &rows, place, |variant| {
            for ((view, bytes), _) in copies.iter().zip(&fresh).zip(&written).filter(|(_, written)| **written)
            {
                stream.write(view, bytes)?;
            }
            launch(stream, &op, variant)?;
            let mut after = Vec::with_capacity(copies.len());
            for ((view, bytes), written) in copies.iter().zip(&fresh).zip(&written) {
                // Large weights are only read: nothing can have written them.
                let mut now = bytes.clone();
                if *written || bytes.len() <= 1 << 16 {
                    stream.read(view, &mut now)?;
                }
                after.push(now);
            }
            Ok(after)
        });
    });
    report
}

/// Runs every wgpu variant of `O` on the cases of a plan, on copies of their memory on the device.
#[cfg(feature = "wgpu")]
pub fn run_wgpu<O: crate::wgpu::WgpuOp>(device: &crate::wgpu::WgpuDevice, plan: Plan<'_>) -> Report {
    match device.queue() {
        Ok(mut stream) => {
            run_copies(&mut stream, O::wgpu_variants(), plan, |stream, op, row| stream.launch::<O>(op, row))
        }
        Err(error) => Report { failed: vec![error.to_string()], ..Report::default() },
    }
}

/// Runs every CUDA variant of `O` on the cases of a plan, on copies of their memory on the device.
#[cfg(feature = "cuda")]
pub fn run_cuda<O: crate::cuda::CudaOp>(device: &crate::cuda::CudaDevice, plan: Plan<'_>) -> Report {
    run_copies(&mut device.queue(), O::cuda_variants(), plan, |stream, op, row| stream.launch::<O>(op, row))
}

/// The kernels that the cases of an op whose name contains `only` ask for on a device of these capabilities, by variant. The cases are
/// those that `cx` makes: [`CaseCx::new`] with a run's seed gives those of that run.
#[cfg(feature = "cuda")]
pub fn cuda_kernels<O: crate::cuda::CudaOp>(
    caps: &Caps,
    mut cx: CaseCx,
    only: Option<&str>,
) -> Result<BTreeMap<&'static str, std::collections::BTreeSet<crate::cuda::KernelKey>>, KernelError> {
    use crate::cuda::{CudaStream, PlanDriver};
    use crate::op::Queue;

    let mut all: BTreeMap<_, std::collections::BTreeSet<_>> = BTreeMap::new();
    for Case { mut op, name } in O::cases(&mut cx) {
        if only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let spec = op.spec().map_err(|error| error.of_op(O::NAME))?;
        for row in O::cuda_variants().unwrap_or_default() {
            let plan = Arc::new(PlanDriver::new(caps.clone()));
            if (row.reject)(&spec, caps).is_some() {
                all.entry(row.name).or_default();
                continue;
            }
            let mut stream = CudaStream::new(plan.clone(), Arc::default());
            let mut moved = Vec::new();
            let mut failed = None;
            op.visit(&mut |_, view| {
                let place = moved.iter().find(|(of, _): &&(Storage, Storage)| of.same(view.storage()));
                let to = match place {
                    Some((_, to)) => Ok(to.clone()),
                    None => stream.alloc(view.storage().len()),
                };
                match to.and_then(|to| {
                    moved.push((view.storage().clone(), to.clone()));
                    Ok(view.with_storage(to)?)
                }) {
                    Ok(on_device) => *view = on_device,
                    Err(error) => failed = Some(error),
                }
            });
            if let Some(error) = failed {
                return Err(error);
            }
            stream.launch::<O>(&op, row)?;
            all.entry(row.name).or_default().extend(plan.keys());
        }
    }
    Ok(all)
}
