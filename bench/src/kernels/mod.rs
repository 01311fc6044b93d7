//! Benchmarks of kernels: each op at each shape, checked against its f64 reference, timed cold, and held against the
//! roof of the instructions that it uses.

mod build;
mod operands;
mod tower;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ocelli_kernels::cpu::isa::Isa;
use ocelli_kernels::cpu::pool::Pool;
use ocelli_kernels::cpu::{CpuCx, caps};
use ocelli_kernels::ops::{Attention, GatherRows, Matmul, MergePatches, Norm, PatchEmbed, Rope, Sample};
use ocelli_kernels::spec::text;
use ocelli_kernels::{Backend, Caps, Cost, KernelError, Oracle, select};
use serde_json::{Map, Value};

use crate::machine::Machine;
use crate::record::{Record, Roof, Row, bound};
use crate::roof::{self, Roofs};
use crate::shapes::{Shape, Shapes};
use crate::stats::{Plan, time};

pub use build::Build;
pub use operands::Operands;
pub use tower::Tower;

/// Why a benchmark ended.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The backend has no kernels in this build.
    #[error("backend {backend}: {reason}")]
    Backend {
        /// The backend asked for.
        backend: Backend,
        /// Why it cannot be had.
        reason: String,
    },
    /// A list of shapes does not fit the ops.
    #[error("shapes: {0}")]
    Shapes(String),
    /// No shape is chosen.
    #[error("no shape has `{0}` in its op, description or spec")]
    Nothing(String),
    /// A kernel failed.
    #[error("{what}: {source}")]
    Kernel {
        /// Op and spec.
        what: String,
        /// What the kernel said.
        source: KernelError,
    },
    /// A kernel's result is not what the reference allows: nothing is timed then.
    #[error("{what}: wrong result: {detail}")]
    Wrong {
        /// Op, spec and variant.
        what: String,
        /// The first wrong value.
        detail: String,
    },
    /// The tower could not be made or run.
    #[error("tower: {0}")]
    Tower(String),
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only `cpu` has kernels so far.
    pub backend: Backend,
    /// Threads; `None` takes every core that the process may use.
    pub threads: Option<usize>,
    /// Only shapes whose op, description or spec contains this.
    pub only: Option<String>,
    /// Every variant that runs a spec, not just the picked one.
    pub all_variants: bool,
    /// No new row is begun after this time.
    pub limit: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            backend: Backend::Cpu,
            threads: None,
            only: None,
            all_variants: false,
            limit: Duration::from_secs(105),
        }
    }
}

/// Fields of a spec that a row always has: sizes, and the types of the operands even where they are the usual ones.
const KEPT: &[&str] = &["m", "n", "k", "x", "w"];

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The rows with machine and roofs.
    pub record: Record,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// Runs the embedded shapes and the vision tower. `progress` is told of each row as it is done.
pub fn run(options: &Options, progress: &mut dyn FnMut(&Row)) -> Result<Outcome, BenchError> {
    let begin = Instant::now();
    if options.backend != Backend::Cpu {
        return Err(BenchError::Backend { backend: options.backend, reason: "not built yet".into() });
    }
    let chosen = |shape: &Shape| match &options.only {
        None => true,
        Some(part) => [&shape.op, &shape.what, &shape.spec].iter().any(|text| text.contains(part.as_str())),
    };
    let tower = Shape { what: "vision tower".into(), op: "tower".into(), spec: Tower::SPEC.into() };
    // The shapes that bars are set for come first, should the time not reach.
    let mut lists = Shapes::embedded().map_err(BenchError::Shapes)?;
    lists.reverse();
    let shapes = lists.iter().flat_map(|list| &list.shapes);
    let shapes: Vec<&Shape> = std::iter::once(&tower).chain(shapes).filter(|shape| chosen(shape)).collect();
    if shapes.is_empty() {
        return Err(BenchError::Nothing(options.only.clone().unwrap_or_default()));
    }
    let mut cx = Cx::open(options.threads)?;
    let machine = Machine::describe(cx.cpu.isa, cx.cpu.pool.threads());
    let roofs = roof::measure(cx.cpu.isa, cx.cpu.pool.threads());
    let mut record = Record::new(machine, roofs);
    let mut notes = vec![];
    for shape in shapes {
        if begin.elapsed() > options.limit {
            notes.push(format!("{} {}: left out, the time is over", shape.op, shape.spec));
            continue;
        }
        let (rows, more) = cx.shape(shape, &record.roofs, options.all_variants)?;
        rows.iter().for_each(&mut *progress);
        record.rows.extend(rows);
        notes.extend(more);
    }
    Ok(Outcome { record, notes })
}

