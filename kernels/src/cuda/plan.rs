//! A device that computes nothing and notes which kernels it is asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::ahead::Names;
use super::driver::{Driver, KernelId, Launch, TensorDesc, TensorMap};
use super::source::KernelKey;
use crate::op::{Fetch, Recorded};
use crate::spec::{Arch, Caps, KernelError};

/// Alignment of addresses.
const ALIGN: u64 = 256;

/// Gives out addresses without memory; reads give zeros. What it notes is what a run of the same work on a real device of the
/// same capabilities compiles.
pub struct PlanDriver {
    caps: Caps,
    noted: Mutex<Noted>,
    expected: Option<Names>,
}

struct Noted {
    next: u64,
    kernels: BTreeMap<KernelKey, KernelId>,
    launches: usize,
}

impl PlanDriver {
    /// For devices with these capabilities.
    #[must_use]
    pub fn new(caps: Caps) -> Self {
        let noted = Noted { next: ALIGN, kernels: BTreeMap::new(), launches: 0 };
        Self { caps, noted: Mutex::new(noted), expected: None }
    }

    /// The same, which has each kernel expected as it notes it.
    #[must_use]
    pub fn expecting(caps: Caps, names: Names) -> Self {
        Self { expected: Some(names), ..Self::new(caps) }
    }

    /// For a typical device of an architecture.
    #[must_use]
    pub fn of_arch(arch: Arch) -> Self {
        Self::new(Caps::of_arch(arch))
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernels that were asked for.
    #[must_use]
    pub fn keys(&self) -> Vec<KernelKey> {
        self.noted().kernels.keys().cloned().collect()
    }

    /// Launches so far.
    #[must_use]
    pub fn launches(&self) -> usize {
        self.noted().launches
    }
}

impl Driver for PlanDriver {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn alloc(&self, bytes: usize) -> Result<u64, KernelError> {
        let mut noted = self.noted();
        let address = noted.next;
        noted.next = (address + bytes as u64 + ALIGN).next_multiple_of(ALIGN);
        Ok(address)
    }

    fn free(&self, _address: u64) {}

    fn write(&self, _to: u64, _bytes: &[u8]) -> Result<(), KernelError> {
        Ok(())
    }

    fn read(&self, _from: u64, bytes: &mut [u8]) -> Result<(), KernelError> {
        bytes.fill(0);
        Ok(())
    }

    fn fetch(&self, _from: u64, bytes: usize) -> Result<Box<dyn Fetch>, KernelError> {
        Ok(Box::new(vec![0; bytes]))
    }

    fn kernel(&self, key: &KernelKey) -> Result<KernelId, KernelError> {
        let mut noted = self.noted();
        let next = KernelId(noted.kernels.len());
        Ok(*noted.kernels.entry(key.clone()).or_insert_with(|| {
            if let Some(names) = &self.expected {
                names.expect(key);
            }
            next
        }))
    }

    fn stores(&self) -> bool {
        false
    }

    fn launch(&self, _kernel: KernelId, _launch: &Launch<'_>) -> Result<(), KernelError> {
        self.noted().launches += 1;
        Ok(())
    }

    fn tensor_map(&self, _tensor: &TensorDesc) -> Result<TensorMap, KernelError> {
        Ok(TensorMap([0; 16]))
    }

    fn sync(&self) -> Result<(), KernelError> {
        Ok(())
    }

    fn overlaps(&self) -> bool {
        false
    }

    // Steps take the shapes that a device which records them has.
    fn records(&self) -> bool {
        true
    }

    fn record(&self) -> Result<(), KernelError> {
        Ok(())
    }

    fn recorded(&self) -> Result<Recorded, KernelError> {
        Ok(Arc::new(()))
    }

    fn replay(&self, _graph: &Recorded) -> Result<(), KernelError> {
        Ok(())
    }
}
