//! Benchmarks of kernels: each op at each shape, checked against its f64 reference, timed cold, and held against the
//! roof of the instructions that it uses. Everything but [`Target`] is the same for every backend.

mod operands;
mod random;
mod step;
mod target;
mod tower;

use std::cell::RefCell;
#[cfg(feature = "cuda")]
use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(feature = "cuda")]
use ocelli_kernels::Arch;
use ocelli_kernels::cpu::gemm::products_on_tiles;
#[cfg(feature = "cuda")]
use ocelli_kernels::cuda::{KernelKey, PlanDriver};
use ocelli_kernels::spec::text;
use ocelli_kernels::{
    Backend, BackendOp, Cost, DeviceOptions, Expected, KernelError, Op, OpVisitor, Oracle, View, for_each_op,
};
use serde_json::{Map, Value, json};

use crate::record::{Record, Roof, Row, bound};
use crate::roof::{Beside, Roofs};
use crate::shapes::{Set, Shape, Shapes};
use crate::stats::{Plan, Timing, sample, sample_beside};

pub use operands::Operands;
pub use step::Step;
pub use target::{Placed, Target};
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
    /// The device could not be opened or measured.
    #[error(transparent)]
    Device(#[from] KernelError),
    /// A model could not be made or run.
    #[error("{0}: {1}")]
    Model(&'static str, String),
}

impl BenchError {
    /// Whether the device is lost or does not answer.
    fn ends_device(&self) -> bool {
        let (Self::Kernel { source, .. } | Self::Device(source)) = self else { return false };
        matches!(source, KernelError::Lost { .. } | KernelError::Timeout { .. })
    }
}

/// How long a run goes on by itself: no new shape is begun later.
pub const LIMIT: Duration = Duration::from_secs(105);

/// What one launch on a device that the host emulates may take at the roof to be measured: for reads, and for arithmetic,
/// of whose roof such a device reaches a few percent.
const SOFTWARE_READ_US: f64 = 300_000.0;
const SOFTWARE_MATH_US: f64 = 20_000.0;
/// What one launch may take at most to be timed, once it has run.
const LAUNCH_LIMIT: Duration = Duration::from_secs(4);

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

/// The embedded shapes of a backend, the vision tower and decode steps, those that `only` chooses; of
/// another set its shapes alone.
pub fn shapes(backend: Backend, only: Option<&str>, set: Set) -> Result<Vec<Shape>, BenchError> {
    let chosen = |shape: &Shape| {
        only.is_none_or(|part| [&shape.op, &shape.what, &shape.spec].iter().any(|text| text.contains(part)))
    };
    let whole =
        |op: &str, what: &str, spec: &str| Shape { what: what.into(), op: op.into(), spec: spec.into() };
    let tower = whole(Tower::OP, "vision tower", Tower::SPEC);
    let steps = Step::SPECS.iter().map(|spec| whole(Step::OP, "decode step", spec));
    // The shapes that bars are set for come first, should the time not reach: those of one backend, then the squares.
    let mut lists = Shapes::embedded().map_err(BenchError::Shapes)?;
    lists.retain(|list| list.backend.is_none_or(|of| of == backend) && list.set == set);
    lists.sort_by_key(|list| (list.backend.is_none(), list.model != "square"));
    let models = std::iter::once(tower).chain(steps).filter(|_| set == Set::Usual);
    let all = models.chain(lists.into_iter().flat_map(|list| list.shapes));
    let all: Vec<Shape> = all.filter(chosen).collect();
    if all.is_empty() {
        return Err(BenchError::Nothing(only.unwrap_or_default().to_owned()));
    }
    Ok(all)
}

/// Runs shapes, with `all` every variant and not just the picked one; begins no new shape after `limit`. `progress` is
/// told of each row as it is done.
pub fn run(
    cx: &mut Cx,
    shapes: &[Shape],
    all: bool,
    limit: Duration,
    progress: &mut dyn FnMut(&Row),
) -> Result<Outcome, BenchError> {
    let begin = Instant::now();
    let watch = crate::machine::Watch::begin();
    let mut record = Record::new(cx.target.machine(), cx.measure_roofs()?);
    let mut notes = vec![];
    for shape in shapes {
        if begin.elapsed() > limit {
            notes.push(format!("{} {}: the time is over", shape.op, shape.spec));
            continue;
        }
        let (rows, more) = match cx.shape(shape, all) {
            // What is known is kept, and a device that is gone says no more.
            Err(error) if cx.lenient => {
                let over = error.ends_device();
                notes.push(error.to_string());
                if over {
                    break;
                }
                continue;
            }
            done => done?,
        };
        rows.iter().for_each(&mut *progress);
        record.rows.extend(rows);
        notes.extend(more);
    }
    record.roofs = cx.measure_roofs()?;
    record.disturbed = Some(watch.end());
    Ok(Outcome { record, notes })
}

/// The kernels that a run of these shapes asks a typical CUDA device of an architecture for, those of its roofs left out.
#[cfg(feature = "cuda")]
pub fn cuda_kernels(arch: Arch, shapes: &[Shape]) -> Result<BTreeSet<KernelKey>, BenchError> {
    let driver = Arc::new(PlanDriver::of_arch(arch));
    let target = Target::noting(driver.clone());
    let mut cx = Cx { target, operands: Operands::new(), roofs: None, lenient: false, computes: false };
    for shape in shapes {
        for mut kernel in cx.prepare(shape, false)?.0 {
            (kernel.run)(&mut cx.target, 0)?;
        }
    }
    Ok(driver.keys().into_iter().collect())
}

/// What kernels run on.
pub struct Cx {
    target: Target,
    operands: Operands,
    /// What the device can do, once it is measured.
    roofs: Option<Roofs>,
    /// Whether a variant that fails or is wrong is noted and left out.
    lenient: bool,
    /// Whether the device computes, so that there are results to check.
    computes: bool,
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
    /// Sets of operands that runs go through in turn.
    pub sets: usize,
    /// Whether a run ends only when the device is done.
    pub waits: bool,
    /// Runs it; another number takes other weights.
    pub run: Run,
}

/// Prepares the kernels of the op that a shape names.
struct Prepare<'a> {
    cx: &'a mut Cx,
    shape: &'a Shape,
    all: bool,
    prepared: Option<Result<Prepared, BenchError>>,
}

