//! The device whose kernels are measured: where their operands lie, how one is launched, and what its time is.

use std::sync::Arc;
use std::time::Instant;

use ocelli_kernels::cpu::isa::Isa;
use ocelli_kernels::cpu::pool::Pool;
use ocelli_kernels::cpu::{CpuCx, CpuDevice};
#[cfg(feature = "cuda")]
use ocelli_kernels::cuda::{CudaDevice, CudaStream, PlanDriver};
#[cfg(feature = "wgpu")]
use ocelli_kernels::wgpu::{Profile, WgpuDevice, WgpuStream};
use ocelli_kernels::{
    Backend, BackendOp, Caps, DType, Device, DeviceOptions, KernelError, Op, Picks, Queue, Row, View,
};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use ocelli_kernels::{Rows, Variant};

use super::operands::Operands;
use super::{BenchError, Ready};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::machine::Adapter;
use crate::machine::Machine;
use crate::roof::{self, Beside, Roofs};

/// An open device.
pub struct Target {
    kind: Kind,
    picks: Picks,
}

enum Kind {
    Cpu {
        device: Box<CpuDevice>,
        cx: CpuCx,
        /// Reads between runs, once roofs are measured.
        reads: Option<Beside>,
    },
    #[cfg(feature = "wgpu")]
    Wgpu { device: WgpuDevice, stream: Box<WgpuStream>, submit_us: f64 },
    #[cfg(feature = "cuda")]
    Cuda { device: CudaDevice, stream: Box<CudaStream>, submit_us: f64 },
}

/// An op with its operands where the device's kernels want them.
pub struct Placed<O> {
    /// The op to launch.
    pub op: O,
    /// What it may write.
    memory: Vec<Memory>,
}

/// Memory of activations: bytes on the host, and what stands for them on the device if that is elsewhere.
struct Memory {
    host: View,
    device: Option<View>,
    before: Vec<u8>,
}

/// Replays of one graph that are timed together.
#[cfg(feature = "cuda")]
const REPLAYS: usize = 2;

impl Target {
    /// Opens a device; ops on the host's memory are those of `operands`.
    pub fn open(
        backend: Backend,
        options: &DeviceOptions,
        operands: &Operands,
    ) -> Result<Target, BenchError> {
        let failed = |reason: String| BenchError::Backend { backend, reason };
        let kind = match backend {
            Backend::Cpu => {
                let isa = Isa::detect().map_err(|error| failed(error.to_string()))?;
                let pool = Arc::new(Pool::new(options.threads.unwrap_or_else(roof::default_threads)));
                let cx = CpuCx { isa, pool: pool.clone(), id: operands.id };
                Kind::Cpu { device: Box::new(CpuDevice::at(isa, pool)), cx, reads: None }
            }
            #[cfg(feature = "wgpu")]
            Backend::Wgpu => {
                let open = || -> Result<Kind, KernelError> {
                    let device = WgpuDevice::open(options.index, Profile::from_env()?, Arc::default())?;
                    let mut stream = Box::new(device.queue()?);
                    let submit_us = roof::wgpu::submit_us(&mut stream)?;
                    Ok(Kind::Wgpu { device, stream, submit_us })
                };
                // The kernels' own error names the backend already.
                open().map_err(BenchError::Device)?
            }
            #[cfg(not(feature = "wgpu"))]
            Backend::Wgpu => return Err(failed("this binary was built without the `wgpu` feature".into())),
            #[cfg(feature = "cuda")]
            Backend::Cuda => {
                let open = || -> Result<Kind, KernelError> {
                    let device = CudaDevice::open(options.index, Arc::default(), options.cache.as_deref())?;
                    let mut stream = Box::new(device.queue());
                    let submit_us = roof::cuda::submit_us(&mut stream)?;
                    Ok(Kind::Cuda { device, stream, submit_us })
                };
                open().map_err(BenchError::Device)?
            }
            #[cfg(not(feature = "cuda"))]
            Backend::Cuda => return Err(failed("this binary was built without the `cuda` feature".into())),
        };
        Ok(Target { kind, picks: options.picks.clone() })
    }

