//! Memory of a device.

use std::sync::Arc;

use super::driver::Driver;
use crate::spec::KernelError;

/// An allocation on a device.
pub struct CudaBuf {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) address: u64,
    len: usize,
}

impl CudaBuf {
    /// Zeroed memory.
    pub(super) fn new(driver: &Arc<dyn Driver>, len: usize) -> Result<Self, KernelError> {
        Ok(Self { driver: driver.clone(), address: driver.alloc(len)?, len })
    }

    /// Memory of any content, for who writes all of it.
    pub(super) fn unset(driver: &Arc<dyn Driver>, len: usize) -> Result<Self, KernelError> {
        Ok(Self { driver: driver.clone(), address: driver.alloc_unset(len)?, len })
    }

    /// Address on the device.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for CudaBuf {
    fn drop(&mut self) {
        self.driver.free(self.address);
    }
}
