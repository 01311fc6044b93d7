//! The context of a forward pass: a stream, the arena of its activations, and an optional observer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytemuck::Pod;
use half::{bf16, f16};
use ocelli_kernels::ops::{Math, Matmul};
use ocelli_kernels::{
    Code, DType, Device, Element, Exec, Fetch, KernelError, NullLog, NullStream, Op, Recorded, Stream, View,
    Weights, quant,
};

use crate::adapter::Adapters;
use crate::error::{Error, Result};
use crate::tape::Tape;
use crate::tensor::{Arena, Mark, Tensor};
use crate::timing::{Phase, Timings};
use crate::trace::Trace;

/// A place in a model whose result can be observed. Parts have the names that `tests/golden/make.py` gives the tensors of a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stage {
    /// What is observed.
    pub part: &'static str,
    /// Number of the layer, of parts that repeat.
    pub layer: Option<usize>,
}

impl Stage {
    /// Result of the vision tower, all tiles: `[patches, d_model]`.
    pub const TOWER: Self = Self::of("vision_last_hidden");
    /// What replaces the image tokens, `[image_tokens, d_model]`.
    pub const FEATURES: Self = Self::of("image_features");
    /// Input of the first text layer: `[tokens, d_model]`.
    pub const EMBEDDINGS: Self = Self::of("inputs_embeds");
    /// Logits of the wanted rows: `[rows, vocab]`.
    pub const LOGITS: Self = Self::of("logits");

    /// A part that does not repeat.
    #[must_use]
    pub const fn of(part: &'static str) -> Self {
        Self { part, layer: None }
    }

    /// Layer `layer` of a part.
    #[must_use]
    pub const fn layer(part: &'static str, layer: usize) -> Self {
        Self { part, layer: Some(layer) }
    }

    /// Result of text layer `layer`, before any final norm: `[tokens, d_model]`.
    #[must_use]
    pub const fn text_layer(layer: usize) -> Self {
        Self::layer("text_layer", layer)
    }
}

/// Sees intermediate results: stage, shape, values.
pub type Observer<'a> = Box<dyn FnMut(Stage, &[usize], &[f32]) + Send + 'a>;

/// Sees matrix products before they run: the weights, and what gives their input as f32, row-major `[rows, k]`.
pub type Probe<'a> = Box<dyn FnMut(&Weights, &mut dyn FnMut() -> Result<Vec<f32>>) -> Result<()> + Send + 'a>;

/// How arithmetic and activations may be rounded, and how weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// Type of activations.
    pub dtype: DType,
    /// Type of keys and values that are kept; `None`: that of activations.
    pub kv: Option<DType>,
    /// Whether weights of integers may be multiplied with activations rounded to 8-bit integers.
    pub fast_int8: bool,
    /// Whether weights of 8-bit floats may be multiplied with activations rounded to them.
    pub fast_fp8: bool,
    /// Whether weights that a file has along `n` are stored anew along `k` where kernels could read them in place.
    pub reorder: bool,
}

impl Precision {
    /// f32 only where activations and what is kept of them are f32; else the type with fewer bits.
    #[must_use]
    pub fn coarsest(self) -> DType {
        match self.dtype {
            DType::F32 => self.kv.unwrap_or(DType::F32),
            dtype => dtype,
        }
    }
}

impl Default for Precision {
    fn default() -> Self {
        Self { dtype: DType::F32, kv: None, fast_int8: false, fast_fp8: false, reorder: false }
    }
}

/// Runs ops and owns their activations.
pub struct Ctx {
    stream: Box<dyn Stream>,
    arena: Arena,
    observer: Option<Observer<'static>>,
    /// A stage that is kept, and its results so far.
    kept: Option<(Stage, Vec<Tensor>)>,
    probe: Option<Probe<'static>>,
    precision: Precision,
    replays: HashMap<ReplayKey, Replay>,
    /// Steps that went through [`replay`](Self::replay).
    steps: u64,
    /// Where the time went.
    pub timings: Timings,
    trace: Option<Trace>,
    /// Modules of products, and what is added to their results.
    pub(crate) adapters: Adapters,
    /// What runs, while it is noted.
    pub(crate) tape: Option<Tape>,
    /// Memory that tapes before it had for gradients.
    pub(crate) spare: crate::tape::Spare,
    /// What the ops given now are for.
    phase: Phase,
}

/// What recorded launches depend on: the memory and the sizes of everything that they take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ReplayKey(Vec<usize>);