    /// A device that computes nothing and notes the kernels that it is asked for.
    #[cfg(feature = "cuda")]
    pub(super) fn noting(driver: Arc<PlanDriver>) -> Target {
        let device = CudaDevice::on(driver, Arc::default());
        let stream = Box::new(device.queue());
        Target { kind: Kind::Cuda { device, stream, submit_us: 0.0 }, picks: Picks::default() }
    }

    /// Sets the choices that come before estimates.
    pub fn prefer(&mut self, picks: Picks) {
        self.picks = picks;
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        self.device().caps()
    }

    /// The device, for whole models.
    pub fn device(&self) -> &dyn Device {
        match &self.kind {
            Kind::Cpu { device, .. } => &**device,
            #[cfg(feature = "wgpu")]
            Kind::Wgpu { device, .. } => device,
            #[cfg(feature = "cuda")]
            Kind::Cuda { device, .. } => device,
        }
    }

    /// The queue of a GPU; `None` on a CPU, whose operands are where they are.
    fn queue(&mut self) -> Option<&mut dyn Queue> {
        match &mut self.kind {
            Kind::Cpu { .. } => None,
            #[cfg(feature = "wgpu")]
            Kind::Wgpu { stream, .. } => Some(&mut **stream),
            #[cfg(feature = "cuda")]
            Kind::Cuda { stream, .. } => Some(&mut **stream),
        }
    }

    /// Whether one thread does all the work.
    pub fn one_thread(&self) -> bool {
        self.caps().backend == Backend::Cpu && self.caps().units == 1
    }

    /// Describes the machine, and the GPU if it is one.
    pub fn machine(&self) -> Machine {
        match &self.kind {
            Kind::Cpu { cx, .. } => Machine::describe(cx.isa, cx.pool.threads()),
            #[cfg(feature = "wgpu")]
            Kind::Wgpu { device, stream, submit_us } => on_gpu(device.caps(), stream.has_clock(), *submit_us),
            #[cfg(feature = "cuda")]
            Kind::Cuda { device, submit_us, .. } => on_gpu(device.caps(), true, *submit_us),
        }
    }

    /// Measures what the device can do at most.
    pub fn roofs(&mut self) -> Result<Roofs, KernelError> {
        match &mut self.kind {
            Kind::Cpu { cx, reads, .. } => {
                let mut roofs = roof::measure(cx.isa, cx.pool.threads());
                roofs.launch_us = Some(roof::section_us(&cx.pool));
                *reads = Some(Beside::new(cx.isa, &cx.pool));
                Ok(roofs)
            }
            #[cfg(feature = "wgpu")]
            Kind::Wgpu { stream, .. } => {
                let launch_us = Some(roof::wgpu::submit_us(stream)?);
                Ok(Roofs { launch_us, ..roof::wgpu::measure(stream)? })
            }
            #[cfg(feature = "cuda")]
            Kind::Cuda { stream, .. } => {
                let launch_us = Some(roof::cuda::submit_us(stream)?);
                Ok(Roofs { launch_us, ..roof::cuda::measure(stream)? })
            }
        }
    }

    /// Seconds that the device's own threads take to read `Beside::BYTES` now; `None` where the roof that was measured is as
    /// good, as on a GPU.
    pub fn read_seconds(&mut self) -> Option<f64> {
        match &mut self.kind {
            Kind::Cpu { cx, reads, .. } => Some(reads.as_mut()?.seconds(&cx.pool)),
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            _ => None,
        }
    }

