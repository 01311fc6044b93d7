//! What the backend asks of a device.

use std::time::Duration;

use bytemuck::{Pod, Zeroable};
use smallvec::SmallVec;

use super::ahead::Ahead;
use super::source::KernelKey;
use crate::op::{Fetch, Recorded};
use crate::spec::{Caps, DType, KernelError};

/// A loaded kernel, by its number in the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelId(pub usize);

/// One launch of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared: u32,
    /// Blocks of a cluster, along x.
    pub cluster: u32,
    /// Whether the kernel may start before the launch before it has ended; it waits by itself (`grid_wait`).
    pub dependent: bool,
    /// All blocks must run at once: they wait for each other.
    pub cooperative: bool,
    /// The kernel's one parameter, a struct.
    pub params: &'a [u8],
}

/// A tensor in memory as the copy engine reads it in boxes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorDesc {
    /// Address of its first element, a multiple of 16.
    pub address: u64,
    /// Type of the elements.
    pub dtype: DType,
    /// Elements along each axis, innermost first.
    pub shape: SmallVec<[u64; 5]>,
    /// Bytes from one element to the next along each axis but the innermost; multiples of 16.
    pub strides: SmallVec<[u64; 4]>,
    /// Elements of a box along each axis.
    pub tile: SmallVec<[u32; 5]>,
    /// Whether 16-byte parts of each 128 bytes of a box are swizzled in shared memory by their row.
    pub swizzle128: bool,
}

/// A tensor map as a kernel's parameter holds it: `TensorMap` of `hopper.cuh`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct TensorMap(pub [u64; 16]);

/// A device with one queue of work: launches and copies happen in the order given.
pub trait Driver: Send + Sync {
    /// What the device can do.
    fn caps(&self) -> &Caps;

    /// Zeroed memory, aligned to 256 bytes.
    fn alloc(&self, bytes: usize) -> Result<u64, KernelError>;

    /// Memory of any content, which is written whole before it is read, aligned to 256 bytes.
    fn alloc_unset(&self, bytes: usize) -> Result<u64, KernelError> {
        self.alloc(bytes)
    }

    /// Gives memory back once the work so far is done.
    fn free(&self, address: u64);

    /// Copies host bytes to the device after the work so far. The bytes may change once this returns.
    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), KernelError>;

    /// Waits for the work so far and copies to the host.
    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), KernelError>;

    /// Starts a copy to the host behind the work so far.
    fn fetch(&self, from: u64, bytes: usize) -> Result<Box<dyn Fetch>, KernelError>;

    /// The kernel of a key, compiled and loaded if it is not yet.
    fn kernel(&self, key: &KernelKey) -> Result<KernelId, KernelError>;

    /// What compiles kernels before they are asked for; `None` where that is nothing to wait for.
    fn ahead(&self) -> Option<&Ahead> {
        None
    }

    /// Whether memory holds what is written to it: a device that computes nothing needs no weights.
    fn stores(&self) -> bool {
        true
    }

    /// Starts a kernel.
    fn launch(&self, kernel: KernelId, launch: &Launch<'_>) -> Result<(), KernelError>;

    /// A tensor map, for kernels that use the copy engine.
    fn tensor_map(&self, tensor: &TensorDesc) -> Result<TensorMap, KernelError>;

    /// Waits until all work is done.
    fn sync(&self) -> Result<(), KernelError>;

    /// Whether the device works beside the host.
    fn overlaps(&self) -> bool;

    /// Whether launches can be noted and replayed.
    fn records(&self) -> bool {
        false
    }

    /// Notes launches from here on instead of running them.
    fn record(&self) -> Result<(), KernelError> {
        Err(KernelError::Device("this device records no launches".into()))
    }

    /// Ends [`record`](Self::record): what was noted.
    fn recorded(&self) -> Result<Recorded, KernelError> {
        Err(KernelError::Device("this device records no launches".into()))
    }

    /// Runs recorded launches.
    fn replay(&self, graph: &Recorded) -> Result<(), KernelError> {
        let _ = graph;
        Err(KernelError::Device("this device records no launches".into()))
    }

    /// Microseconds that recorded launches take on the device, in the mean of so many replays one behind the other; `None` where it has no
    /// clock.
    fn replay_us(&self, graph: &Recorded, times: usize) -> Result<Option<f64>, KernelError> {
        let begin = self.clock()?;
        for _ in 0..times {
            self.replay(graph)?;
        }
        let end = self.clock()?;
        Ok(begin.zip(end).map(|(begin, end)| (end - begin) / times.max(1) as f64))
    }

    /// Time that compiling and loading kernels took.
    fn compile_time(&self) -> Duration {
        Duration::ZERO
    }

    /// Kernels compiled or loaded so far.
    fn kernels(&self) -> usize {
        0
    }

    /// The device's own clock in microseconds since some moment, read in the order of its work; `None` where it has none.
    fn clock(&self) -> Result<Option<f64>, KernelError> {
        Ok(None)
    }
}
