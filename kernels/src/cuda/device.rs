//! GPUs as devices.

use std::path::Path;
use std::sync::Arc;

use super::cubin::Cubins;
use super::driver::Driver;
use super::nvidia::{self, Nvidia};
use super::plan::PlanDriver;
use super::stream::CudaStream;
use crate::op::{Device, Rehearsal};
use crate::ops::Stream;
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

    fn warm_up(&self, rehearse: Rehearsal) {
        let Some(ahead) = self.driver.ahead() else { return };
        let (caps, picks) = (self.caps().clone(), self.picks.clone());
        ahead.expect(move |names| {
            let driver = Arc::new(PlanDriver::expecting(caps, names));
            rehearse(&CudaDevice::on(driver, picks));
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::super::ahead::Ahead;
    use super::super::driver::{KernelId, Launch, TensorDesc, TensorMap};
    use super::super::source::KernelKey;
    use super::*;
    use crate::buffer::View;
    use crate::op::{Exec, Fetch};
    use crate::ops::ScatterRows;
    use crate::spec::{Arch, DType};

    /// A plan of a device on which kernels are work.
    struct Working {
        plan: PlanDriver,
        ahead: Ahead,
    }

    impl Driver for Working {
        fn caps(&self) -> &Caps {
            self.plan.caps()
        }
        fn alloc(&self, bytes: usize) -> Result<u64, KernelError> {
            self.plan.alloc(bytes)
        }
        fn free(&self, address: u64) {
            self.plan.free(address);
        }
        fn write(&self, to: u64, bytes: &[u8]) -> Result<(), KernelError> {
            self.plan.write(to, bytes)
        }
        fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), KernelError> {
            self.plan.read(from, bytes)
        }
        fn fetch(&self, from: u64, bytes: usize) -> Result<Box<dyn Fetch>, KernelError> {
            self.plan.fetch(from, bytes)
        }
        fn kernel(&self, key: &KernelKey) -> Result<KernelId, KernelError> {
            self.ahead.get(key)?;
            self.plan.kernel(key)
        }
        fn ahead(&self) -> Option<&Ahead> {
            Some(&self.ahead)
        }
        fn launch(&self, kernel: KernelId, launch: &Launch<'_>) -> Result<(), KernelError> {
            self.plan.launch(kernel, launch)
        }
        fn tensor_map(&self, tensor: &TensorDesc) -> Result<TensorMap, KernelError> {
            self.plan.tensor_map(tensor)
        }
        fn sync(&self) -> Result<(), KernelError> {
            Ok(())
        }
        fn overlaps(&self) -> bool {
            true
        }
    }

    fn scatter(device: &dyn Device) {
        let mut stream = device.stream().unwrap();
        let mut view = |shape: &[usize], dtype: DType| {
            let bytes = shape.iter().product::<usize>() * dtype.size();
            View::dense(stream.alloc(bytes).unwrap(), shape, dtype).unwrap()
        };
        let (src, out) = (view(&[3, 64], DType::F32), view(&[9, 64], DType::F32));
        let op = ScatterRows { src, rows: view(&[3], DType::I32), out };
        Exec::<ScatterRows>::exec(&mut *stream, &op).unwrap();
    }

    #[test]
    fn expected_kernels_are_compiled_beside_the_caller() {
        let count = Arc::new(AtomicUsize::new(0));
        let (counted, (tell, told)) = (count.clone(), mpsc::channel());
        let ahead = Ahead::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            let _ = tell.send(std::thread::current().id());
            Ok(vec![])
        });
        let driver = Arc::new(Working { plan: PlanDriver::of_arch(Arch::Sm80), ahead });
        let device = CudaDevice::on(driver.clone(), Arc::default());
        device.warm_up(Box::new(|device| scatter(device)));
        // Compiled before anything is launched, by another thread, and not again.
        assert_ne!(told.recv().unwrap(), std::thread::current().id());
        assert_eq!(driver.plan.launches(), 0);
        scatter(&device);
        assert_eq!((count.load(Ordering::Relaxed), driver.plan.launches()), (1, 1));
    }
}