impl ReplayKey {
    /// A number that no other call gives: what a model puts into its keys, so that they are nobody else's.
    #[must_use]
    pub fn unique() -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds a number.
    pub fn number(&mut self, value: usize) -> &mut Self {
        self.0.push(value);
        self
    }

    /// Adds memory with its layout.
    pub fn view(&mut self, view: &View) -> &mut Self {
        self.0.extend([view.storage().id(), view.offset(), view.layout().rank()]);
        self.0.extend((0..view.layout().rank()).flat_map(|axis| [view.size(axis), view.stride(axis)]));
        self
    }
}

/// A step that may come again.
struct Replay {
    /// Its launches, from the second time on.
    recorded: Option<Recorded>,
    /// When it came last.
    used: u64,
}

/// Recordings that are kept at most; the one that was not used for longest goes first.
const MOST_REPLAYS: usize = 64;

impl Ctx {
    /// A context on a new stream of a device.
    pub fn new(device: &dyn Device, precision: Precision) -> Result<Self> {
        Ok(Self::on(device.stream()?, precision))
    }

    /// A context on a given stream.
    #[must_use]
    pub fn on(stream: Box<dyn Stream>, precision: Precision) -> Self {
        Self {
            stream,
            arena: Arena::default(),
            observer: None,
            kept: None,
            probe: None,
            precision,
            replays: HashMap::new(),
            steps: 0,
            timings: Timings::default(),
            trace: None,
            adapters: Adapters::default(),
            tape: None,
            spare: crate::tape::Spare::default(),
            phase: Phase::Prefill,
        }
    }

    /// A context that computes nothing and notes what would run on a device with these capabilities.
    #[must_use]
    pub fn dry(caps: ocelli_kernels::Caps, precision: Precision) -> (Self, NullLog) {
        let stream = NullStream::new(caps);
        let log = stream.log();
        (Self::on(Box::new(stream), precision), log)
    }

    /// Whether weights that a file has along `n` are used as they lie: on CPUs, unless they are to be reordered.
    #[must_use]
    pub fn keeps_along_n(&self) -> bool {
        self.stream.caps().backend == ocelli_kernels::Backend::Cpu && !self.precision.reorder
    }

    /// The stream.
    pub fn stream(&mut self) -> &mut dyn Stream {
        &mut *self.stream
    }

