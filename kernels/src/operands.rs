//! Memory for ops that are made from their specs.

use crate::buffer::{View, Weights};
use crate::spec::{DType, Format, KernelError};

/// Gives operands to [`Op::of_spec`](crate::Op::of_spec). What the values are is its own affair; views are dense.
pub trait Operands {
    /// A float matrix or table that is read only.
    fn table(&mut self, shape: &[usize], dtype: DType) -> Result<View, KernelError>;

    /// A weight matrix `[n, k]`, stacked from `parts` matrices of nearly equal height.
    fn weights(
        &mut self,
        format: Format,
        n: usize,
        k: usize,
        parts: usize,
        bias: bool,
    ) -> Result<Weights, KernelError>;

    /// Activations that are read: floats or u8.
    fn activations(&mut self, shape: &[usize], dtype: DType) -> Result<View, KernelError>;

    /// i32 values given one by one.
    fn ints(&mut self, shape: &[usize], value: &dyn Fn(usize) -> i32) -> Result<View, KernelError>;

    /// f32 values given one by one.
    fn floats(&mut self, shape: &[usize], value: &dyn Fn(usize) -> f32) -> Result<View, KernelError>;

    /// Memory that is written.
    fn output(&mut self, shape: &[usize], dtype: DType) -> Result<View, KernelError>;
}
