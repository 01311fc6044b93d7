//! An open device: its queue, its pipelines, and what went wrong on it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::adapter::{self, Profile};
use super::disk::DiskCache;
use super::source::{self, Defines};
use crate::spec::{Caps, KernelError};

/// Bytes of the parameters of a launch at most: what immediates hold everywhere.
pub const PARAM_BYTES: usize = 128;
/// How long a submission may take before the host gives up.
const TIMEOUT: Duration = Duration::from_secs(180);

/// Access to a binding: its number and whether it is only read.
pub(super) type Access = (u32, bool);
/// Accesses of all bindings of a kernel.
pub(super) type Accesses = SmallVec<[Access; 12]>;

/// A compiled kernel.
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    pub id: u64,
}

/// What a pipeline is made of.
#[derive(Clone, Hash, PartialEq, Eq)]
pub(super) struct PipelineKey {
    pub path: &'static str,
    pub defines: Defines,
    pub accesses: Accesses,
}

/// A device with what its streams share.
pub(super) struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub caps: Caps,
    /// Whether parameters travel as immediates; else in a uniform buffer.
    pub immediates: bool,
    /// Alignment of binding offsets, in bytes.
    pub align: u64,
    /// The largest buffer, in bytes.
    pub max_buffer: u64,
    /// Bytes of the host's memory that buffers of a software device may still take; drivers of GPUs keep such accounts
    /// themselves.
    budget: Option<AtomicU64>,
    /// Layout of the uniform buffer with the parameters, where they are not immediates.
    pub params_layout: Option<wgpu::BindGroupLayout>,
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    disk: Option<DiskCache>,
    /// Nanoseconds that compilation took so far.
    compiling: AtomicU64,
    /// What an error handler was told, until somebody asks.
    failed: Arc<Mutex<Option<String>>>,
    lost: Arc<Mutex<Option<String>>>,
    next: AtomicU64,
    /// Milliseconds that a submission may take.
    timeout: AtomicU64,
}

