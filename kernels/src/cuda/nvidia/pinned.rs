//! Pinned memory: what copies go through.

use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::{self, CUresult};

use super::super::spare::Spares;
use super::context::{Context, Event};
use super::lock;
use crate::op::Fetch;
use crate::spec::KernelError;

/// Bytes of the pinned memory that small writes go through, in two halves, and the largest of them.
const RING: usize = 4 << 20;
pub(super) const SMALL: usize = 64 << 10;

/// Host memory that the device copies from and to by itself.
pub(super) struct Pinned {
    pub(super) base: *mut u8,
    len: usize,
    pub(super) done: Event,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<Context>, len: usize) -> Result<Self, KernelError> {
        let done = context.event(false)?;
        let mut base: *mut c_void = std::ptr::null_mut();
        // SAFETY: the context is current since `event`; one pointer is written.
        match unsafe { sys::cuMemHostAlloc(&mut base, len, 0) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(KernelError::OutOfMemory { bytes: len, device: "the host (pinned memory)".into() })
            }
            result => {
                context.check("cuMemHostAlloc", result)?;
                Ok(Self { base: base.cast(), len, done })
            }
        }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes from `base` on are allocated, and copies by the device have been waited for.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Memory that the device may still write to is nobody else's.
        if self.done.wait("freeing pinned memory").is_err() {
            return;
        }
        // SAFETY: allocated by `cuMemHostAlloc`; the device is done with it.
        unsafe { sys::cuMemFreeHost(self.base.cast()) };
    }
}

/// Pinned memory for small writes. The host waits only when it comes back to a half that the device has not read yet, many writes
/// later.
pub(super) struct Ring {
    halves: [Pinned; 2],
    half: usize,
    used: usize,
}

impl Ring {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, KernelError> {
        let half = || Pinned::new(context, RING / 2);
        Ok(Self { halves: [half()?, half()?], half: 0, used: 0 })
    }

    /// Memory for `len` bytes, at most `SMALL`.
    pub(super) fn take(&mut self, len: usize) -> Result<&mut [u8], KernelError> {
        if self.used + len > RING / 2 {
            self.halves[self.half].done.record()?;
            self.half = 1 - self.half;
            self.used = 0;
            self.halves[self.half].done.wait("copying to the device")?;
        }
        let start = self.used;
        self.used += len.next_multiple_of(16);
        Ok(&mut self.halves[self.half].bytes()[start..start + len])
    }
}

/// Bytes on their way to the host.
pub(super) struct NvidiaFetch {
    pinned: Option<Pinned>,
    bytes: usize,
    spare: Arc<Mutex<Spares<Pinned>>>,
}

impl NvidiaFetch {
    /// The first bytes of pinned memory, once its event has happened.
    pub(super) fn new(pinned: Pinned, bytes: usize, spare: &Arc<Mutex<Spares<Pinned>>>) -> Self {
        Self { pinned: Some(pinned), bytes, spare: spare.clone() }
    }
}

impl Fetch for NvidiaFetch {
    fn wait(mut self: Box<Self>) -> Result<Vec<u8>, KernelError> {
        let Some(mut pinned) = self.pinned.take() else { return Ok(Vec::new()) };
        pinned.done.wait("waiting for results")?;
        let bytes = pinned.bytes()[..self.bytes].to_vec();
        let _gone = lock(&self.spare).keep(pinned.len, pinned);
        Ok(bytes)
    }
}