/// What kernels run on.
pub struct Cx {
    cpu: CpuCx,
    caps: Caps,
    operands: Operands,
}

/// A kernel at a shape, checked and ready to be timed.
pub struct Ready {
    /// Name of the variant.
    pub variant: String,
    /// Whether selection picks it.
    pub picked: bool,
    /// The spec's fields that differ from their default.
    pub spec: Map<String, Value>,
    /// What one run costs at least.
    pub cost: Cost,
    /// Runs it; another number takes other weights.
    pub run: Box<dyn FnMut(usize) -> Result<(), KernelError>>,
}

impl Cx {
    /// The CPU at the level of `OCELLI_ISA`, with so many threads.
    pub fn open(threads: Option<usize>) -> Result<Cx, BenchError> {
        Cx::on(Operands::new(), threads)
    }

    /// The same with given memory.
    pub fn on(operands: Operands, threads: Option<usize>) -> Result<Cx, BenchError> {
        let backend = Backend::Cpu;
        let isa = Isa::detect().map_err(|e| BenchError::Backend { backend, reason: e.to_string() })?;
        let pool = Arc::new(Pool::new(threads.unwrap_or_else(roof::default_threads)));
        let caps = caps(isa, pool.threads());
        Ok(Cx { cpu: CpuCx { isa, pool, id: operands.id }, caps, operands })
    }

    /// Checks and prepares the kernels of a shape, and notes what cannot run.
    pub fn prepare(&mut self, shape: &Shape, all: bool) -> Result<(Vec<Ready>, Vec<String>), BenchError> {
        match shape.op.as_str() {
            "matmul" => self.prepare_op::<Matmul>(shape, all),
            "attention" => self.prepare_op::<Attention>(shape, all),
            "patch_embed" => self.prepare_op::<PatchEmbed>(shape, all),
            "norm" => self.prepare_op::<Norm>(shape, all),
            "rope" => self.prepare_op::<Rope>(shape, all),
            "merge_patches" => self.prepare_op::<MergePatches>(shape, all),
            "gather_rows" => self.prepare_op::<GatherRows>(shape, all),
            "sample" => self.prepare_op::<Sample>(shape, all),
            "tower" => Ok((vec![Tower::new(&self.cpu)?.ready()], vec![])),
            other => Err(BenchError::Shapes(format!("{}: no benchmark of op {other}", shape.what))),
        }
    }

    fn prepare_op<O: Build>(
        &mut self,
        shape: &Shape,
        all: bool,
    ) -> Result<(Vec<Ready>, Vec<String>), BenchError> {
        let spec = build::read_spec::<O>(&shape.spec).map_err(BenchError::Shapes)?;
        let what = format!("{} {}", O::NAME, shape.spec);
        let failed = |source: KernelError| BenchError::Kernel { what: what.clone(), source };
        let rows = O::cpu_variants();
        let picked = select(rows, &spec, &self.caps).map(|row| row.name);
        let Some(picked) = picked else {
            return Ok((vec![], vec![format!("{what}: no kernel runs it")]));
        };
        let first = O::build(&spec, &mut self.operands).map_err(failed)?;
        if first.spec().map_err(|e| failed(e.into()))? != spec {
            return Err(BenchError::Shapes(format!("{what}: the op that was made has another spec")));
        }
        let cost = first.cost();
        let mut sets = vec![first];
        for _ in 1..self.operands.sets(sets[0].cold_bytes()) {
            sets.push(O::build(&spec, &mut self.operands).map_err(failed)?);
        }
        let sets = Arc::new(sets);
        let mut ready = vec![];
        for row in rows {
            if (row.name != picked && !all) || (row.reject)(&spec, &self.caps).is_some() {
                continue;
            }
            self.check(&sets[0], |op| (row.launch)(op, &self.cpu)).map_err(|error| match error {
                Failure::Kernel(source) => failed(source),
                Failure::Wrong(detail) => BenchError::Wrong { what: format!("{what}, {}", row.name), detail },
            })?;
            let (sets, cpu, launch) = (sets.clone(), self.cpu.clone(), row.launch);
            ready.push(Ready {
                variant: row.name.to_owned(),
                picked: row.name == picked,
                spec: text::fields_with(&spec, KEPT),
                cost,
                run: Box::new(move |turn| launch(&sets[turn % sets.len()], &cpu)),
            });
        }
        Ok((ready, vec![]))
    }