/// Bytes of memory that the host can give away; no bound where it does not say.
fn available_memory() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kb = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kb.map_or(u64::MAX / 2, |kb| (kb << 10) / 10 * 9)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Opens an adapter; `cache` is a directory for what its driver makes of kernels.
    pub fn open(
        adapter: &wgpu::Adapter,
        profile: Profile,
        cache: Option<&Path>,
    ) -> Result<Arc<Self>, KernelError> {
        let caps = adapter::caps(adapter, profile);
        if let Some(why) = adapter::refusal(adapter) {
            return Err(KernelError::Device(format!("{}: {why}", caps.device)));
        }
        let (features, limits) = (adapter::features(adapter, profile), adapter::limits(adapter, profile));
        let experimental = if features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            // SAFETY: kernels use cooperative matrices as their documentation describes, in bounds and by whole subgroups.
            unsafe { wgpu::ExperimentalFeatures::enabled() }
        } else {
            wgpu::ExperimentalFeatures::disabled()
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("ocelli"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features: experimental,
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| KernelError::Device(format!("{}: {error}", caps.device)))?;
        let (failed, lost) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
        let slot = failed.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&slot).get_or_insert_with(|| error.to_string());
        }));
        let slot = lost.clone();
        device.set_device_lost_callback(move |reason, message| {
            lock(&slot).get_or_insert_with(|| format!("{reason:?}: {message}"));
        });
        let immediates = features.contains(wgpu::Features::IMMEDIATES)
            && limits.max_immediate_size as usize >= PARAM_BYTES;
        let params_layout = (!immediates).then(|| {
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some("params"),
                entries: &[wgpu::BindGroupLayoutEntry {
                    binding: 0,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: wgpu::BindingType::Buffer {
                        ty: wgpu::BufferBindingType::Uniform,
                        has_dynamic_offset: true,
                        min_binding_size: None,
                    },
                    count: None,
                }],
            })
        });
        let disk = cache.and_then(|cache| DiskCache::open(&device, &adapter.get_info(), cache));
        Ok(Arc::new(Self {
            device,
            queue,
            immediates,
            align: u64::from(limits.min_storage_buffer_offset_alignment).max(4),
            max_buffer: limits.max_buffer_size & !3,
            budget: caps.wgpu.software.then(|| AtomicU64::new(available_memory())),
            caps,
            params_layout,
            pipelines: Mutex::default(),
            disk,
            compiling: AtomicU64::new(0),
            failed,
            lost,
            next: AtomicU64::new(1),
            timeout: AtomicU64::new(TIMEOUT.as_millis() as u64),
        }))
    }

    /// A number never given out before.
    pub fn fresh(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// What has gone wrong since the last call, as an error; `doing` names what was being done.
    pub fn check(&self, doing: impl FnOnce() -> String) -> Result<(), KernelError> {
        if let Some(what) = lock(&self.lost).clone() {
            return Err(KernelError::Lost { device: self.caps.device.clone(), what, doing: doing() });
        }
        match lock(&self.failed).take() {
            None => Ok(()),
            Some(what) if what == "Out of Memory" => Err(KernelError::OutOfMemory {
                bytes: 0,
                device: format!("{} ({})", self.caps.device, doing()),
            }),
            Some(what) => Err(KernelError::Device(format!("{}: {}: {what}", self.caps.device, doing()))),
        }
    }

    /// Waits for one submission. Errors if the device does not finish it in time.
    pub fn wait(
        &self,
        submission: wgpu::SubmissionIndex,
        doing: impl FnOnce() -> String,
    ) -> Result<(), KernelError> {
        let timeout = Duration::from_millis(self.timeout.load(Ordering::Relaxed));
        let poll = wgpu::PollType::Wait { submission_index: Some(submission), timeout: Some(timeout) };
        match self.device.poll(poll) {
            Ok(_) => self.check(doing),
            Err(wgpu::PollError::Timeout) => {
                let device = self.caps.device.clone();
                Err(KernelError::Timeout { device, seconds: timeout.as_secs_f64(), doing: doing() })
            }
            Err(wgpu::PollError::WrongSubmissionIndex(..)) => {
                // The submission was refused, as those of a lost device are; it says why once its other work has ended.
                let rest = wgpu::PollType::Wait { submission_index: None, timeout: Some(timeout) };
                let _ = self.device.poll(rest);
                let doing = doing();
                self.check(|| doing.clone())?;
                let what = "it refused a submission".to_owned();
                Err(KernelError::Lost { device: self.caps.device.clone(), what, doing })
            }
        }
    }

    /// Sets how long a submission may take.
    pub fn set_timeout(&self, timeout: Duration) {
        self.timeout.store(timeout.as_millis() as u64, Ordering::Relaxed);
    }

    /// A buffer of `bytes`, rounded up to whole words.
    pub fn buffer(&self, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer, KernelError> {
        let size = bytes.max(16).next_multiple_of(16);
        let fail = || KernelError::OutOfMemory { bytes: bytes as usize, device: self.caps.device.clone() };
        if size > self.max_buffer || !self.take(size) {
            return Err(fail());
        }
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let invalid = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let buffer = self.device.create_buffer(&descriptor);
        let errors = [pollster::block_on(invalid.pop()), pollster::block_on(memory.pop())];
        if errors.iter().any(Option::is_some) {
            self.give_back(size);
            return Err(fail());
        }
        Ok(buffer)
    }

    /// Errors if so many bytes more cannot be had, as far as that is known before they are asked for.
    pub fn expect_room(&self, bytes: u64) -> Result<(), KernelError> {
        match &self.budget {
            Some(budget) if budget.load(Ordering::Relaxed) < bytes => {
                Err(KernelError::OutOfMemory { bytes: bytes as usize, device: self.caps.device.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Counts bytes against the budget; false if it does not reach.
    fn take(&self, bytes: u64) -> bool {
        let less = |left: u64| left.checked_sub(bytes);
        let relaxed = Ordering::Relaxed;
        self.budget.as_ref().is_none_or(|budget| budget.fetch_update(relaxed, relaxed, less).is_ok())
    }

    /// Bytes of a buffer that is no longer held.
    pub fn give_back(&self, bytes: u64) {
        if let Some(budget) = &self.budget {
            budget.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// The compiled kernel, made now if it is new. Errors name kernel, line and reason.
    pub fn pipeline(&self, key: &PipelineKey) -> Result<Arc<Pipeline>, KernelError> {
        if let Some(known) = lock(&self.pipelines).get(key) {
            return Ok(known.clone());
        }
        let start = Instant::now();
        let made = Arc::new(self.compile(key)?);
        self.compiling.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        lock(&self.pipelines).insert(key.clone(), made.clone());
        Ok(made)
    }

    fn compile(&self, key: &PipelineKey) -> Result<Pipeline, KernelError> {
        let fail = |what: String| KernelError::Compile { kernel: key.path.to_owned(), what };
        let text = source::expand(key.path, &key.defines).map_err(|error| fail(error.to_string()))?;
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(key.path),
            source: wgpu::ShaderSource::Wgsl(text.as_str().into()),
        };
        // SAFETY: kernels index within their operands, whose sizes `spec()` and `Kernel::bind` check, clamp what they read
        // from memory before they index with it, and their loops end.
        let module = unsafe {
            self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        };
        let entries: Vec<wgpu::BindGroupLayoutEntry> = key
            .accesses
            .iter()
            .map(|&(binding, read_only)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(key.path),
            entries: &entries,
        });
        let groups = [Some(&layout), self.params_layout.as_ref()];
        let all = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(key.path),
            bind_group_layouts: if self.immediates { &groups[..1] } else { &groups },
            immediate_size: if self.immediates { PARAM_BYTES as u32 } else { 0 },
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(key.path),
            layout: Some(&all),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.disk.as_ref().map(DiskCache::cache),
        });
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(fail(format!("{error} with {:?}", key.defines)));
        }
        Ok(Pipeline { pipeline, layout, id: self.fresh() })
    }

    /// Time that compilation took so far.
    pub fn compile_time(&self) -> Duration {
        Duration::from_nanos(self.compiling.load(Ordering::Relaxed))
    }

    /// Kernels compiled so far.
    pub fn compiled(&self) -> usize {
        lock(&self.pipelines).len()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.compiled() > 0
            && let Some(disk) = &self.disk
        {
            disk.save();
        }
    }
}