    /// Bytes of weights that a timing rotates through, so that none is in a cache when its turn comes.
    pub fn cold_bytes(&self) -> u64 {
        // Four times the largest cache of a GPU that is sold.
        const GPU: u64 = 1 << 30;
        let on_gpu = self.caps().backend != Backend::Cpu && !self.caps().wgpu.software;
        if on_gpu { GPU } else { crate::stats::cold_bytes() }
    }

    /// Each variant in table order, with its reason or estimate; the one that runs is picked. None where the backend has no
    /// kernels for the op.
    pub fn rows<O: BackendOp>(&self, spec: &O::Spec) -> Vec<Row> {
        let mut rows = O::explain(spec, self.caps()).unwrap_or_default();
        self.picks.mark(O::NAME, spec, &mut rows);
        rows
    }

    /// The op with its operands on the device. On a CPU that is where they are.
    pub fn place<O: Op>(&mut self, op: &O, operands: &Operands) -> Result<Placed<O>, KernelError> {
        let mut op = op.clone();
        let mut memory: Vec<Memory> = vec![];
        if let (Some(queue), Some(weights)) = (self.queue(), op.weights()) {
            *weights = queue.place(weights)?;
        }
        let mut failed = Ok(());
        op.visit(&mut |_, view| match self.place_view(view, operands, &mut memory) {
            Ok(Some(placed)) => *view = placed,
            Ok(None) => {}
            Err(error) => failed = Err(error),
        });
        failed.map(|()| Placed { op, memory })
    }

    /// The op with its operands on the device, for launches whose results nobody reads.
    pub fn moved<O: Op>(&mut self, op: O, operands: &Operands) -> Result<O, KernelError> {
        if self.caps().backend == Backend::Cpu {
            return Ok(op);
        }
        Ok(self.place(&op, operands)?.op)
    }

    /// The view on the device, `None` where it is there already.
    fn place_view(
        &mut self,
        view: &View,
        operands: &Operands,
        memory: &mut Vec<Memory>,
    ) -> Result<Option<View>, KernelError> {
        let host = match operands.whole(view)? {
            Some(host) => host,
            None => {
                return self.queue().map(|queue| queue.place_view(view)).transpose();
            }
        };
        let known = memory.iter().position(|one| one.host.storage().same(host.storage()));
        let known = match known {
            Some(known) => known,
            None => {
                let before = operands.snapshot(&host)?;
                let device = match self.queue() {
                    None => None,
                    Some(queue) => {
                        let device = View::dense(queue.alloc(before.len())?, &[before.len()], DType::U8)?;
                        queue.write(&device, &before)?;
                        Some(device)
                    }
                };
                memory.push(Memory { host, device, before });
                memory.len() - 1
            }
        };
        match memory.get(known).and_then(|one| one.device.as_ref()) {
            Some(device) => Ok(Some(view.with_storage(device.storage().clone())?)),
            None => Ok(None),
        }
    }

    /// Puts back what the op may write as it was.
    pub fn reset<O>(&mut self, placed: &Placed<O>, operands: &Operands) -> Result<(), KernelError> {
        for one in &placed.memory {
            operands.restore(&one.host, &one.before)?;
            if let (Some(queue), Some(device)) = (self.queue(), &one.device) {
                queue.write(device, &one.before)?;
            }
        }
        Ok(())
    }

    /// Brings what the op may have written to the host's memory.
    pub fn fetch<O>(&mut self, placed: &Placed<O>, operands: &Operands) -> Result<(), KernelError> {
        for one in &placed.memory {
            if let (Some(queue), Some(device)) = (self.queue(), &one.device) {
                let mut bytes = vec![0; one.before.len()];
                queue.read(device, &mut bytes)?;
                operands.restore(&one.host, &bytes)?;
            }
        }
        Ok(())
    }

