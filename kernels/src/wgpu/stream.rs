//! Ops in order, encoded into one command buffer.
//!
//! A command buffer is submitted when a result is wanted, when a host write has to come between, or when enough work has
//! gathered that the device should not wait for more. Everything on the way is cached: pipelines by source and values, bind
//! groups by buffers; parameters travel as immediates, or in one uniform buffer a submission.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::buffer::WgpuBuf;
use super::clock::Clock;
use super::gpu::{Gpu, PipelineKey};
use super::launch::{Bound, WgpuCx, Window};
use super::op::{WgpuLaunch, WgpuOp};
use super::upload::Placed;
use crate::buffer::{Storage, View, Weights};
use crate::op::{Exec, Fetch, Queue};
use crate::select::{Picks, Variant};
use crate::spec::{Caps, KernelError};

/// Arithmetic after which a command buffer is submitted: a few milliseconds of a fast device, so that slow ones do not
/// run into the driver's time limit.
const SUBMIT_FLOPS: u64 = 20_000_000_000;
/// Dispatches after which a command buffer is submitted.
const SUBMIT_DISPATCHES: usize = 1000;
/// Bytes of one launch's parameters in the uniform buffer: the largest alignment of offsets.
const PARAM_STRIDE: usize = 256;
/// Bytes of host writes that wait in one command buffer.
const STAGING: usize = 1 << 20;
/// Free buffers for reading that are kept, and the size of the largest.
const SPARE: usize = 4;
const SPARE_BYTES: u64 = 1 << 20;

type GroupKey = (u64, SmallVec<[(u32, Window); 12]>);

struct Group {
    group: wgpu::BindGroup,
    buffers: SmallVec<[std::sync::Weak<WgpuBuf>; 12]>,
}

/// The command buffer in the making.
#[derive(Default)]
struct Recording {
    // Before the encoder: a pass ends when it is dropped.
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
    flops: u64,
    dispatches: usize,
    /// Parameters of the dispatches, where they are not immediates.
    params: Vec<u8>,
    /// Host writes between the dispatches.
    staged: Vec<u8>,
}

/// Runs WGSL kernels on one device.
pub struct WgpuStream {
    pub(super) gpu: Arc<Gpu>,
    picks: Arc<Picks>,
    recording: Recording,
    groups: HashMap<GroupKey, Group>,
    params: Option<(wgpu::Buffer, wgpu::BindGroup)>,
    staging: Option<wgpu::Buffer>,
    /// Memory for reading that is free.
    spare: Arc<Mutex<Vec<wgpu::Buffer>>>,
    scratch: HashMap<usize, Arc<WgpuBuf>>,
    pub(super) placed: Placed,
    /// Submissions that are not known to be done, oldest first.
    in_flight: Arc<Mutex<InFlight>>,
    /// Op and variant of the last launch, for errors.
    doing: (&'static str, &'static str),
    host_time: Duration,
    /// The clock that passes write down, while time is measured.
    pub(super) clock: Option<Clock>,
}

