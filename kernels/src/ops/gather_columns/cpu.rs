//! CPU kernels.

use bytemuck::Pod;

use super::GatherColumns;
use crate::cpu::CpuCx;
use crate::cpu::{CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::index::Indices;
use crate::select::Variant;
use crate::spec::{DType, Element, KernelError};

impl CpuOp for GatherColumns {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "copy", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

fn launch(op: &GatherColumns, cx: &CpuCx) -> Result<(), KernelError> {
    match op.x.dtype() {
        DType::BF16 => copy::<half::bf16>(op, cx),
        DType::F16 => copy::<half::f16>(op, cx),
        _ => copy::<f32>(op, cx),
    }
}

/// Addresses of both operands, for all threads.
#[derive(Clone, Copy)]
struct Ends<T>(*const T, *mut T);

// SAFETY: threads write disjoint rows, and nobody writes what is read.
unsafe impl<T> Send for Ends<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Ends<T> {}

impl<T: Pod> Ends<T> {
    /// # Safety
    /// The columns exist in a row that begins at `from`, and as many may be written at `to`; no other thread does.
    unsafe fn row(self, from: usize, to: usize, columns: &Indices<'_>) {
        for (j, column) in columns.iter().enumerate() {
            // SAFETY: as the caller vouches.
            unsafe { self.1.add(to + j).write(*self.0.add(from + column as usize)) }
        }
    }
}

fn copy<T: Element + Pod>(op: &GatherColumns, cx: &CpuCx) -> Result<(), KernelError> {
    let (rows, n, limit) = (op.x.size(0), op.columns.size(0), op.x.size(1));
    let columns = Indices::new(cx, &op.columns)?;
    for index in columns.iter() {
        if usize::try_from(index).map_or(true, |column| column >= limit) {
            let index = index.into();
            return Err(KernelError::Index { op: GatherColumns::NAME, what: "column", index, limit });
        }
    }
    let ends = Ends(cx.input::<T>(&op.x)?, cx.output::<T>(&op.out)?);
    let strides = [op.x.stride(0), op.out.stride(0)];
    let each = if rows * n < 16384 { rows } else { 1 };
    cx.pool.run_ranges(rows, each, |range, _| {
        for row in range {
            // SAFETY: rows and columns were checked; a thread has rows of its own.
            unsafe { ends.row(row * strides[0], row * strides[1], &columns) }
        }
    });
    Ok(())
}
