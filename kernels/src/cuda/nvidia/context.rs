//! The context of a device, its queue, and points in that.

use std::ffi::CStr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUresult};

use crate::spec::KernelError;

/// How long the host waits for the device before an error says so, in seconds, unless `OCELLI_CUDA_TIMEOUT` says otherwise.
const TIMEOUT: u64 = 60;
/// How long it waits without giving its core away.
const SPIN: Duration = Duration::from_micros(200);

fn timeout() -> Duration {
    static SECONDS: OnceLock<Duration> = OnceLock::new();
    let read = || std::env::var("OCELLI_CUDA_TIMEOUT").ok()?.parse().ok().filter(|seconds| *seconds > 0);
    *SECONDS.get_or_init(|| Duration::from_secs(read().unwrap_or(TIMEOUT)))
}

/// What the driver says of a result.
pub(super) fn said(what: &str, result: CUresult) -> Result<(), String> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: the function gives a static string for every known code and a null pointer for others.
    let text = unsafe {
        if sys::cuGetErrorString(result, &mut text) == CUresult::CUDA_SUCCESS && !text.is_null() {
            CStr::from_ptr(text).to_string_lossy().into_owned()
        } else {
            format!("{result:?}")
        }
    };
    Err(format!("{what}: {text}"))
}

/// Context and queue; ends with the last that uses them.
pub(super) struct Context {
    device: sys::CUdevice,
    pub(super) context: sys::CUcontext,
    pub(super) stream: sys::CUstream,
    pub(super) name: String,
    /// What ended it: the device is lost, or does not answer. From then on nothing is asked of it, and what it holds is left to it:
    /// to wait for a kernel that hangs is to wait for ever.
    gone: OnceLock<String>,
}

// SAFETY: handles of the driver, which may be used from every thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn open(device: sys::CUdevice, name: String) -> Result<Self, String> {
        let (mut context, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the driver is initialized, the device its own; the handles are written before they are used.
        unsafe {
            said("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut context, device))?;
            said("cuCtxSetCurrent", sys::cuCtxSetCurrent(context))?;
            // CU_STREAM_NON_BLOCKING
            said("cuStreamCreate", sys::cuStreamCreate(&mut stream, 1))?;
        }
        Ok(Self { device, context, stream, name, gone: OnceLock::new() })
    }

    /// Notes that nothing more is to be asked of the device.
    fn leave(&self, what: impl Into<String>) {
        let _ = self.gone.set(what.into());
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.get().is_some()
    }

    /// Makes this the context of the calling thread. Errors once the device is gone.
    pub(super) fn enter(&self) -> Result<(), KernelError> {
        if let Some(what) = self.gone.get() {
            let (device, doing) = (self.name.clone(), "asked again".to_owned());
            return Err(KernelError::Lost { device, what: what.clone(), doing });
        }
        // SAFETY: the context is alive.
        self.check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    pub(super) fn check(&self, what: &str, result: CUresult) -> Result<(), KernelError> {
        let Err(text) = said(what, result) else { return Ok(()) };
        Err(match result {
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ASSERT => {
                self.leave(text.clone());
                KernelError::Lost { device: self.name.clone(), what: text, doing: what.to_owned() }
            }
            _ => KernelError::Device(format!("{}: {text}", self.name)),
        })
    }

    pub(super) fn event(self: &Arc<Self>, timing: bool) -> Result<Event, KernelError> {
        let mut event = std::ptr::null_mut();
        self.enter()?;
        // CU_EVENT_DISABLE_TIMING is 2.
        // SAFETY: the context is current; one handle is written.
        self.check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, if timing { 0 } else { 2 }) })?;
        Ok(Event { event, context: self.clone() })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.is_gone() {
            return;
        }
        // SAFETY: nobody holds the context any more; the stream belongs to it.
        unsafe {
            sys::cuCtxSetCurrent(self.context);
            sys::cuStreamSynchronize(self.stream);
            sys::cuStreamDestroy_v2(self.stream);
            sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// A point in the queue.
pub(super) struct Event {
    pub(super) event: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: a handle of the driver, which may be used from every thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn record(&self) -> Result<(), KernelError> {
        self.context.enter()?;
        // SAFETY: event and stream are alive.
        self.context.check("cuEventRecord", unsafe { sys::cuEventRecord(self.event, self.context.stream) })
    }

    pub(super) fn wait(&self, doing: &str) -> Result<(), KernelError> {
        self.context.enter()?;
        let start = Instant::now();
        loop {
            // SAFETY: the event is alive.
            let result = unsafe { sys::cuEventQuery(self.event) };
            if result != CUresult::CUDA_ERROR_NOT_READY {
                return self.context.check(doing, result);
            }
            let waited = start.elapsed();
            if waited > timeout() {
                self.context.leave(format!("no answer in {:.0} s ({doing})", waited.as_secs_f64()));
                return Err(KernelError::Timeout {
                    device: self.context.name.clone(),
                    seconds: waited.as_secs_f64(),
                    doing: doing.to_owned(),
                });
            }
            if waited < SPIN { std::hint::spin_loop() } else { std::thread::sleep(Duration::from_micros(20)) }
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.is_gone() {
            return;
        }
        // SAFETY: the event is alive and used no more.
        unsafe {
            sys::cuCtxSetCurrent(self.context.context);
            sys::cuEventDestroy_v2(self.event);
        }
    }
}