impl OpVisitor for Prepare<'_> {
    fn visit<O: BackendOp>(&mut self) {
        if O::NAME == self.shape.op {
            self.prepared = Some(self.cx.prepare_op::<O>(self.shape, self.all));
        }
    }
}

/// Bytes of an op's operands: each op that is made has them elsewhere in memory.
fn cold_bytes<O: Op>(op: &O) -> u64 {
    let mut seen: Vec<View> = vec![];
    op.clone().visit(&mut |_, view| {
        if !seen.iter().any(|other| other.same_elements(view)) {
            seen.push(view.clone());
        }
    });
    seen.iter().map(View::bytes).sum()
}

/// The spec that a text stands for; the error names the op and the text.
fn read_spec<O: Op>(text: &str) -> Result<O::Spec, String> {
    text::read::<O::Spec>(text).map_err(|error| format!("{} {text}: {error}", O::NAME))
}

/// Kernels of a shape, and what cannot run.
pub type Prepared = (Vec<Ready>, Vec<String>);

/// A run of a kernel on a target.
pub type Run = Box<dyn FnMut(&mut Target, usize) -> Result<(), KernelError>>;

impl Cx {
    /// A device.
    pub fn open(backend: Backend, options: &DeviceOptions) -> Result<Cx, BenchError> {
        Cx::on(Operands::new(), backend, options)
    }

    /// The same with given memory.
    pub fn on(operands: Operands, backend: Backend, options: &DeviceOptions) -> Result<Cx, BenchError> {
        let target = Target::open(backend, options, &operands)?;
        Ok(Cx { target, operands, roofs: None, lenient: false, computes: true })
    }

    /// The device.
    pub fn target(&mut self) -> &mut Target {
        &mut self.target
    }

    /// From now on a variant that fails or is wrong is noted and left out.
    pub fn be_lenient(&mut self) {
        self.lenient = true;
    }

    /// Measures what the device can do, once.
    pub fn measure_roofs(&mut self) -> Result<Roofs, BenchError> {
        let roofs = match self.roofs.take() {
            Some(roofs) => roofs,
            None => self.target.roofs()?,
        };
        Ok(self.roofs.insert(roofs).clone())
    }

