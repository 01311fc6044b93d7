//! Tensors and the arena that activations live in.

use ocelli_kernels::{DType, KernelError, Queue, Storage, View};

use crate::error::{Error, Result};

/// Alignment of activations, in bytes: what every backend's widest access wants.
const ALIGN: usize = 256;
/// Bytes of the arena's first block; later ones double.
const FIRST_BLOCK: usize = 1 << 20;

/// A view with a lifetime that is checked: using an activation after its scope has ended is an error.
#[derive(Clone, Debug)]
pub struct Tensor {
    view: View,
    /// Place on the arena's stack and identity of the allocation; `None` for memory of its own.
    slot: Option<(usize, u64)>,
}

impl Tensor {
    /// A tensor on memory that lives as long as the tensor does.
    #[must_use]
    pub fn owned(view: View) -> Self {
        Self { view, slot: None }
    }

    /// Sizes of the axes.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.view.shape()
    }

    /// Size of an axis.
    #[must_use]
    pub fn size(&self, axis: usize) -> usize {
        self.view.size(axis)
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.view.dtype()
    }

    /// The view, for shapes and metadata; ops take it through [`Ctx`](crate::Ctx), which checks that it still lives.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The sub-range `start..start + len` of an axis.
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        Ok(Self { view: self.view.narrow(axis, start, len)?, slot: self.slot })
    }

    /// The same elements in another shape.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        Ok(Self { view: self.view.reshape(shape)?, slot: self.slot })
    }
}

/// A stack of activations on few large blocks. The same sequence of allocations gets the same addresses each time, and
/// no memory from the device once the blocks are large enough.
#[derive(Default)]
pub(crate) struct Arena {
    blocks: Vec<Storage>,
    /// Where the next allocation goes: block and byte.
    top: (usize, usize),
    /// Identity of each living allocation.
    live: Vec<u64>,
    next: u64,
    peak: usize,
}

/// A height of the stack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    top: (usize, usize),
    live: usize,
}

impl Arena {
    /// Where the next allocation goes: block and byte.
    pub fn top(&self) -> (usize, usize) {
        self.top
    }

    pub fn mark(&self) -> Mark {
        Mark { top: self.top, live: self.live.len() }
    }

    /// Ends every allocation above the mark.
    pub fn release(&mut self, mark: Mark) {
        self.top = mark.top;
        self.live.truncate(mark.live);
    }

    /// Makes the stack at least as high as a mark.
    pub fn raise(&mut self, mark: Mark) {
        self.top = self.top.max(mark.top);
    }

    /// The memory between two heights, as bytes.
    pub fn between(&self, from: Mark, to: Mark) -> Vec<View> {
        let blocks = self.blocks.iter().enumerate().take(to.top.0 + 1).skip(from.top.0);
        let range = |(number, block): (usize, &Storage)| {
            let start = if number == from.top.0 { from.top.1 } else { 0 };
            let end = if number == to.top.0 { to.top.1 } else { block.len() };
            let layout =
                ocelli_kernels::Layout::dense(&[end.checked_sub(start).filter(|&len| len > 0)?]).ok()?;
            View::new(block.clone(), start, layout, DType::U8).ok()
        };
        blocks.filter_map(range).collect()
    }

    pub fn alloc(
        &mut self,
        queue: &mut (impl Queue + ?Sized),
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor> {
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let bytes = elements.and_then(|elements| elements.checked_mul(dtype.size())).ok_or_else(|| {
            Error::Device(KernelError::OutOfMemory { bytes: usize::MAX, device: queue.caps().device.clone() })
        })?;
        let bytes = bytes.next_multiple_of(ALIGN);
        loop {
            match self.blocks.get(self.top.0) {
                Some(block) if self.top.1 + bytes <= block.len() => break,
                Some(_) => self.top = (self.top.0 + 1, 0),
                None => {
                    let size = self
                        .blocks
                        .last()
                        .map_or(FIRST_BLOCK, |last| 2 * last.len())
                        .min(64 << 20)
                        .max(bytes);
                    self.blocks.push(queue.alloc(size)?);
                }
            }
        }
        let layout = ocelli_kernels::Layout::dense(shape)?;
        let view = View::new(self.blocks[self.top.0].clone(), self.top.1, layout, dtype)?;
        self.top.1 += bytes;
        let used: usize = self.blocks[..self.top.0].iter().map(Storage::len).sum::<usize>() + self.top.1;
        self.peak = self.peak.max(used);
        let id = self.next;
        self.next += 1;
        self.live.push(id);
        Ok(Tensor { view, slot: Some((self.live.len() - 1, id)) })
    }

    /// Whether the tensor's memory is still its own.
    pub fn holds(&self, tensor: &Tensor) -> bool {
        tensor.slot.is_none_or(|(place, id)| self.live.get(place) == Some(&id))
    }

    /// Most bytes in use at once so far.
    pub fn peak(&self) -> usize {
        self.peak
    }
}
