//! The real device: NVIDIA's driver API.

mod context;
mod pinned;
mod recording;

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cudarc::driver::sys::{
    self, CUdevice_attribute_enum as Attribute, CUfunction_attribute_enum as FunctionAttribute, CUresult,
};

use self::context::{Context, Event, said};
use self::pinned::{NvidiaFetch, Pinned, Ring, SMALL};
use self::recording::{Graph, Recording};
use super::ahead::Ahead;
use super::cubin::Cubins;
use super::driver::{Driver, KernelId, Launch, TensorDesc, TensorMap};
use super::source::{ENTRY, KernelKey};
use super::spare::Spares;
use crate::op::{Fetch, Recorded};
use crate::spec::{Arch, Backend, Caps, CudaCaps, DType, KernelError};

/// Oldest driver interface that has all that is used: CUDA 12.0.
const OLDEST_DRIVER: i32 = 12_000;
/// Oldest driver interface that takes dependent launches into graphs: CUDA 12.3.
const DEPENDENT_DRIVER: i32 = 12_030;
/// Bytes of pinned memory that one copy goes through.
const STAGE: usize = 8 << 20;
/// Copies that may be on their way at once.
const STAGES: usize = 2;
/// `0` here has no kernel start before the one before it has ended.
const DEPENDENT_ENV: &str = "OCELLI_CUDA_DEPENDENT";
/// What the functions of a toolkit's stub library say.
const STUB: &str = "the first libcuda that was found is the stub of a CUDA toolkit, which is there for linking alone: take its folder \
                    (`stubs`) out of LD_LIBRARY_PATH, or put that of the driver's own libcuda before it";
/// A device of this machine before it is opened.
pub(super) struct Found {
    pub name: String,
    pub refused: Option<String>,
    device: sys::CUdevice,
}

/// Why there is no driver, or its version.
fn driver_version() -> Result<i32, String> {
    static VERSION: OnceLock<Result<i32, String>> = OnceLock::new();
    VERSION
        .get_or_init(|| {
            // SAFETY: looks for the driver's library, whose initializers have no requirements.
            if !unsafe { sys::is_culib_present() } {
                return Err("no NVIDIA driver was found (libcuda)".into());
            }
            let mut version = 0;
            let answers = |what: &str, result: CUresult| match result {
                CUresult::CUDA_ERROR_STUB_LIBRARY => Err(STUB.to_owned()),
                result => said(what, result),
            };
            // SAFETY: both functions may be called before all others; one integer is written.
            unsafe {
                answers("cuDriverGetVersion", sys::cuDriverGetVersion(&mut version))?;
                if version < OLDEST_DRIVER {
                    return Err(format!(
                        "the NVIDIA driver knows CUDA {}.{}; 12.0 or later is needed",
                        version / 1000,
                        version % 1000 / 10
                    ));
                }
                answers("cuInit", sys::cuInit(0))?;
            }
            Ok(version)
        })
        .clone()
}

