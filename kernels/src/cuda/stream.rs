//! Ops in order on one device.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buffer::CudaBuf;
use super::driver::{Driver, KernelId, Launch};
use super::launch::CudaCx;
use super::op::{CudaLaunch, CudaOp};
use super::source::KernelKey;
use crate::buffer::{Storage, View, Weights};
use crate::op::{Exec, Fetch, Queue, Recorded};
use crate::placing::Placed;
use crate::select::{Picks, Variant};
use crate::spec::{Caps, KernelError, Layout};

/// Runs CUDA kernels on one device.
pub struct CudaStream {
    pub(super) driver: Arc<dyn Driver>,
    /// The device's, and how its work is to be cut.
    pub(super) caps: Caps,
    picks: Arc<Picks>,
    loaded: HashMap<KernelKey, KernelId>,
    scratch: HashMap<usize, Arc<CudaBuf>>,
    counters: Option<Arc<CudaBuf>>,
    /// Smaller working memory, which recorded launches may still use.
    retired: Vec<Arc<CudaBuf>>,
    pub(super) placed: Placed<CudaBuf>,
    host_time: Duration,
}

impl CudaStream {
    /// A stream on a device, which takes these choices before estimates.
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>, picks: Arc<Picks>) -> Self {
        Self {
            caps: Caps { batch_invariant: picks.is_batch_invariant(), ..driver.caps().clone() },
            driver,
            picks,
            loaded: HashMap::new(),
            scratch: HashMap::new(),
            counters: None,
            retired: Vec::new(),
            placed: Placed::default(),
            host_time: Duration::ZERO,
        }
    }

    /// The device.
    #[must_use]
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// Runs one variant of an op, whatever the choice would be. The op's spec must not be rejected by it.
    pub fn launch<O: CudaOp>(
        &mut self,
        op: &O,
        row: &'static Variant<O::Spec, CudaLaunch<O>>,
    ) -> Result<(), KernelError> {
        (row.launch)(op, &mut CudaCx { stream: self }).map_err(|error| error.in_variant(O::NAME, row.name))
    }

    /// Chooses a variant and launches it.
    pub(super) fn exec_step<O: CudaOp>(&mut self, op: &O) -> Result<(), KernelError> {
        let row = self.picks.choose_for(op, O::cuda_variants(), &self.caps)?;
        self.launch(op, row)
    }

    pub(super) fn launch_kernel(&mut self, key: &KernelKey, launch: &Launch<'_>) -> Result<(), KernelError> {
        let kernel = match self.loaded.get(key) {
            Some(kernel) => *kernel,
            None => {
                let kernel = self.driver.kernel(key)?;
                self.loaded.insert(key.clone(), kernel);
                kernel
            }
        };
        self.driver.launch(kernel, launch)
    }

    /// Working memory, kept for later launches.
    pub(super) fn scratch(&mut self, slot: usize, bytes: usize) -> Result<Storage, KernelError> {
        if let Some(buffer) = self.scratch.get(&slot)
            && buffer.len() >= bytes
        {
            return Ok(Storage::Cuda(buffer.clone()));
        }
        let buffer = Arc::new(CudaBuf::new(&self.driver, bytes.next_power_of_two().max(1 << 16))?);
        self.retired.extend(self.scratch.insert(slot, buffer.clone()));
        Ok(Storage::Cuda(buffer))
    }

    /// Zeroed memory that launches leave zero.
    pub(super) fn counters(&mut self, bytes: usize) -> Result<Storage, KernelError> {
        if let Some(buffer) = &self.counters
            && buffer.len() >= bytes
        {
            return Ok(Storage::Cuda(buffer.clone()));
        }
        let buffer = Arc::new(CudaBuf::new(&self.driver, bytes.next_power_of_two().max(1 << 14))?);
        self.retired.extend(self.counters.replace(buffer.clone()));
        Ok(Storage::Cuda(buffer))
    }

    fn address(&self, view: &View) -> Result<u64, KernelError> {
        match view.storage() {
            Storage::Cuda(buffer) if Arc::ptr_eq(&buffer.driver, &self.driver) => {
                Ok(buffer.address + view.offset() as u64)
            }
            Storage::Cuda(_) => Err(KernelError::WrongStream),
            other => Err(KernelError::WrongStorage { expected: "cuda", found: other.kind() }),
        }
    }
}