    /// Runs `op` once and compares its results with the reference.
    fn check<O: Build>(&self, op: &O, run: impl Fn(&O) -> Result<(), KernelError>) -> Result<(), Failure> {
        let mut oracle = Oracle::new(self.cpu.id, true);
        for part in op.parts()? {
            part.reference(&mut oracle)?;
        }
        run(op)?;
        let reader = Oracle::new(self.cpu.id, false);
        for one in oracle.into_expected() {
            let got = reader.read(&one.view)?;
            for (i, (&want, &bound)) in one.values.iter().zip(&one.bounds).enumerate() {
                let index = one.indices.as_ref().map_or(i, |indices| indices[i]);
                if !build::same_or_within(one.view.dtype(), got[index], want, bound) {
                    return Err(Failure::Wrong(format!(
                        "element {index} of {:?}: expected {want:e} within {bound:e}, found {:e}",
                        one.view, got[index]
                    )));
                }
            }
        }
        Ok(())
    }

    fn shape(
        &mut self,
        shape: &Shape,
        roofs: &Roofs,
        all: bool,
    ) -> Result<(Vec<Row>, Vec<String>), BenchError> {
        let (ready, notes) = self.prepare(shape, all)?;
        let one_thread = self.cpu.pool.threads() == 1;
        let mut rows = vec![];
        for mut kernel in ready {
            let timing = time(plan(&kernel.cost, roofs), &mut kernel.run).map_err(|source| {
                BenchError::Kernel { what: format!("{} {}", shape.op, shape.spec), source }
            })?;
            let math = roof_of(&kernel.variant);
            let (roof, least_us) = bound(roofs, one_thread, math, kernel.cost.flops, kernel.cost.bytes());
            rows.push(Row {
                op: shape.op.clone(),
                backend: Backend::Cpu.name().to_owned(),
                variant: kernel.variant,
                picked: kernel.picked,
                spec: kernel.spec,
                bytes: kernel.cost.bytes(),
                flops: kernel.cost.flops,
                median_us: timing.median_us,
                p20_us: timing.p20_us,
                p80_us: timing.p80_us,
                roof,
                fraction: least_us / timing.median_us,
            });
        }
        Ok((rows, notes))
    }
}

enum Failure {
    Kernel(KernelError),
    Wrong(String),
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Failure {
        Failure::Kernel(error)
    }
}

/// The roof of the arithmetic that a variant uses, which its name tells.
fn roof_of(variant: &str) -> Roof {
    if variant.contains("int8") {
        Roof::Int8Gops
    } else if variant.contains("bf16") {
        Roof::Bf16Gflops
    } else {
        Roof::FmaF32Gflops
    }
}

/// Longer work is run less often: what takes a second at the roof, five times.
fn plan(cost: &Cost, roofs: &Roofs) -> Plan {
    let (_, least_us) = bound(roofs, false, Roof::FmaF32Gflops, cost.flops, cost.bytes());
    let time = Duration::from_micros((30.0 * least_us) as u64)
        .clamp(Duration::from_millis(150), Duration::from_millis(900));
    Plan { warm_up: Duration::from_millis(20), time, least: 5, most: 4000 }
}

#[cfg(test)]
mod tests;