    /// Checks and prepares the kernels of a shape, and notes what cannot run.
    pub fn prepare(&mut self, shape: &Shape, all: bool) -> Result<Prepared, BenchError> {
        if [Tower::OP, Step::OP].contains(&&*shape.op) {
            if self.target.caps().wgpu.software {
                return Ok((
                    vec![],
                    vec![format!("{} {}: too much for a software device", shape.op, shape.spec)],
                ));
            }
            let (device, checked) = (self.target.device(), self.computes);
            let ready = match &*shape.op {
                Tower::OP => Tower::new(device, checked)?.ready(),
                _ => Step::new(device, &shape.spec, checked)?.ready(),
            };
            return Ok((vec![ready], vec![]));
        }
        let mut of_name = Prepare { cx: self, shape, all, prepared: None };
        for_each_op(&mut of_name);
        of_name.prepared.unwrap_or_else(|| {
            Err(BenchError::Shapes(format!("{}: there is no op {}", shape.what, shape.op)))
        })
    }

    fn prepare_op<O: BackendOp>(&mut self, shape: &Shape, all: bool) -> Result<Prepared, BenchError> {
        let spec = read_spec::<O>(&shape.spec).map_err(BenchError::Shapes)?;
        let what = format!("{} {}", O::NAME, shape.spec);
        let failed = |source: KernelError| BenchError::Kernel { what: what.clone(), source };
        let rows = self.target.rows::<O>(&spec);
        if !rows.iter().any(|row| row.picked) {
            return Ok((vec![], vec![format!("{what}: no kernel runs it")]));
        }
        let op = match O::of_spec(&spec, &mut self.operands) {
            Ok(op) => op,
            Err(KernelError::OutOfMemory { bytes, .. }) => {
                return Ok((
                    vec![],
                    vec![format!("{what}: operands of {bytes} bytes are too much for a benchmark")],
                ));
            }
            Err(error) => return Err(failed(error)),
        };
        if op.spec().map_err(|e| failed(e.into()))? != spec {
            return Err(BenchError::Shapes(format!("{what}: the op that was made has another spec")));
        }
        if !self.computes {
            let op = self.target.moved(op, &self.operands).map_err(failed)?;
            for (index, _) in rows.iter().enumerate().filter(|(_, row)| row.picked) {
                self.target.launch(&op, index).map_err(failed)?;
            }
            return Ok((vec![], vec![]));
        }
        let cost = op.cost();
        if let Some(note) = self.too_slow(&cost) {
            return Ok((vec![], vec![format!("{what}: {note}")]));
        }
        let mut oracle = Oracle::new(self.operands.id, true);
        for part in op.parts().map_err(failed)? {
            part.reference(&mut oracle).map_err(failed)?;
        }
        let expected = oracle.into_expected();

        let placed = self.target.place(&op, &self.operands).map_err(failed)?;
        let (mut notes, mut right) = (vec![], vec![]);
        for (index, row) in rows.iter().enumerate() {
            if row.rejected.is_some() || !(row.picked || all) {
                continue;
            }
            let start = Instant::now();
            let found = self.check(&placed, &expected, |target, op| target.launch(op, index));
            match found {
                Ok(()) if start.elapsed() > LAUNCH_LIMIT => {
                    let seconds = start.elapsed().as_secs_f64();
                    notes.push(format!("{what}, {}: one run takes {seconds:.1} s", row.variant));
                }
                Ok(()) => right.push((index, row)),
                Err(error) => {
                    let error = match error {
                        Failure::Kernel(source) => failed(source),
                        Failure::Wrong(detail) => {
                            BenchError::Wrong { what: format!("{what}, {}", row.variant), detail }
                        }
                    };
                    if !self.lenient {
                        return Err(error);
                    }
                    notes.push(format!("{}: {error}", row.variant));
                }
            }
        }
        self.target.reset(&placed, &self.operands).map_err(failed)?;

        let mut sets = vec![placed.op];
        if !right.is_empty() {
            for _ in 1..self.sets(&sets[0], &cost) {
                let op = O::of_spec(&spec, &mut self.operands).map_err(failed)?;
                match self.target.moved(op, &self.operands) {
                    Ok(op) => sets.push(op),
                    // Caches are smaller than all memory: what fits will do.
                    Err(KernelError::OutOfMemory { .. }) => break,
                    Err(error) => return Err(failed(error)),
                }
            }
        }
        let sets = Arc::new(sets);
        let ready = right.into_iter().map(|(index, row)| {
            let sets = sets.clone();
            Ready {
                variant: row.variant.to_owned(),
                picked: row.picked,
                spec: text::fields_with(&spec, KEPT),
                cost,
                sets: sets.len(),
                waits: false,
                run: Box::new(move |target, turn| target.launch(&sets[turn % sets.len()], index)),
            }
        });
        Ok((ready.collect(), notes))
    }

