//! The CPU as a device: its capabilities, and the stream that runs CPU kernels.

use std::sync::Arc;

use super::isa::Isa;
use super::op::CpuOp;
use super::pool::Pool;
use crate::buffer::{Storage, StreamId, View};
use crate::op::{Device, Exec, Queue};
use crate::ops::Stream;
use crate::select::Picks;
use crate::spec::{Backend, Caps, KernelError};

/// What a CPU kernel works with.
#[derive(Clone)]
pub struct CpuCx {
    /// Instructions that the kernel may use.
    pub isa: Isa,
    /// Threads and their scratch memory.
    pub pool: Arc<Pool>,
    /// The stream whose memory the op works on.
    pub id: StreamId,
}

impl CpuCx {
    /// Pointer to the first element of an operand that is read: valid for `layout().extent()` elements.
    pub fn input<T: crate::Element>(&self, view: &View) -> Result<*const T, KernelError> {
        view.read_ptr(self.id)
    }

    /// Pointer to the first element of an operand that is written: valid for `layout().extent()` elements.
    pub fn output<T: crate::Element>(&self, view: &View) -> Result<*mut T, KernelError> {
        view.write_ptr(self.id)
    }
}

/// Capabilities of this CPU at an instruction-set level.
#[must_use]
pub fn caps(isa: Isa, threads: usize) -> Caps {
    Caps {
        backend: Backend::Cpu,
        device: cpu_name(),
        isa: isa.level(),
        int8_dot: isa.vnni(),
        bf16_dot: isa.bf16(),
        amx: isa.amx(),
        units: threads,
        ..Caps::default()
    }
}

/// This machine's CPU.
pub struct CpuDevice {
    caps: Caps,
    isa: Isa,
    pool: Arc<Pool>,
    picks: Arc<Picks>,
}

impl CpuDevice {
    /// The CPU with this many threads (`None`: every core that the process may use), at the level that `OCELLI_ISA`
    /// allows. Errors if that names a level which the machine lacks.
    pub fn open(threads: Option<usize>, picks: Arc<Picks>) -> Result<Self, KernelError> {
        let isa = Isa::detect().map_err(|error| KernelError::Device(error.to_string()))?;
        let threads = threads.unwrap_or_else(available_threads);
        Ok(Self { picks, ..Self::at(isa, Arc::new(Pool::new(threads))) })
    }

    /// The CPU at a given level, on existing threads.
    #[must_use]
    pub fn at(isa: Isa, pool: Arc<Pool>) -> Self {
        Self { caps: caps(isa, pool.threads()), isa, pool, picks: Arc::default() }
    }
}

impl Device for CpuDevice {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn stream(&self) -> Result<Box<dyn Stream>, KernelError> {
        let cx = CpuCx { isa: self.isa, pool: self.pool.clone(), id: StreamId::fresh() };
        Ok(Box::new(CpuStream { caps: self.caps.clone(), cx, picks: self.picks.clone() }))
    }

    fn prefer(&mut self, picks: Picks) {
        self.picks = Arc::new(picks);
    }
}

/// Runs CPU kernels at once, on the calling thread and those of the pool.
pub struct CpuStream {
    caps: Caps,
    cx: CpuCx,
    picks: Arc<Picks>,
}

impl Queue for CpuStream {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn alloc(&mut self, bytes: usize) -> Result<Storage, KernelError> {
        Storage::host(bytes, self.cx.id)
    }

    fn reserve(&mut self, bytes: usize) -> Result<Storage, KernelError> {
        Storage::host_reserved(bytes, self.cx.id)
    }

    fn write(&mut self, to: &View, bytes: &[u8]) -> Result<(), KernelError> {
        to.fill_from(bytes, self.cx.id)
    }

    fn read(&mut self, from: &View, bytes: &mut [u8]) -> Result<(), KernelError> {
        from.copy_to(bytes, self.cx.id)
    }
}

impl<O: CpuOp> Exec<O> for CpuStream {
    fn exec(&mut self, op: &O) -> Result<(), KernelError> {
        let row = self.picks.choose_for(op, Ok(O::cpu_variants()), &self.caps)?;
        (row.launch)(op, &self.cx)
    }

    fn accepts(&self, op: &O) -> bool {
        self.picks.accepts(op, Ok(O::cpu_variants()), &self.caps)
    }
}

/// The CPU as its vendor names it.
fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |name| name.trim().to_owned())
}

/// Cores that the process may use.
fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