impl WgpuStream {
    pub(super) fn new(gpu: Arc<Gpu>, picks: Arc<Picks>) -> Result<Self, KernelError> {
        let params = match &gpu.params_layout {
            None => None,
            Some(layout) => {
                let bytes = (SUBMIT_DISPATCHES * PARAM_STRIDE) as u64;
                let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
                let buffer = gpu.buffer(bytes, usage)?;
                let binding = wgpu::BufferBinding {
                    buffer: &buffer,
                    offset: 0,
                    size: std::num::NonZeroU64::new(super::gpu::PARAM_BYTES as u64),
                };
                let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some("params"),
                    layout,
                    entries: &[wgpu::BindGroupEntry {
                        binding: 0,
                        resource: wgpu::BindingResource::Buffer(binding),
                    }],
                });
                Some((buffer, group))
            }
        };
        Ok(Self {
            gpu,
            picks,
            recording: Recording::default(),
            groups: HashMap::new(),
            params,
            staging: None,
            spare: Arc::default(),
            scratch: HashMap::new(),
            placed: Placed::default(),
            in_flight: Arc::default(),
            doing: ("", ""),
            host_time: Duration::ZERO,
            clock: None,
        })
    }

    /// Runs one variant of an op, whatever the choice would be. The op's spec must not be rejected by it.
    pub fn launch<O: WgpuOp>(
        &mut self,
        op: &O,
        row: &'static Variant<O::Spec, WgpuLaunch<O>>,
    ) -> Result<(), KernelError> {
        self.doing = (O::NAME, row.name);
        (row.launch)(op, &mut WgpuCx { stream: self })
            .map_err(|error| error.in_variant(O::NAME, row.name))?;
        self.recording.flops += op.cost().flops;
        if self.recording.flops >= SUBMIT_FLOPS {
            self.submit()?;
        }
        Ok(())
    }

    /// Chooses a variant and launches it.
    pub(super) fn exec_step<O: WgpuOp>(&mut self, op: &O) -> Result<(), KernelError> {
        let row = self.picks.choose_for(op, O::wgpu_variants(), &self.gpu.caps)?;
        self.launch(op, row)
    }

    /// Kernels compiled so far on this device.
    #[must_use]
    pub fn compiled(&self) -> usize {
        self.gpu.compiled()
    }

    /// Working memory, kept for later launches.
    pub(super) fn scratch(&mut self, slot: usize, bytes: usize) -> Result<Storage, KernelError> {
        if let Some(buffer) = self.scratch.get(&slot)
            && buffer.len() >= bytes
        {
            return Ok(Storage::Wgpu(buffer.clone()));
        }
        self.forget_groups();
        let buffer = Arc::new(WgpuBuf::new(&self.gpu, bytes.next_power_of_two().max(1 << 16))?);
        self.scratch.insert(slot, buffer.clone());
        Ok(Storage::Wgpu(buffer))
    }

    /// Drops bind groups of buffers that nobody holds any more.
    fn forget_groups(&mut self) {
        self.groups.retain(|_, group| group.buffers.iter().all(|buffer| buffer.strong_count() > 0));
    }

    pub(super) fn dispatch(
        &mut self,
        mut key: PipelineKey,
        bound: &[Bound],
        params: &[u8],
        grid: [u32; 3],
    ) -> Result<(), KernelError> {
        let declared =
            if self.gpu.immediates { "var<immediate>" } else { "@group(1) @binding(0) var<uniform>" };
        key.defines.insert("PARAMS", declared.to_owned());
        let pipeline = self.gpu.pipeline(&key)?;
        if self.recording.dispatches == SUBMIT_DISPATCHES {
            self.submit()?;
        }
        let group_key = (pipeline.id, bound.iter().map(|b| (b.index, b.window.clone())).collect());
        let gpu = &self.gpu;
        let group = self.groups.entry(group_key).or_insert_with(|| {
            let entries: Vec<wgpu::BindGroupEntry<'_>> = bound
                .iter()
                .map(|b| wgpu::BindGroupEntry {
                    binding: b.index,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer: &b.buffer.buffer,
                        offset: b.window.offset,
                        size: std::num::NonZeroU64::new(b.window.size),
                    }),
                })
                .collect();
            let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(key.path),
                layout: &pipeline.layout,
                entries: &entries,
            });
            Group { group, buffers: bound.iter().map(|b| Arc::downgrade(&b.buffer)).collect() }
        });
        let recording = &mut self.recording;
        let encoder =
            recording.encoder.get_or_insert_with(|| gpu.device.create_command_encoder(&Default::default()));
        let clock = &mut self.clock;
        let pass = recording.pass.get_or_insert_with(|| {
            let descriptor = wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: clock.as_mut().and_then(Clock::pass),
            };
            encoder.begin_compute_pass(&descriptor).forget_lifetime()
        });
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &group.group, &[]);
        match &self.params {
            None => {
                let mut all = [0; super::gpu::PARAM_BYTES];
                all[..params.len()].copy_from_slice(params);
                pass.set_immediates(0, &all);
            }
            Some((_, params_group)) => {
                let at = recording.params.len();
                recording.params.extend_from_slice(params);
                recording.params.resize(at + PARAM_STRIDE, 0);
                pass.set_bind_group(1, params_group, &[at as u32]);
            }
        }
        pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
        recording.dispatches += 1;
        Ok(())
    }

    /// The encoder between passes.
    pub(super) fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        self.recording.pass = None;
        let gpu = &self.gpu;
        self.recording.encoder.get_or_insert_with(|| gpu.device.create_command_encoder(&Default::default()))
    }

    /// Hands what was encoded to the device.
    pub(super) fn submit(&mut self) -> Result<(), KernelError> {
        let Recording { pass, encoder, params, staged, .. } = std::mem::take(&mut self.recording);
        drop(pass);
        let Some(encoder) = encoder else { return Ok(()) };
        if let (Some((buffer, _)), false) = (&self.params, params.is_empty()) {
            self.gpu.queue.write_buffer(buffer, 0, &params);
        }
        if let (Some(buffer), false) = (&self.staging, staged.is_empty()) {
            self.gpu.queue.write_buffer(buffer, 0, &staged);
        }
        let index = self.gpu.queue.submit([encoder.finish()]);
        lock(&self.in_flight).push(index);
        self.gpu.check(|| self.describe())
    }

    fn describe(&self) -> String {
        match self.doing {
            ("", _) => "copying".to_owned(),
            (op, variant) => format!("up to {op} {variant}"),
        }
    }

    fn buffer<'v>(&self, view: &'v View) -> Result<&'v Arc<WgpuBuf>, KernelError> {
        match view.storage() {
            Storage::Wgpu(buffer) if Arc::ptr_eq(&buffer.gpu, &self.gpu) => Ok(buffer),
            Storage::Wgpu(_) => Err(KernelError::WrongStream),
            other => Err(KernelError::WrongStorage { expected: "wgpu", found: other.kind() }),
        }
    }

    /// Writes whole words, after the work so far.
    pub(super) fn write_words(
        &mut self,
        buffer: &WgpuBuf,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), KernelError> {
        debug_assert!(offset.is_multiple_of(4) && bytes.len().is_multiple_of(4));
        if bytes.is_empty() {
            return Ok(());
        }
        if self.recording.encoder.is_some() && self.recording.staged.len() + bytes.len() > STAGING {
            self.submit()?;
        }
        if self.recording.encoder.is_none() {
            // Writes of the queue come before the next submission, and after those before.
            self.gpu.queue.write_buffer(&buffer.buffer, offset as u64, bytes);
            return Ok(());
        }
        if self.staging.is_none() {
            let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
            self.staging = Some(self.gpu.buffer(STAGING as u64, usage)?);
        }
        let at = self.recording.staged.len() as u64;
        self.recording.staged.extend_from_slice(bytes);
        self.encoder();
        if let (Some(encoder), Some(staging)) = (&mut self.recording.encoder, &self.staging) {
            encoder.copy_buffer_to_buffer(staging, at, &buffer.buffer, offset as u64, bytes.len() as u64);
        }
        Ok(())
    }

    /// Memory that the host can map: used before if possible.
    fn read_memory(&mut self, bytes: u64) -> Result<wgpu::Buffer, KernelError> {
        let mut spare = lock(&self.spare);
        if let Some(place) = spare.iter().position(|buffer| buffer.size() >= bytes) {
            return Ok(spare.swap_remove(place));
        }
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        self.gpu.buffer(bytes.next_power_of_two().max(1024), usage)
    }

    /// Starts a copy of the words around a byte range to the host.
    pub(super) fn fetch_range(
        &mut self,
        buffer: &wgpu::Buffer,
        range: std::ops::Range<usize>,
    ) -> Result<(WgpuFetch, usize), KernelError> {
        let (start, end) = (range.start / 4 * 4, range.end.next_multiple_of(4));
        let bytes = (end - start) as u64;
        let host = self.read_memory(bytes)?;
        let begin = Instant::now();
        self.encoder().copy_buffer_to_buffer(buffer, start as u64, &host, 0, bytes);
        self.submit()?;
        self.host_time += begin.elapsed();
        let number = lock(&self.in_flight).last;
        let slot = Arc::new(Mutex::new(None));
        let answer = slot.clone();
        host.map_async(wgpu::MapMode::Read, ..bytes, move |result| {
            *lock(&answer) = Some(result);
        });
        let fetch = WgpuFetch {
            gpu: self.gpu.clone(),
            in_flight: self.in_flight.clone(),
            spare: self.spare.clone(),
            number,
            host: Some(host),
            bytes: bytes as usize,
            mapped: slot,
            doing: self.describe(),
        };
        Ok((fetch, range.start - start))
    }
}