    /// Why a launch of this cost is not measured on a device that the host emulates.
    fn too_slow(&self, cost: &Cost) -> Option<String> {
        let roofs = self.roofs.as_ref().filter(|_| self.target.caps().wgpu.software)?;
        let (roof, us) = bound(roofs, false, Roof::FmaF32Gflops, cost.flops, cost.bytes());
        let most = if roof == Roof::ReadGbps { SOFTWARE_READ_US } else { SOFTWARE_MATH_US };
        (us > most).then(|| format!("{:.0} ms at the roof are too much for a software device", us / 1e3))
    }

    /// How many sets of operands a timing rotates through. On a GPU, what arithmetic bounds does not ask for cold weights.
    fn sets<O: Op>(&self, op: &O, cost: &Cost) -> usize {
        let on_gpu = self.target.caps().backend != Backend::Cpu;
        if on_gpu && cost.flops > 64 * cost.bytes() {
            return 2;
        }
        self.operands.sets(cold_bytes(op), self.target.cold_bytes())
    }

    /// Runs `op` once and compares its results with what the reference expects.
    fn check<O>(
        &mut self,
        placed: &Placed<O>,
        expected: &[Expected],
        run: impl FnOnce(&mut Target, &O) -> Result<(), KernelError>,
    ) -> Result<(), Failure> {
        self.target.reset(placed, &self.operands)?;
        run(&mut self.target, &placed.op)?;
        self.target.fetch(placed, &self.operands)?;
        let reader = Oracle::new(self.operands.id, false);
        for one in expected {
            let got = reader.read(&one.view)?;
            one.compare(|index| got[index]).map_err(Failure::Wrong)?;
        }
        Ok(())
    }

    fn shape(&mut self, shape: &Shape, all: bool) -> Result<(Vec<Row>, Vec<String>), BenchError> {
        let roofs = self.measure_roofs()?;
        let (ready, notes) = self.prepare(shape, all)?;
        let (one_thread, backend) = (self.target.one_thread(), self.target.caps().backend);
        let mut rows = vec![];
        for mut kernel in ready {
            let plan = plan(&kernel.cost, &roofs, self.target.caps().wgpu.software);
            let math = roof_of(&kernel.variant);
            let flops = kernel.cost.flops * products(&kernel.variant, &kernel.spec);
            let (roof, least_us) = bound(&roofs, one_thread, math, flops, kernel.cost.bytes());
            let timed = if roof == Roof::ReadGbps {
                self.time_beside_reads(&mut kernel, plan)
            } else {
                self.time(&mut kernel, plan).map(|timing| (timing, None))
            };
            let (timing, reads) = timed.map_err(|source| BenchError::Kernel {
                what: format!("{} {}", shape.op, shape.spec),
                source,
            })?;
            let (variant, picked, spec, cost) =
                (kernel.variant.clone(), kernel.picked, kernel.spec.clone(), kernel.cost);
            let warm = if kernel.sets > 1 { Some(self.time_warm(kernel, plan)) } else { None };
            let warm = warm.transpose().map_err(|source| BenchError::Kernel {
                what: format!("{} {}", shape.op, shape.spec),
                source,
            })?;
            if let (Some(reads), Some(roofs)) = (&reads, &mut self.roofs) {
                // A better moment than those in which the roof was measured.
                roofs.read_gbps = roofs.read_gbps.max(reads.best_gbps);
                if let Some(one) = roofs.read_gbps_1t.as_mut().filter(|_| one_thread) {
                    *one = one.max(reads.best_gbps);
                }
            }
            rows.push(Row {
                op: shape.op.clone(),
                backend: backend.name().to_owned(),
                variant,
                picked,
                spec,
                bytes: cost.bytes(),
                flops: cost.flops,
                median_us: timing.median_us,
                p20_us: timing.p20_us,
                p80_us: timing.p80_us,
                warm_us: warm.map(|warm| warm.median_us),
                roof,
                read_gbps: reads.as_ref().map(|reads| reads.gbps),
                fraction: reads.map_or(least_us / timing.median_us, |reads| reads.fraction),
            });
        }
        Ok((rows, notes))
    }

