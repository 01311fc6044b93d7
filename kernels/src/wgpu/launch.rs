//! What an op's WGSL kernels see: operands as bindings, values for the source, parameters, a grid.

use std::fmt::Display;

use bytemuck::Pod;
use smallvec::SmallVec;

use super::buffer::WgpuBuf;
use super::gpu::{Accesses, PARAM_BYTES, PipelineKey};
use super::op::WgpuOp;
use super::source::Defines;
use super::stream::WgpuStream;
use crate::buffer::{Storage, View};
use crate::spec::{Caps, DType, KernelError, Layout};

/// Largest size of a grid along one axis.
const MAX_GRID: u32 = 65_535;

/// What a kernel of an op is launched with.
pub struct WgpuCx<'a> {
    pub(super) stream: &'a mut WgpuStream,
}

/// A part of a buffer as a kernel sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Window {
    pub buffer: u64,
    pub offset: u64,
    pub size: u64,
}

/// One binding of a launch.
pub(super) struct Bound {
    pub index: u32,
    pub window: Window,
    pub buffer: std::sync::Arc<WgpuBuf>,
}

impl<'a> WgpuCx<'a> {
    /// What the device can do.
    #[must_use]
    pub fn caps(&self) -> &Caps {
        &self.stream.gpu.caps
    }

    /// A launch of the kernel in `path`, which is below `kernels/src`.
    pub fn kernel(&mut self, path: &'static str) -> Kernel<'_, 'a> {
        let key = PipelineKey { path, defines: Defines::new(), accesses: Accesses::new() };
        Kernel { cx: self, key, bound: SmallVec::new(), params: [0; PARAM_BYTES], len: 0 }
    }

    /// Working memory `[len]` of this launch, of undefined content. Slots are apart from each other; a slot is reused by
    /// the launches after this one.
    pub fn scratch(&mut self, slot: usize, len: usize, dtype: DType) -> Result<View, KernelError> {
        let storage = self.stream.scratch(slot, len * dtype.size())?;
        Ok(View::new(storage, 0, Layout::dense(&[len])?, dtype)?)
    }

    /// Runs another op as a step of this one.
    pub fn exec<O: WgpuOp>(&mut self, op: &O) -> Result<(), KernelError> {
        self.stream.exec_step(op)
    }
}

/// A launch in the making.
pub struct Kernel<'c, 'a> {
    cx: &'c mut WgpuCx<'a>,
    key: PipelineKey,
    bound: SmallVec<[Bound; 12]>,
    params: [u8; PARAM_BYTES],
    /// Bytes of the parameters, of which `params` has the first.
    len: usize,
}

impl Kernel<'_, '_> {
    /// A value for `${name}` in the source.
    pub fn define(&mut self, name: &'static str, value: impl Display) -> &mut Self {
        self.key.defines.insert(name, value.to_string());
        self
    }

    /// Binds an operand that the source declares `read_write`: an activation, read or written. Gives the number of its
    /// first element within the binding.
    pub fn bind(&mut self, index: u32, view: &View) -> Result<u32, KernelError> {
        self.bind_as(index, view, false)
    }

    /// Binds an operand that the source declares `read`: weights, which no launch writes. Gives the number of its first
    /// element within the binding.
    pub fn read(&mut self, index: u32, view: &View) -> Result<u32, KernelError> {
        self.bind_as(index, view, true)
    }

    fn bind_as(&mut self, index: u32, view: &View, read_only: bool) -> Result<u32, KernelError> {
        let gpu = &self.cx.stream.gpu;
        let buffer = match view.storage() {
            Storage::Wgpu(buffer) if std::sync::Arc::ptr_eq(&buffer.gpu, gpu) => buffer.clone(),
            Storage::Wgpu(_) => return Err(KernelError::WrongStream),
            other => return Err(KernelError::WrongStorage { expected: "wgpu", found: other.kind() }),
        };
        let (most, size) = (gpu.caps.wgpu.max_binding & !3, buffer.buffer.size());
        let range = view.byte_range();
        // Whole buffers where that is allowed: launches then share their bind groups.
        let (offset, size) = if size <= most {
            (0, size)
        } else {
            let offset = range.start as u64 / gpu.align * gpu.align;
            let end = (range.end as u64).max(offset + 4).next_multiple_of(16).min(size);
            if end - offset > most {
                return Err(KernelError::Device(format!(
                    "{}: binding {index}: {} bytes are needed at once, the device allows {most}",
                    self.key.path,
                    end - offset
                )));
            }
            (offset, end - offset)
        };
        let first = (range.start as u64 - offset) / view.dtype().size() as u64;
        self.key.accesses.push((index, read_only));
        self.bound.push(Bound { index, window: Window { buffer: buffer.id, offset, size }, buffer });
        u32::try_from(first).map_err(|_| {
            KernelError::Device(format!(
                "{}: binding {index}: element {first} cannot be addressed",
                self.key.path
            ))
        })
    }

    /// The value of the source's `p`: a struct of 4-byte fields, of at most [`PARAM_BYTES`]; larger ones are an error of the
    /// dispatch.
    pub fn params<P: Pod>(&mut self, params: &P) -> &mut Self {
        let bytes = bytemuck::bytes_of(params);
        self.len = bytes.len();
        let fit = self.len.min(PARAM_BYTES);
        self.params[..fit].copy_from_slice(&bytes[..fit]);
        self
    }

    /// Runs a grid of workgroups. Nothing happens where an axis is 0.
    pub fn dispatch(self, grid: [u32; 3]) -> Result<(), KernelError> {
        if grid.contains(&0) {
            return Ok(());
        }
        if grid.iter().any(|&axis| axis > MAX_GRID) {
            return Err(KernelError::Device(format!(
                "{}: a grid of {grid:?} workgroups is too large",
                self.key.path
            )));
        }
        let Some(params) = self.params.get(..self.len) else {
            return Err(KernelError::Device(format!(
                "{}: parameters: expected at most {PARAM_BYTES} bytes, found {}",
                self.key.path, self.len
            )));
        };
        self.cx.stream.dispatch(self.key, &self.bound, params, grid)
    }

    /// Runs `count` workgroups, numbered by `linear_workgroup` of `wgpu/include/grid.wgsl`; there may be a few more.
    pub fn dispatch_linear(self, count: usize) -> Result<(), KernelError> {
        let count = u32::try_from(count).map_err(|_| {
            KernelError::Device(format!("{}: {count} workgroups are too many", self.key.path))
        })?;
        let rows = count.div_ceil(MAX_GRID).max(1);
        self.dispatch([count.div_ceil(rows), if count == 0 { 0 } else { rows }, 1])
    }
}
