//! GPUs as devices.

use std::path::Path;
use std::sync::Arc;

use super::cubin::Cubins;
use super::driver::Driver;
use super::nvidia::{self, Nvidia};
use super::stream::CudaStream;
use crate::op::{Device, Stream};
use crate::select::Picks;
use crate::spec::{Caps, KernelError};

/// Each GPU with its name and why it is refused; the error says why there is none.
pub fn list() -> Result<Vec<(String, Option<String>)>, String> {
    Ok(nvidia::find()?.into_iter().map(|found| (found.name, found.refused)).collect())
}

/// An open GPU.
pub struct CudaDevice {
    driver: Arc<dyn Driver>,
    picks: Arc<Picks>,
}

impl CudaDevice {
    /// Opens GPU `index` of [`list`], with a directory for compiled kernels. Errors say which GPUs there are.
    pub fn open(index: usize, picks: Arc<Picks>, cache: Option<&Path>) -> Result<Self, KernelError> {
        let fail = |what: String| KernelError::Device(format!("backend cuda: {what}"));
        let all = nvidia::find().map_err(fail)?;
        let chosen = all.get(index).ok_or_else(|| {
            let names: Vec<String> =
                all.iter().enumerate().map(|(i, found)| format!("{i} ({})", found.name)).collect();
            fail(format!("no device {index}; there is {}", names.join(", ")))
        })?;
        let driver = Nvidia::open(chosen, Cubins::from_env(cache))?;
        Ok(Self::on(Arc::new(driver), picks))
    }

    /// A device on any driver.
    #[must_use]
    pub fn on(driver: Arc<dyn Driver>, picks: Arc<Picks>) -> Self {
        Self { driver, picks }
    }

    /// What drives it.
    #[must_use]
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// A stream, for callers that launch chosen variants.
    #[must_use]
    pub fn queue(&self) -> CudaStream {
        CudaStream::new(self.driver.clone(), self.picks.clone())
    }
}

impl Device for CudaDevice {
    fn caps(&self) -> &Caps {
        self.driver.caps()
    }

    fn stream(&self) -> Result<Box<dyn Stream>, KernelError> {
        Ok(Box::new(self.queue()))
    }

    fn prefer(&mut self, picks: Picks) {
        self.picks = Arc::new(picks);
    }
}