/// Submissions, numbered from 1 on.
#[derive(Default)]
struct InFlight {
    last: u64,
    waiting: std::collections::VecDeque<(u64, wgpu::SubmissionIndex)>,
}

impl InFlight {
    fn push(&mut self, index: wgpu::SubmissionIndex) {
        self.last += 1;
        self.waiting.push_back((self.last, index));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the submissions up to a number, one after another: the time limit is one of each.
fn wait_until(gpu: &Gpu, waiting: &Mutex<InFlight>, number: u64, doing: &str) -> Result<(), KernelError> {
    loop {
        let next = {
            let mut all = lock(waiting);
            if all.waiting.front().is_none_or(|(first, _)| *first > number) {
                return gpu.check(|| doing.to_owned());
            }
            all.waiting.pop_front()
        };
        if let Some((_, index)) = next {
            gpu.wait(index, || doing.to_owned())?;
        }
    }
}

/// Bytes on their way to the host.
pub(super) struct WgpuFetch {
    gpu: Arc<Gpu>,
    in_flight: Arc<Mutex<InFlight>>,
    spare: Arc<Mutex<Vec<wgpu::Buffer>>>,
    number: u64,
    /// Until the words have been read.
    host: Option<wgpu::Buffer>,
    bytes: usize,
    mapped: Arc<Mutex<Option<Result<(), wgpu::BufferAsyncError>>>>,
    doing: String,
}

impl WgpuFetch {
    /// The words that were copied.
    pub(super) fn words(mut self) -> Result<Vec<u8>, KernelError> {
        wait_until(&self.gpu, &self.in_flight, self.number, &self.doing)?;
        let fail =
            |what: String| KernelError::Device(format!("{}: {}: {what}", self.gpu.caps.device, self.doing));
        let answer = lock(&self.mapped).take();
        match answer {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(fail(error.to_string())),
            None => return Err(fail("the memory was not mapped".into())),
        }
        let Some(host) = &self.host else { return Err(fail("the memory is gone".into())) };
        let range = host.get_mapped_range(..self.bytes as u64).map_err(|error| fail(error.to_string()))?;
        let words = range.to_vec();
        drop(range);
        host.unmap();
        if host.size() <= SPARE_BYTES {
            let mut spare = lock(&self.spare);
            if spare.len() < SPARE {
                spare.extend(self.host.take());
            }
        }
        Ok(words)
    }
}

/// A view on its way to the host.
struct ViewFetch {
    words: WgpuFetch,
    skip: usize,
    layout: crate::spec::Layout,
    size: usize,
}

impl Drop for WgpuFetch {
    fn drop(&mut self) {
        if let Some(host) = &self.host {
            self.gpu.give_back(host.size());
        }
    }
}

impl Fetch for ViewFetch {
    fn wait(self: Box<Self>) -> Result<Vec<u8>, KernelError> {
        let words = self.words.words()?;
        let mut bytes = Vec::with_capacity(self.layout.len() * self.size);
        self.layout.for_each_offset(|offset| {
            bytes.extend_from_slice(&words[self.skip + offset * self.size..][..self.size]);
        });
        Ok(bytes)
    }
}

impl Queue for WgpuStream {
    fn caps(&self) -> &Caps {
        &self.gpu.caps
    }

    fn alloc(&mut self, bytes: usize) -> Result<Storage, KernelError> {
        self.forget_groups();
        Ok(Storage::Wgpu(Arc::new(WgpuBuf::new(&self.gpu, bytes)?)))
    }

    fn write(&mut self, to: &View, bytes: &[u8]) -> Result<(), KernelError> {
        to.check_bytes(bytes.len())?;
        let buffer = self.buffer(to)?.clone();
        let (range, size) = (to.byte_range(), to.dtype().size());
        if to.is_empty() {
            return Ok(());
        }
        if to.layout().is_dense() && range.start.is_multiple_of(4) && range.end.is_multiple_of(4) {
            return self.write_words(&buffer, range.start, bytes);
        }
        // Words that hold other bytes too are read, changed and written back.
        let (start, end) = (range.start / 4 * 4, range.end.next_multiple_of(4));
        let (fetch, skip) = self.fetch_range(&buffer.buffer, start..end)?;
        let mut words = fetch.words()?;
        let skip = skip + range.start - start;
        let mut from = bytes.chunks_exact(size);
        to.layout().for_each_offset(|offset| {
            if let Some(chunk) = from.next() {
                words[skip + offset * size..][..size].copy_from_slice(chunk);
            }
        });
        self.write_words(&buffer, start, &words)
    }

    fn read(&mut self, from: &View, bytes: &mut [u8]) -> Result<(), KernelError> {
        from.check_bytes(bytes.len())?;
        bytes.copy_from_slice(&self.fetch(from)?.wait()?);
        Ok(())
    }

    fn fetch(&mut self, from: &View) -> Result<Box<dyn Fetch>, KernelError> {
        let buffer = self.buffer(from)?.clone();
        if from.is_empty() {
            return Ok(Box::new(Vec::new()));
        }
        let (words, skip) = self.fetch_range(&buffer.buffer, from.byte_range())?;
        Ok(Box::new(ViewFetch { words, skip, layout: *from.layout(), size: from.dtype().size() }))
    }

    fn place(&mut self, weights: &Weights) -> Result<Weights, KernelError> {
        super::upload::place(self, weights)
    }

    fn place_view(&mut self, view: &View) -> Result<View, KernelError> {
        super::upload::place_view(self, view)
    }

    fn sync(&mut self) -> Result<(), KernelError> {
        self.submit()?;
        let last = lock(&self.in_flight).last;
        wait_until(&self.gpu, &self.in_flight, last, &self.describe())
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn host_time(&self) -> Duration {
        self.host_time
    }

    fn compile_time(&self) -> Duration {
        self.gpu.compile_time()
    }
}

impl<O: WgpuOp> Exec<O> for WgpuStream {
    fn exec(&mut self, op: &O) -> Result<(), KernelError> {
        let (start, compiled) = (Instant::now(), self.gpu.compile_time());
        let result = self.exec_step(op);
        self.host_time += start.elapsed().saturating_sub(self.gpu.compile_time() - compiled);
        result
    }

    fn accepts(&self, op: &O) -> bool {
        self.picks.accepts(op, O::wgpu_variants(), &self.gpu.caps)
    }
}

impl Drop for WgpuStream {
    fn drop(&mut self) {
        // What was encoded and not submitted is not wanted any more; a pass must end before its encoder.
        self.recording.pass = None;
    }
}