/// The devices of this machine, or why there is none.
pub(super) fn find() -> Result<Vec<Found>, String> {
    driver_version()?;
    let mut count = 0;
    // SAFETY: the driver is initialized; one integer is written.
    said("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    let mut all = Vec::new();
    for index in 0..count {
        let mut device = 0;
        let mut name = [0; 256];
        // SAFETY: the index is below the count; the name's length is that of the array.
        unsafe {
            said("cuDeviceGet", sys::cuDeviceGet(&mut device, index))?;
            said("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, device))?;
        }
        // SAFETY: the driver ends the name with a NUL.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let (major, minor) = capability(device)?;
        let refused = Arch::of(major, minor).is_none().then(|| {
            format!("{name} has compute capability {major}.{minor}; there are kernels for 8.x, 9.0 and 12.x")
        });
        all.push(Found { name, refused, device });
    }
    if all.is_empty() { Err("the NVIDIA driver lists no device".into()) } else { Ok(all) }
}

fn attribute(device: sys::CUdevice, which: Attribute) -> Result<i32, String> {
    let mut value = 0;
    // SAFETY: the driver is initialized and the device one of its own; one integer is written.
    said("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) })?;
    Ok(value)
}

fn capability(device: sys::CUdevice) -> Result<(u32, u32), String> {
    let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok((major.unsigned_abs(), minor.unsigned_abs()))
}

fn caps(found: &Found, version: i32) -> Result<Caps, String> {
    let get = |which| attribute(found.device, which).map(|value| value.unsigned_abs());
    let (major, minor) = capability(found.device)?;
    let arch = Arch::of(major, minor).ok_or_else(|| found.refused.clone().unwrap_or_default())?;
    let units = get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
    let ghz = get(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? as f32 / 1e6;
    let memory_ghz = get(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)? as f32 / 1e6;
    let bus_bytes = get(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)? as f32 / 8.0;
    let scaled = CudaCaps::scaled(arch, units, ghz);
    let read_gbps = 2.0 * memory_ghz * bus_bytes;
    Ok(Caps {
        backend: Backend::Cuda,
        device: found.name.clone(),
        api: "CUDA".into(),
        driver: format!("CUDA {}.{}", version / 1000, version % 1000 / 10),
        units,
        cuda: CudaCaps {
            shared_memory: get(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            l2: u64::from(get(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
            read_gbps: if read_gbps > 0.0 { read_gbps } else { scaled.read_gbps },
            ..scaled
        },
        ..Caps::default()
    })
}

/// A loaded kernel.
#[derive(Clone, Copy)]
pub(super) struct Function {
    function: sys::CUfunction,
    path: &'static str,
}

// SAFETY: a handle of the driver, which may be used from every thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// A device of the real driver.
pub(super) struct Nvidia {
    caps: Caps,
    /// Whether a kernel may start before the one before it has ended.
    dependent: AtomicBool,
    context: Arc<Context>,
    /// The launches that are being recorded.
    recording: Mutex<Option<Recording>>,
    sources: Arc<Cubins>,
    cubins: Ahead,
    loaded: Mutex<HashMap<KernelKey, KernelId>>,
    functions: RwLock<Vec<Function>>,
    stages: Mutex<Vec<Pinned>>,
    ring: Mutex<Option<Ring>>,
    spare: Arc<Mutex<Spares<Pinned>>>,
    compile_time: Mutex<Duration>,
    start: OnceLock<Event>,
}

/// Whether a driver refuses machine code for what it is.
fn is_refusal(result: CUresult) -> bool {
    matches!(
        result,
        CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_NOT_SUPPORTED
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nvidia {
    pub(super) fn open(found: &Found, cubins: Cubins) -> Result<Self, KernelError> {
        let open = || {
            if let Some(why) = &found.refused {
                return Err(why.clone());
            }
            let version = driver_version()?;
            let caps = caps(found, version)?;
            Ok((caps, version, Context::open(found.device, found.name.clone())?))
        };
        let (caps, version, context) =
            open().map_err(|what: String| KernelError::Device(format!("backend cuda: {what}")))?;
        let arch = caps.cuda.arch;
        let sources = Arc::new(cubins.for_driver(version.unsigned_abs() / 1000));
        let cubins = sources.clone();
        let wanted = std::env::var(DEPENDENT_ENV).as_deref() != Ok("0");
        Ok(Self {
            caps,
            dependent: AtomicBool::new(wanted && version >= DEPENDENT_DRIVER),
            context: Arc::new(context),
            recording: Mutex::default(),
            sources,
            cubins: Ahead::new(move |key| cubins.get(key, arch).map(|(code, _)| code)),
            loaded: Mutex::default(),
            functions: RwLock::default(),
            stages: Mutex::default(),
            ring: Mutex::default(),
            spare: Arc::default(),
            compile_time: Mutex::default(),
            start: OnceLock::new(),
        })
    }

    fn load(&self, key: &KernelKey) -> Result<KernelId, KernelError> {
        let bytes = self.cubins.get(key)?;
        self.context.enter()?;
        let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        let name = CString::new(ENTRY).map_err(|error| KernelError::Device(error.to_string()))?;
        let most = self.caps.cuda.shared_memory as i32;
        // SAFETY: the code is a whole cubin; one handle is written.
        let loaded = unsafe { sys::cuModuleLoadData(&mut module, bytes.as_ptr().cast()) };
        if is_refusal(loaded) {
            let made = self.sources.maker(key, self.caps.cuda.arch);
            let text = said("cuModuleLoadData", loaded).err().unwrap_or_default();
            return Err(KernelError::Device(format!(
                "{}: {key}: {text}: the driver knows {}; {made}",
                self.caps.device, self.caps.driver
            )));
        }
        self.context.check(&format!("{key}: cuModuleLoadData"), loaded)?;
        // SAFETY: the module is alive, and lives as long as the process; the handle is written before it is used.
        unsafe {
            self.context.check(
                &format!("{key}: cuModuleGetFunction"),
                sys::cuModuleGetFunction(&mut function, module, name.as_ptr()),
            )?;
            let which = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            self.context.check(
                &format!("{key}: cuFuncSetAttribute"),
                sys::cuFuncSetAttribute(function, which, most),
            )?;
        }
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        functions.push(Function { function, path: key.path });
        Ok(KernelId(functions.len() - 1))
    }

    /// Launches a kernel now.
    fn start(&self, function: Function, launch: &Launch<'_>, dependent: bool) -> Result<(), KernelError> {
        let mut attributes: [sys::CUlaunchAttribute; 3] = [
            // SAFETY: plain data, for which zeros are a value.
            unsafe { std::mem::zeroed() },
            // SAFETY: as above.
            unsafe { std::mem::zeroed() },
            // SAFETY: as above.
            unsafe { std::mem::zeroed() },
        ];
        let mut count = 0;
        use sys::CUlaunchAttributeID as Id;
        if launch.cluster > 1 {
            attributes[count].id = Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            attributes[count].value.clusterDim =
                sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: launch.cluster, y: 1, z: 1 };
            count += 1;
        }
        if dependent {
            attributes[count].id = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes[count].value.programmaticStreamSerializationAllowed = 1;
            count += 1;
        }
        if launch.cooperative {
            attributes[count].id = Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
            attributes[count].value.cooperative = 1;
            count += 1;
        }
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: self.context.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: count as u32,
        };
        let mut params = [launch.params.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes one struct, of which `params` is the bytes; the driver copies it before it returns.
        let result = unsafe {
            sys::cuLaunchKernelEx(&config, function.function, params.as_mut_ptr(), std::ptr::null_mut())
        };
        self.context.check(function.path, result)
    }

    /// Errors while launches are recorded: other work would be taken for a part of them.
    fn not_recording(&self, what: &str) -> Result<(), KernelError> {
        match &*lock(&self.recording) {
            None => Ok(()),
            Some(_) => Err(KernelError::Device(format!(
                "{}: {what} was asked for while launches are recorded",
                self.caps.device
            ))),
        }
    }

    fn begin_capture(&self) -> Result<(), KernelError> {
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive and not being captured.
        let result = unsafe { sys::cuStreamBeginCapture_v2(self.context.stream, mode) };
        self.context.check("cuStreamBeginCapture", result)
    }

    fn end_capture(&self) -> Result<Graph, KernelError> {
        let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the stream is being captured; handles are written before they are used.
        unsafe {
            let ended = sys::cuStreamEndCapture(self.context.stream, &mut graph);
            self.context.check("cuStreamEndCapture", ended)?;
            let made = sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0);
            sys::cuGraphDestroy(graph);
            self.context.check("cuGraphInstantiateWithFlags", made)?;
        }
        Ok(Graph { exec, context: self.context.clone() })
    }

    fn wait(&self, doing: &str) -> Result<(), KernelError> {
        let event = self.context.event(false)?;
        event.record()?;
        event.wait(doing)
    }
}

impl Driver for Nvidia {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn alloc(&self, bytes: usize) -> Result<u64, KernelError> {
        let address = self.alloc_unset(bytes)?;
        // SAFETY: the memory has just been allocated with this length.
        let zeroed = unsafe { sys::cuMemsetD8Async(address, 0, bytes.max(1), self.context.stream) };
        self.context.check("cuMemsetD8Async", zeroed).map(|()| address)
    }

    fn alloc_unset(&self, bytes: usize) -> Result<u64, KernelError> {
        self.context.enter()?;
        self.not_recording("memory")?;
        let mut address = 0;
        // SAFETY: the context is current; one address is written.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes.max(1)) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(KernelError::OutOfMemory { bytes, device: self.context.name.clone() })
            }
            result => self.context.check("cuMemAlloc", result).map(|()| address),
        }
    }

    fn free(&self, address: u64) {
        if self.context.enter().is_ok() {
            // SAFETY: the address came from `alloc`; the driver waits for work that uses it.
            unsafe { sys::cuMemFree_v2(address) };
        }
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), KernelError> {
        self.context.enter()?;
        self.not_recording("a write")?;
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.len() <= SMALL {
            let mut ring = lock(&self.ring);
            let ring = match &mut *ring {
                Some(ring) => ring,
                none => none.insert(Ring::new(&self.context)?),
            };
            let pinned = ring.take(bytes.len())?;
            pinned.copy_from_slice(bytes);
            // SAFETY: the pinned bytes are not used again before the device has read them; the range lies in the caller's
            // allocation.
            let result = unsafe {
                sys::cuMemcpyHtoDAsync_v2(to, pinned.as_ptr().cast(), bytes.len(), self.context.stream)
            };
            return self.context.check("cuMemcpyHtoDAsync", result);
        }
        let mut stages = lock(&self.stages);
        for (index, chunk) in bytes.chunks(STAGE).enumerate() {
            let mut stage = match stages.len() {
                STAGES => stages.remove(0),
                _ => Pinned::new(&self.context, STAGE)?,
            };
            stage.done.wait("copying to the device")?;
            stage.bytes()[..chunk.len()].copy_from_slice(chunk);
            let at = to + (index * STAGE) as u64;
            // SAFETY: the pinned bytes live until the event; the range lies in the caller's allocation.
            let result =
                unsafe { sys::cuMemcpyHtoDAsync_v2(at, stage.base.cast(), chunk.len(), self.context.stream) };
            self.context.check("cuMemcpyHtoDAsync", result)?;
            stage.done.record()?;
            stages.push(stage);
        }
        Ok(())
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), KernelError> {
        for (index, chunk) in bytes.chunks_mut(STAGE).enumerate() {
            let part = self.fetch(from + (index * STAGE) as u64, chunk.len())?.wait()?;
            chunk.copy_from_slice(&part);
        }
        Ok(())
    }

    fn fetch(&self, from: u64, bytes: usize) -> Result<Box<dyn Fetch>, KernelError> {
        self.not_recording("a read")?;
        let kept = lock(&self.spare).take(bytes);
        let pinned = match kept {
            Some(pinned) => pinned,
            None => Pinned::new(&self.context, Spares::<Pinned>::len_for(bytes))?,
        };
        self.context.enter()?;
        // SAFETY: the pinned bytes live until the event has been waited for; the range lies in the caller's allocation.
        let result =
            unsafe { sys::cuMemcpyDtoHAsync_v2(pinned.base.cast(), from, bytes, self.context.stream) };
        self.context.check("cuMemcpyDtoHAsync", result)?;
        pinned.done.record()?;
        Ok(Box::new(NvidiaFetch::new(pinned, bytes, &self.spare)))
    }

    fn kernel(&self, key: &KernelKey) -> Result<KernelId, KernelError> {
        if let Some(kernel) = lock(&self.loaded).get(key) {
            return Ok(*kernel);
        }
        let start = Instant::now();
        let result = self.load(key);
        *lock(&self.compile_time) += start.elapsed();
        let kernel = result?;
        lock(&self.loaded).insert(key.clone(), kernel);
        Ok(kernel)
    }

    fn ahead(&self) -> Option<&Ahead> {
        Some(&self.cubins)
    }

    fn launch(&self, kernel: KernelId, launch: &Launch<'_>) -> Result<(), KernelError> {
        self.context.enter()?;
        let function = {
            let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
            functions.get(kernel.0).copied()
        };
        let Some(function) = function else {
            return Err(KernelError::Device(format!("kernel {} is not loaded", kernel.0)));
        };
        let dependent = launch.dependent && self.dependent.load(Ordering::Relaxed);
        match &mut *lock(&self.recording) {
            Some(recording) => {
                recording.note(function, launch, dependent, || self.start(function, launch, dependent))
            }
            None => self.start(function, launch, dependent),
        }
    }

    fn tensor_map(&self, tensor: &TensorDesc) -> Result<TensorMap, KernelError> {
        use sys::CUtensorMapDataType_enum as Type;
        let dtype = match tensor.dtype {
            DType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            DType::BF16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::I32 => Type::CU_TENSOR_MAP_DATA_TYPE_INT32,
            DType::I8 | DType::U8 | DType::E4M3 | DType::E8M0 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        };
        let swizzle = if tensor.swizzle128 {
            sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B
        } else {
            sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_NONE
        };
        let steps = [1; 5];
        let mut map = TensorMap([0; 16]);
        // SAFETY: the arrays have an entry for each axis (strides for each but one); the map is 128 bytes, aligned to 64.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                dtype,
                tensor.shape.len() as u32,
                tensor.address as *mut c_void,
                tensor.shape.as_ptr(),
                tensor.strides.as_ptr(),
                tensor.tile.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        self.context.check(&format!("cuTensorMapEncodeTiled of {tensor:?}"), result)?;
        Ok(map)
    }

    fn sync(&self) -> Result<(), KernelError> {
        self.not_recording("an end")?;
        self.wait("waiting for the device")
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn records(&self) -> bool {
        true
    }

    fn record(&self) -> Result<(), KernelError> {
        self.context.enter()?;
        self.not_recording("a recording")?;
        self.begin_capture()?;
        *lock(&self.recording) = Some(Recording::default());
        Ok(())
    }

    fn recorded(&self) -> Result<Recorded, KernelError> {
        let Some(mut recording) = lock(&self.recording).take() else {
            return Err(KernelError::Device(format!("{}: no launches are being recorded", self.caps.device)));
        };
        self.context.enter()?;
        // A capture is ended even where a launch of it has failed.
        let ended = self.end_capture();
        let outcome = match recording.failed.take() {
            Some(error) => Err(error),
            None => ended,
        };
        let graph = match outcome {
            Err(error) if recording.dependent && !self.context.is_gone() => {
                self.dependent.store(false, Ordering::Relaxed);
                tracing::warn!(
                    "{}: launches that overlap could not be recorded ({error}); from here on each waits for the one before it",
                    self.caps.device
                );
                self.context.enter()?;
                self.begin_capture()?;
                let again = recording.again(|function, launch| self.start(function, launch, false));
                let ended = self.end_capture();
                again?;
                ended?
            }
            outcome => outcome?,
        };
        Ok(Arc::new(graph))
    }

    fn replay(&self, recorded: &Recorded) -> Result<(), KernelError> {
        let Some(graph) = recorded.downcast_ref::<Graph>() else { return Err(KernelError::WrongStream) };
        if !Arc::ptr_eq(&graph.context, &self.context) {
            return Err(KernelError::WrongStream);
        }
        self.context.enter()?;
        self.not_recording("a replay")?;
        // SAFETY: graph and stream are alive.
        let result = unsafe { sys::cuGraphLaunch(graph.exec, self.context.stream) };
        self.context.check("cuGraphLaunch", result)
    }

    fn replay_us(&self, graph: &Recorded, times: usize) -> Result<Option<f64>, KernelError> {
        // The first replay uploads the graph, which is no part of what its kernels take.
        self.replay(graph)?;
        self.sync()?;
        let (begin, end) = (self.context.event(true)?, self.context.event(true)?);
        begin.record()?;
        for _ in 0..times {
            self.replay(graph)?;
        }
        end.record()?;
        end.wait("timing recorded launches")?;
        let mut ms = 0.0;
        // SAFETY: both events have been recorded with timing, and the later one has happened.
        let result = unsafe { sys::cuEventElapsedTime(&mut ms, begin.event, end.event) };
        self.context.check("cuEventElapsedTime", result)?;
        Ok(Some(f64::from(ms) * 1e3 / times.max(1) as f64))
    }

    fn compile_time(&self) -> Duration {
        *lock(&self.compile_time)
    }

    fn kernels(&self) -> usize {
        lock(&self.loaded).len()
    }

    fn clock(&self) -> Result<Option<f64>, KernelError> {
        self.not_recording("the time")?;
        if self.start.get().is_none() {
            let event = self.context.event(true)?;
            event.record()?;
            let _ = self.start.set(event);
        }
        let Some(start) = self.start.get() else { return Ok(None) };
        let now = self.context.event(true)?;
        now.record()?;
        now.wait("reading the device's clock")?;
        let mut ms = 0.0;
        // SAFETY: both events have been recorded with timing, and the later one has happened.
        let result = unsafe { sys::cuEventElapsedTime(&mut ms, start.event, now.event) };
        self.context.check("cuEventElapsedTime", result)?;
        Ok(Some(f64::from(ms) * 1e3))
    }
}