/// The bytes between the first and the last element of a view, on their way to the host.
struct ViewFetch {
    bytes: Box<dyn Fetch>,
    layout: Layout,
    size: usize,
}

impl Fetch for ViewFetch {
    fn wait(self: Box<Self>) -> Result<Vec<u8>, KernelError> {
        let all = self.bytes.wait()?;
        let mut bytes = Vec::with_capacity(self.layout.len() * self.size);
        self.layout
            .for_each_offset(|offset| bytes.extend_from_slice(&all[offset * self.size..][..self.size]));
        Ok(bytes)
    }
}

impl Queue for CudaStream {
    fn caps(&self) -> &Caps {
        self.driver.caps()
    }

    fn alloc(&mut self, bytes: usize) -> Result<Storage, KernelError> {
        Ok(Storage::Cuda(Arc::new(CudaBuf::new(&self.driver, bytes)?)))
    }

    fn write(&mut self, to: &View, bytes: &[u8]) -> Result<(), KernelError> {
        let size = to.check_bytes(bytes.len())?;
        let address = self.address(to)?;
        if to.is_empty() {
            return Ok(());
        }
        if to.layout().is_dense() {
            return self.driver.write(address, bytes);
        }
        // What lies between the elements is read and written back.
        let mut all = vec![0; to.layout().extent() * size];
        self.driver.read(address, &mut all)?;
        let mut from = bytes.chunks_exact(size);
        to.layout().for_each_offset(|offset| {
            if let Some(chunk) = from.next() {
                all[offset * size..][..size].copy_from_slice(chunk);
            }
        });
        self.driver.write(address, &all)
    }

    fn read(&mut self, from: &View, bytes: &mut [u8]) -> Result<(), KernelError> {
        from.check_bytes(bytes.len())?;
        if from.layout().is_dense() && !from.is_empty() {
            return self.driver.read(self.address(from)?, bytes);
        }
        bytes.copy_from_slice(&self.fetch(from)?.wait()?);
        Ok(())
    }

    fn fetch(&mut self, from: &View) -> Result<Box<dyn Fetch>, KernelError> {
        let (address, size) = (self.address(from)?, from.dtype().size());
        if from.is_empty() {
            return Ok(Box::new(Vec::new()));
        }
        let bytes = self.driver.fetch(address, from.layout().extent() * size)?;
        if from.layout().is_dense() {
            return Ok(bytes);
        }
        Ok(Box::new(ViewFetch { bytes, layout: *from.layout(), size }))
    }

    fn overlaps(&self) -> bool {
        self.driver.overlaps()
    }

    fn host_time(&self) -> Duration {
        self.host_time
    }

    fn compile_time(&self) -> Duration {
        self.driver.compile_time()
    }

    fn place(&mut self, weights: &Weights) -> Result<Weights, KernelError> {
        super::upload::place(self, weights)
    }

    fn place_view(&mut self, view: &View) -> Result<View, KernelError> {
        super::upload::place_view(self, view)
    }

    fn records(&self) -> bool {
        self.driver.records()
    }

    fn record(&mut self) -> Result<(), KernelError> {
        self.driver.record()
    }

    fn recorded(&mut self) -> Result<Recorded, KernelError> {
        self.driver.recorded()
    }

    fn replay(&mut self, graph: &Recorded) -> Result<(), KernelError> {
        let start = Instant::now();
        let result = self.driver.replay(graph);
        self.host_time += start.elapsed();
        result
    }

    fn sync(&mut self) -> Result<(), KernelError> {
        self.driver.sync()
    }
}

impl<O: CudaOp> Exec<O> for CudaStream {
    fn exec(&mut self, op: &O) -> Result<(), KernelError> {
        let (start, compiled) = (Instant::now(), self.driver.compile_time());
        let result = self.exec_step(op);
        self.host_time += start.elapsed().saturating_sub(self.driver.compile_time().saturating_sub(compiled));
        result
    }

    fn accepts(&self, op: &O) -> bool {
        self.picks.accepts(op, O::cuda_variants(), &self.caps)
    }
}