    /// Launches a row of the table on a placed op.
    pub fn launch<O: BackendOp>(&mut self, op: &O, row: usize) -> Result<(), KernelError> {
        match &mut self.kind {
            Kind::Cpu { cx, .. } => (O::cpu_variants()[row].launch)(op, cx),
            #[cfg(feature = "wgpu")]
            Kind::Wgpu { stream, .. } => stream.launch(op, at(O::wgpu_variants(), row)?),
            #[cfg(feature = "cuda")]
            Kind::Cuda { stream, .. } => stream.launch(op, at(O::cuda_variants(), row)?),
        }
    }

    /// Runs in one timing of a kernel that has run before: so many that the time is long against what its measurement takes.
    pub fn batch(&mut self, kernel: &mut Ready) -> Result<usize, KernelError> {
        let least: Option<f64> = match &self.kind {
            _ if kernel.waits => None,
            Kind::Cpu { .. } => None,
            #[cfg(feature = "wgpu")]
            Kind::Wgpu { stream, .. } => Some(if stream.has_clock() { 1e-3 } else { 20e-3 }),
            #[cfg(feature = "cuda")]
            Kind::Cuda { .. } => Some(1e-3),
        };
        let Some(least) = least else { return Ok(1) };
        let one = self.seconds(kernel, 0, 1)?;
        Ok(((least / one.max(1e-7)).ceil() as usize).clamp(1, 300))
    }

    /// Runs a kernel `count` times, from turn `first` on; gives the seconds of one run.
    pub fn seconds(&mut self, kernel: &mut Ready, first: usize, count: usize) -> Result<f64, KernelError> {
        #[cfg(feature = "wgpu")]
        if let (Kind::Wgpu { stream, .. }, false) = (&mut self.kind, kernel.waits) {
            stream.start_clock()?;
            for turn in first..first + count {
                (kernel.run)(self, turn)?;
            }
            let Kind::Wgpu { stream, submit_us, .. } = &mut self.kind else { return Ok(0.0) };
            let seconds = stream.stop_clock()?.as_secs_f64();
            // The host's clock counts the submission too.
            let own =
                if stream.has_clock() { seconds } else { (seconds - *submit_us * 1e-6).max(0.1 * seconds) };
            return Ok(own.max(1e-9) / count.max(1) as f64);
        }
        #[cfg(feature = "cuda")]
        if let (Kind::Cuda { stream, .. }, false) = (&mut self.kind, kernel.waits) {
            // One graph of all launches: the host has no part in the time.
            stream.record()?;
            let launched = (first..first + count).try_for_each(|turn| (kernel.run)(self, turn));
            let Kind::Cuda { stream, .. } = &mut self.kind else { return Ok(0.0) };
            let graph = stream.recorded();
            launched?;
            let graph = graph?;
            let us = stream.driver().replay_us(&graph, REPLAYS)?.unwrap_or(0.0);
            return Ok(us.max(1e-3) * 1e-6 / count.max(1) as f64);
        }
        let start = Instant::now();
        for turn in first..first + count {
            (kernel.run)(self, turn)?;
        }
        Ok(start.elapsed().as_secs_f64() / count.max(1) as f64)
    }
}

/// A row of a table.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn at<S, L>(rows: Rows<S, L>, row: usize) -> Result<&'static Variant<S, L>, KernelError> {
    let rows = rows.map_err(|why| KernelError::Device(why.to_owned()))?;
    rows.get(row).ok_or_else(|| KernelError::Device(format!("no row {row} in a table of {}", rows.len())))
}

/// Describes the host with the GPU that the kernels run on.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn on_gpu(caps: &Caps, clock: bool, submit_us: f64) -> Machine {
    let host = Machine::describe(Isa::detect().unwrap_or(Isa::SCALAR), roof::default_threads());
    let adapter = Adapter {
        name: caps.device.clone(),
        api: caps.api.clone(),
        driver: caps.driver.clone(),
        software: caps.wgpu.software,
        clock: if clock { "device" } else { "host" }.to_owned(),
        submit_us,
    };
    Machine { adapter: Some(adapter), ..host }
}
