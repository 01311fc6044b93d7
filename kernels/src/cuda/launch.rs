//! What an op's CUDA kernels see: addresses of operands, values for the source, parameters, a grid.

use std::fmt::Display;
use std::sync::Arc;

use bytemuck::Pod;

use super::driver::{Launch, TensorDesc, TensorMap};
use super::op::CudaOp;
use super::source::{Defines, KernelKey};
use super::stream::CudaStream;
use crate::buffer::{Storage, View};
use crate::spec::{Caps, DType, KernelError, Layout};

/// Most blocks along y and z.
const MAX_GRID_YZ: u32 = 65_535;

/// What a kernel of an op is launched with.
pub struct CudaCx<'a> {
    pub(super) stream: &'a mut CudaStream,
}

/// A view as the copy engine reads it in boxes. Axes are named innermost first.
pub struct TensorTile<'a> {
    /// The memory, from its first element on.
    pub view: &'a View,
    /// Elements along each axis.
    pub shape: &'a [u64],
    /// Bytes from one element to the next along each axis but the innermost; multiples of 16.
    pub strides_bytes: &'a [u64],
    /// Elements of a box along each axis; the innermost spans 128 bytes at most where it is swizzled.
    pub tile: &'a [u32],
    /// Whether 16-byte parts of each 128 bytes of a box are swizzled in shared memory by their row.
    pub swizzle128: bool,
}

impl<'a> CudaCx<'a> {
    /// What the device can do.
    #[must_use]
    pub fn caps(&self) -> &Caps {
        &self.stream.caps
    }

    /// A launch of the kernel in `path`, which is below `kernels/src`.
    pub fn kernel(&mut self, path: &'static str) -> Kernel<'_, 'a> {
        let key = KernelKey { path, defines: Defines::new() };
        Kernel { cx: self, key, shared: 0, cluster: 1, dependent: false, cooperative: false }
    }

    /// Working memory `[len]` of this launch, of undefined content. Slots are apart from each other; a slot is reused by
    /// the launches after this one.
    pub fn scratch(&mut self, slot: usize, len: usize, dtype: DType) -> Result<View, KernelError> {
        let storage = self.stream.scratch(slot, len * dtype.size())?;
        Ok(View::new(storage, 0, Layout::dense(&[len])?, dtype)?)
    }

    /// i32 `[len]` that are zero before the launch and must be so after it.
    pub fn counters(&mut self, len: usize) -> Result<View, KernelError> {
        let storage = self.stream.counters(len * 4)?;
        Ok(View::new(storage, 0, Layout::dense(&[len])?, DType::I32)?)
    }

    /// Runs another op as a step of this one.
    pub fn exec<O: CudaOp>(&mut self, op: &O) -> Result<(), KernelError> {
        self.stream.exec_step(op)
    }
}

/// A launch in the making.
pub struct Kernel<'c, 'a> {
    cx: &'c mut CudaCx<'a>,
    key: KernelKey,
    shared: u32,
    cluster: u32,
    dependent: bool,
    cooperative: bool,
}

impl Kernel<'_, '_> {
    /// A value for a name of the source's preprocessor.
    pub fn define(&mut self, name: &'static str, value: impl Display) -> &mut Self {
        self.key.defines.insert(name, value.to_string());
        self
    }

    /// Address of a view's first element.
    pub fn address(&self, view: &View) -> Result<u64, KernelError> {
        match view.storage() {
            Storage::Cuda(buffer) if Arc::ptr_eq(&buffer.driver, &self.cx.stream.driver) => {
                Ok(buffer.address + view.offset() as u64)
            }
            Storage::Cuda(_) => Err(KernelError::WrongStream),
            other => Err(KernelError::WrongStorage { expected: "cuda", found: other.kind() }),
        }
    }

    /// Address of a view that may be absent; 0 if it is.
    pub fn address_or_null(&self, view: Option<&View>) -> Result<u64, KernelError> {
        view.map_or(Ok(0), |view| self.address(view))
    }

    /// Whether every row of a view, a stretch along its last axis, begins at a multiple of `bytes`.
    pub fn aligned(&self, view: &View, bytes: usize) -> Result<bool, KernelError> {
        let last = view.shape().len().saturating_sub(1);
        let even = |axis| (view.stride(axis) * view.dtype().size()).is_multiple_of(bytes);
        let rows = (0..last).all(|axis| view.size(axis) <= 1 || even(axis));
        Ok(rows && self.address(view)?.is_multiple_of(bytes as u64))
    }

    /// Whether every row of every view begins at a multiple of 16 bytes.
    pub fn all_aligned<'v>(&self, views: impl IntoIterator<Item = &'v View>) -> Result<bool, KernelError> {
        views.into_iter().try_fold(true, |all, view| Ok(all && self.aligned(view, 16)?))
    }

    /// A tensor map for the copy engine, a member of the kernel's parameters.
    pub fn tensor_map(&self, tile: &TensorTile<'_>) -> Result<TensorMap, KernelError> {
        self.cx.stream.driver.tensor_map(&TensorDesc {
            address: self.address(tile.view)?,
            dtype: tile.view.dtype(),
            shape: tile.shape.into(),
            strides: tile.strides_bytes.into(),
            tile: tile.tile.into(),
            swizzle128: tile.swizzle128,
        })
    }

    /// Bytes of shared memory of a block.
    pub fn shared(&mut self, bytes: usize) -> &mut Self {
        self.shared = u32::try_from(bytes).unwrap_or(u32::MAX);
        self
    }

    /// Blocks of a cluster, along x.
    pub fn cluster(&mut self, blocks: u32) -> &mut Self {
        self.cluster = blocks;
        self
    }

    /// Lets the kernel start before the launch before it has ended: it calls `grid_wait` before it reads what launches write,
    /// and before it writes what they read.
    pub fn dependent(&mut self) -> &mut Self {
        self.dependent = true;
        self
    }

    /// All blocks must run at once.
    pub fn cooperative(&mut self) -> &mut Self {
        self.cooperative = true;
        self
    }

    /// Runs a grid of blocks of `threads` threads. Nothing happens where an axis is 0.
    pub fn launch<P: Pod>(self, grid: [u32; 3], threads: u32, params: &P) -> Result<(), KernelError> {
        if grid.contains(&0) {
            return Ok(());
        }
        let fail = |what: String| Err(KernelError::Device(format!("{}: {what}", self.key.path)));
        if grid[0] > i32::MAX as u32 || grid[1] > MAX_GRID_YZ || grid[2] > MAX_GRID_YZ {
            return fail(format!("a grid of {grid:?} blocks is too large"));
        }
        let most = self.cx.caps().cuda.shared_memory;
        if self.shared > most {
            return fail(format!(
                "a block needs {} bytes of shared memory, the device has {most}",
                self.shared
            ));
        }
        let launch = Launch {
            grid,
            threads,
            shared: self.shared,
            cluster: self.cluster,
            dependent: self.dependent && self.cx.caps().cuda.arch.number() >= 900,
            cooperative: self.cooperative,
            params: bytemuck::bytes_of(params),
        };
        self.cx.stream.launch_kernel(&self.key, &launch)
    }
}

/// `ValueType` of `values.cuh`: the type of a view's floats, or codes of them; 0 for none.
#[must_use]
pub fn value_type(view: Option<&View>) -> u32 {
    match view.map(View::dtype) {
        None => 0,
        Some(DType::F32) => 1,
        Some(DType::BF16) => 2,
        Some(DType::E4M3) => 4,
        Some(DType::E8M0) => 5,
        Some(DType::I8) => 6,
        Some(_) => 3,
    }
}