    /// Times a kernel.
    pub fn time(&mut self, kernel: &mut Ready, plan: Plan) -> Result<Timing, KernelError> {
        let count = self.target.batch(kernel)?;
        sample(plan, |turn| self.target.seconds(kernel, turn * count, count))
    }

    /// Times a kernel whose operands are those of the run before, in a third of the time.
    fn time_warm(&mut self, kernel: Ready, plan: Plan) -> Result<Timing, KernelError> {
        let mut run = kernel.run;
        let mut warm = Ready { run: Box::new(move |target, _| run(target, 0)), ..kernel };
        self.time(&mut warm, Plan { time: plan.time / 3, ..plan })
    }

    /// Times a kernel that memory bounds, with plain reads between its runs where the device has them.
    fn time_beside_reads(
        &mut self,
        kernel: &mut Ready,
        plan: Plan,
    ) -> Result<(Timing, Option<Reads>), KernelError> {
        if self.target.read_seconds().is_none() {
            return Ok((self.time(kernel, plan)?, None));
        }
        let target = RefCell::new(&mut self.target);
        let found = sample_beside(
            plan,
            |turn| target.borrow_mut().seconds(kernel, turn, 1),
            || target.borrow_mut().read_seconds().unwrap_or(f64::INFINITY),
        )?;
        let gbps = |seconds: f64| Beside::BYTES as f64 / seconds / 1e9;
        let reads = Reads {
            gbps: gbps(found.yardstick),
            best_gbps: gbps(found.best),
            fraction: found.ratio * kernel.cost.bytes() as f64 / Beside::BYTES as f64,
        };
        Ok((found.timing, Some(reads)))
    }
}

/// Plain reads between the runs of a kernel, by the same threads.
struct Reads {
    /// What they reach at the median, in 1e9 bytes per second.
    gbps: f64,
    /// What the fastest reached.
    best_gbps: f64,
    /// Median over the runs of the time that the reads beside a run allow for its bytes, divided by the run's.
    fraction: f64,
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

/// The words of a spec as fields, numbers as numbers.
fn fields(spec: &str) -> Map<String, Value> {
    let words = spec.split_whitespace().filter_map(|word| word.split_once('='));
    words.map(|(k, v)| (k.to_owned(), v.parse::<u64>().map_or_else(|_| json!(v), |n| json!(n)))).collect()
}

/// The roof of the arithmetic that a variant uses, which its name tells.
fn roof_of(variant: &str) -> Roof {
    if variant.contains("int8") || variant.contains("dot4") {
        Roof::Int8Gops
    } else if variant.contains("coop") {
        Roof::MatrixF16Gflops
    } else if variant.contains("bf16") || variant.contains("amx") {
        Roof::Bf16Gflops
    } else if variant.contains("f16") {
        Roof::F16Gflops
    } else {
        Roof::FmaF32Gflops
    }
}

/// Products that a variant makes for each that is wanted: on tiles of bf16 several make an exact one.
fn products(variant: &str, spec: &Map<String, Value>) -> u64 {
    fn word<T: FromStr + Default>(spec: &Map<String, Value>, name: &str) -> T {
        spec.get(name).and_then(Value::as_str).and_then(|word| word.parse().ok()).unwrap_or_default()
    }
    if variant == "gemm-amx-f32" { products_on_tiles(word(spec, "x"), word(spec, "w")) as u64 } else { 1 }
}

/// Longer work is run less often: what takes a second at the roof, five times; on a software device everything is.
fn plan(cost: &Cost, roofs: &Roofs, software: bool) -> Plan {
    if software {
        let (warm_up, time) = (Duration::ZERO, Duration::from_millis(150));
        return Plan { warm_up, time, least: 3, most: 200 };
    }
    let (_, least_us) = bound(roofs, false, Roof::FmaF32Gflops, cost.flops, cost.bytes());
    let time = Duration::from_micros((30.0 * least_us) as u64)
        .clamp(Duration::from_millis(150), Duration::from_millis(900));
    Plan { warm_up: Duration::from_millis(20), time, least: 5, most: 4000 }
}

#[cfg(test)]
mod tests;