    /// How arithmetic and activations may be rounded.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Type of activations.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.precision.dtype
    }

    /// Type of keys and values that are kept.
    #[must_use]
    pub fn kv_dtype(&self) -> DType {
        self.precision.kv.unwrap_or(self.precision.dtype)
    }

    /// Most bytes of activations in use at once so far.
    #[must_use]
    pub fn peak_activations(&self) -> usize {
        self.arena.peak()
    }

    /// Sets or removes the observer of intermediate results.
    pub fn observe(&mut self, observer: Option<Observer<'static>>) {
        self.observer = observer;
    }

    /// Keeps each result that is shown as a stage from now on, or ends that; gives what was kept before. Activations among it live as
    /// others do: while a tape records, until it is forgotten, and gradients go back from them.
    pub fn keep(&mut self, stage: Option<Stage>) -> Vec<Tensor> {
        let kept = std::mem::replace(&mut self.kept, stage.map(|stage| (stage, Vec::new())));
        kept.map(|(_, kept)| kept).unwrap_or_default()
    }

    /// Sets or removes what sees the inputs of matrix products. While there is one, products take rows that are normalized already.
    pub fn probe(&mut self, probe: Option<Probe<'static>>) {
        self.probe = probe;
    }

    /// An activation; its content is not defined. It lives until the enclosing [`scope`](Self::scope) ends.
    pub fn alloc(&mut self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.arena.alloc(&mut *self.stream, shape, dtype)
    }

    /// A zeroed tensor with memory of its own.
    pub fn alloc_owned(&mut self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let storage = self.stream.alloc(self.bytes_of(shape, dtype)?)?;
        Ok(Tensor::owned(View::dense(storage, shape, dtype)?))
    }

    /// The same, much of which may never be written.
    pub fn reserve_owned(&mut self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let storage = self.stream.reserve(self.bytes_of(shape, dtype)?)?;
        Ok(Tensor::owned(View::dense(storage, shape, dtype)?))
    }

    fn bytes_of(&self, shape: &[usize], dtype: DType) -> Result<usize> {
        let bytes = shape.iter().try_fold(dtype.size(), |product, &size| product.checked_mul(size));
        bytes.ok_or_else(|| {
            let device = self.stream.caps().device.clone();
            Error::Device(KernelError::OutOfMemory { bytes: usize::MAX, device })
        })
    }

    /// Runs `work`; the activations that it allocates end with it, unless a tape has noted something that may need them.
    pub fn scope<R>(&mut self, work: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let (mark, before) = (self.arena.mark(), self.needed_later());
        let result = work(self);
        if self.needed_later() == before {
            self.arena.release(mark);
        }
        result
    }

    /// A number that grows with whatever may need activations once their scope has ended; `None` without a tape.
    fn needed_later(&self) -> Option<usize> {
        let kept = self.kept.as_ref().map_or(0, |(_, kept)| kept.len());
        self.tape.as_ref().map(|tape| tape.noted() + kept)
    }

    /// As [`scope`](Self::scope), of a part that leaves nothing behind but what it wrote to memory from outside: a layer. A tape may
    /// compute it again in place of keeping its activations.
    pub fn segment<R>(&mut self, work: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let mark = self.arena.mark();
        if !self.tape.as_mut().is_some_and(|tape| tape.begin_segment(mark)) {
            return self.scope(work);
        }
        let result = work(self);
        let top = self.arena.mark();
        if let Some(tape) = &mut self.tape {
            tape.end_segment(top);
        }
        self.arena.release(mark);
        result
    }

    /// Height of the stack of activations.
    pub(crate) fn arena_mark(&self) -> Mark {
        self.arena.mark()
    }

    /// Ends the activations above a mark.
    pub(crate) fn release(&mut self, mark: Mark) {
        self.arena.release(mark);
    }

    /// Makes the stack of activations at least as high as a mark.
    pub(crate) fn raise(&mut self, mark: Mark) {
        self.arena.raise(mark);
    }

    /// The memory of the stack between two heights.
    pub(crate) fn memory_between(&self, from: Mark, to: Mark) -> Vec<View> {
        self.arena.between(from, to)
    }

    /// Collects the time of each op from now on, or ends it and gives what there is. While it is on, steps are not recorded, and the
    /// host waits for each op of a device that works beside it.
    pub fn trace(&mut self, on: bool) -> Option<Trace> {
        std::mem::replace(&mut self.trace, on.then(Trace::default))
    }

    /// Runs `work`, whose ops are for a stage.
    pub fn during<R>(&mut self, phase: Phase, work: impl FnOnce(&mut Self) -> R) -> R {
        let before = std::mem::replace(&mut self.phase, phase);
        let result = work(self);
        self.phase = before;
        result
    }

    /// Runs `work` and adds its time to a stage, once the device has done it.
    pub fn measure<R>(&mut self, phase: Phase, work: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let (start, _span) = (Instant::now(), phase.span().entered());
        let result = self.during(phase, work)?;
        self.stream.sync()?;
        self.timings.add(phase, start.elapsed());
        Ok(result)
    }

    /// The view of a tensor that still lives.
    pub fn view(&self, tensor: &Tensor) -> Result<View> {
        if self.arena.holds(tensor) {
            return Ok(tensor.view().clone());
        }
        Err(Error::Device(KernelError::Device("an activation was used after its scope had ended".into())))
    }

    /// Whether [`replay`](Self::replay) records.
    #[must_use]
    pub fn records(&self) -> bool {
        let watched = self.observer.is_some() || self.probe.is_some() || self.trace.is_some();
        self.stream.records() && !watched && self.tape.is_none()
    }

    /// Runs `work`, which launches ops and nothing else, on memory that `key` tells and on activations of its own. Where the
    /// device can, it is recorded when a key comes for the second time (everything is compiled and allocated then) and from
    /// then on replayed without running it.
    pub fn replay(&mut self, mut key: ReplayKey, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if !self.records() {
            return self.scope(work);
        }
        let (block, byte) = self.arena.top();
        key.number(block).number(byte);
        self.adapted_key().into_iter().for_each(|number| {
            key.number(number);
        });
        self.steps += 1;
        let used = self.steps;
        match self.replays.get_mut(&key) {
            Some(Replay { recorded: Some(recorded), used: last }) => {
                *last = used;
                Ok(self.stream.replay(recorded)?)
            }
            Some(Replay { recorded: None, .. }) => {
                self.stream.record()?;
                let worked = self.scope(work);
                // Ends the recording whatever has happened.
                let recorded = self.stream.recorded();
                worked?;
                let recorded = recorded?;
                self.stream.replay(&recorded)?;
                self.replays.insert(key, Replay { recorded: Some(recorded), used });
                Ok(())
            }
            None => {
                self.forget_oldest()?;
                self.scope(work)?;
                self.replays.insert(key, Replay { recorded: None, used });
                Ok(())
            }
        }
    }

    /// Makes room for one more recording.
    fn forget_oldest(&mut self) -> Result<()> {
        if self.replays.len() < MOST_REPLAYS {
            return Ok(());
        }
        let oldest = self.replays.iter().min_by_key(|(_, replay)| replay.used).map(|(key, _)| key.clone());
        if let Some(replay) = oldest.and_then(|key| self.replays.remove(&key))
            && replay.recorded.is_some()
        {
            // Its launches may still be under way.
            self.stream.sync()?;
        }
        Ok(())
    }

    /// Whether the device has a kernel for an op.
    #[must_use]
    pub fn accepts<O: Op>(&self, op: &O) -> bool
    where
        dyn Stream: Exec<O>,
    {
        let product = product(op).filter(|product| product.norm.is_some() || product.heads.is_some());
        // Probes, gradients and adapters want the rows that are multiplied, and products as they are.
        let seen = |product| self.probe.is_some() || self.tape.is_some() || self.is_adapted(product);
        !product.is_some_and(seen) && Exec::<O>::accepts(&*self.stream, op)
    }

    /// Runs an op of the module at `path`.
    pub fn exec<O: Op>(&mut self, path: &str, op: &O) -> Result<()>
    where
        dyn Stream: Exec<O>,
    {
        if self.probe.is_some() {
            self.show(op)?;
        }
        match product(op) {
            Some(product) if self.is_adapted(product) => self.exec_adapted(path, product),
            _ => self.exec_plain(path, op),
        }
    }

    /// Runs an op as it is, noted where there is a tape.
    pub(crate) fn exec_plain<O: Op>(&mut self, path: &str, op: &O) -> Result<()>
    where
        dyn Stream: Exec<O>,
    {
        match self.tape.is_some() {
            true => self.exec_taped(path, op),
            false => self.exec_now(path, op),
        }
    }

    /// Runs an op that is noted already, or not to be.
    pub(crate) fn exec_now<O: Op>(&mut self, path: &str, op: &O) -> Result<()>
    where
        dyn Stream: Exec<O>,
    {
        self.stream.scope(format_args!("{path}"));
        let result = match self.trace {
            None => Exec::<O>::exec(&mut *self.stream, op),
            Some(_) => self.exec_traced(path, op),
        };
        self.stream.end_scope();
        result.map_err(|source| Error::Kernel { path: path.to_owned(), source })
    }

    /// Shows an op to the probe, if it is a product.
    #[cold]
    fn show<O: Op>(&mut self, op: &O) -> Result<()> {
        let Some(product) = product(op) else { return Ok(()) };
        let Some(mut probe) = self.probe.take() else { return Ok(()) };
        let shown = probe(&product.w, &mut || self.floats(&product.x));
        self.probe = Some(probe);
        shown
    }

    #[cold]
    fn exec_traced<O: Op>(&mut self, path: &str, op: &O) -> std::result::Result<(), KernelError>
    where
        dyn Stream: Exec<O>,
    {
        let start = Instant::now();
        Exec::<O>::exec(&mut *self.stream, op)?;
        if self.stream.overlaps() {
            self.stream.sync()?;
        }
        let time = start.elapsed();
        if let Some(trace) = &mut self.trace {
            trace.add(self.phase, O::NAME, path, time, op.cost());
        }
        Ok(())
    }

    /// What a product with these weights may round.
    #[must_use]
    pub fn math(&self, w: &Weights) -> Math {
        let code = w.format().grouped().map(|grouped| grouped.code);
        if self.precision.fast_int8 && code.is_some_and(Code::is_int) {
            Math::Int8
        } else if self.precision.fast_fp8 && code == Some(Code::Fp8) {
            Math::Fp8
        } else if self.precision.dtype == DType::BF16 {
            Math::Bf16
        } else {
            Math::Exact
        }
    }

    /// `x: [m, k]  w: [n, k]  ->  [m, n]` with the activations' type; `finish` adds what is fused.
    pub fn matmul(
        &mut self,
        path: &str,
        x: &Tensor,
        w: &Weights,
        finish: impl FnOnce(&mut Matmul),
    ) -> Result<Tensor> {
        let out = self.alloc(&[x.size(0), w.n()], self.precision.dtype)?;
        let mut op = Matmul::new(self.view(x)?, w.clone(), self.view(&out)?);
        op.math = self.math(w);
        finish(&mut op);
        self.exec(path, &op)?;
        Ok(out)
    }

    /// Copies host values into a new activation.
    pub fn upload<T: Element + Pod>(&mut self, shape: &[usize], values: &[T]) -> Result<Tensor> {
        let tensor = self.alloc(shape, T::DTYPE)?;
        let bytes = bytemuck::cast_slice(values);
        if let Some(tape) = &mut self.tape {
            tape.wrote(tensor.view(), bytes);
        }
        self.stream.write(tensor.view(), bytes)?;
        Ok(tensor)
    }

    /// Copies host values to a tensor, rounded to its type.
    pub fn write_floats(&mut self, tensor: &Tensor, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = match tensor.dtype() {
            DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            found => return Err(KernelError::WrongDType { expected: DType::F32, found }.into()),
        };
        Ok(self.stream.write(tensor.view(), &bytes)?)
    }

    /// Copies lists of numbers into new activations, one `[len]` for each, by one transfer.
    pub fn upload_ids(&mut self, lists: &[Vec<i32>]) -> Result<Vec<Tensor>> {
        let all = self.upload(&[lists.iter().map(Vec::len).sum()], &lists.concat())?;
        let mut start = 0;
        let part = |list: &Vec<i32>| {
            let part = all.narrow(0, start, list.len());
            start += list.len();
            part
        };
        lists.iter().map(part).collect()
    }

    /// The values of a tensor as f32, row-major.
    pub fn download(&mut self, tensor: &Tensor) -> Result<Vec<f32>> {
        let view = self.view(tensor)?;
        self.floats(&view)
    }

    fn floats(&mut self, view: &View) -> Result<Vec<f32>> {
        let mut bytes = vec![0; view.bytes() as usize];
        self.stream.read(view, &mut bytes)?;
        let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
        Ok(match view.dtype() {
            DType::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            DType::BF16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
            DType::F16 => pairs().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
            DType::I8 => bytes.iter().map(|&b| f32::from(b as i8)).collect(),
            DType::U8 => bytes.iter().map(|&b| f32::from(b)).collect(),
            DType::E4M3 => bytes.iter().map(|&b| quant::e4m3::value(b)).collect(),
            DType::E8M0 => bytes.iter().map(|&b| quant::e8m0(b)).collect(),
            DType::I32 => {
                bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect()
            }
        })
    }

    /// Starts to copy a tensor to the host, after the work so far.
    pub fn fetch(&mut self, tensor: &Tensor) -> Result<Box<dyn Fetch>> {
        let view = self.view(tensor)?;
        Ok(self.stream.fetch(&view)?)
    }

    /// Whether the device works beside the host.
    #[must_use]
    pub fn overlaps(&self) -> bool {
        self.stream.overlaps()
    }

    /// Time that the host took so far to prepare work for a device beside it.
    #[must_use]
    pub fn host_time(&self) -> Duration {
        self.stream.host_time()
    }

    /// Time that compiling kernels took so far.
    #[must_use]
    pub fn compile_time(&self) -> Duration {
        self.stream.compile_time()
    }

    /// The values of an i32 tensor.
    pub fn download_ids(&mut self, tensor: &Tensor) -> Result<Vec<i32>> {
        let view = self.view(tensor)?;
        let mut values = vec![0i32; view.len()];
        self.stream.read(&view, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Whether anyone looks at intermediate results.
    #[must_use]
    pub fn is_observed(&self) -> bool {
        self.observer.is_some()
    }

    /// Shows a result to the observer, if there is one, and keeps it if it is [kept](Self::keep).
    pub fn stage(&mut self, stage: Stage, tensor: &Tensor) -> Result<()> {
        if let Some((wanted, kept)) = &mut self.kept
            && *wanted == stage
        {
            kept.push(tensor.clone());
        }
        if self.observer.is_none() {
            return Ok(());
        }
        let values = self.download(tensor)?;
        if let Some(observer) = &mut self.observer {
            observer(stage, tensor.shape(), &values);
        }
        Ok(())
    }
}

/// An op as a matrix product, if it is one.
fn product<O: Op>(op: &O) -> Option<&Matmul> {
    (op as &dyn std::any::Any).downcast_ref()
}
