//! Weight matrices as kernels see them that take one weight at a time: `cuda/include/weight.cuh`.

use bytemuck::{Pod, Zeroable};

use super::launch::{Kernel, value_type};
use crate::buffer::WeightPart;
use crate::spec::{Code, Format, KernelError};

/// `Weight` of `weight.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct WeightParams {
    data: u64,
    scales: u64,
    zeros: u64,
    stride: i64,
    scale_stride: i64,
    zero_stride: i64,
    group: i32,
    kind: u32,
}

impl Kernel<'_, '_> {
    /// Sets `BITS` and `FP8`, which tell codes of different formats apart: 0 bits are floats as they are stored.
    pub fn codes(&mut self, format: Format) -> &mut Self {
        let code = format.grouped().map(|grouped| grouped.code);
        self.define("BITS", code.map_or(0, Code::bits)).define("FP8", code == Some(Code::Fp8))
    }

    /// One part of a weight matrix with rows of `k`; sets what [`codes`](Self::codes) does.
    pub fn weight(
        &mut self,
        format: Format,
        k: usize,
        part: &WeightPart,
    ) -> Result<WeightParams, KernelError> {
        let floats = if format.dense().is_some() { 0 } else { 1 };
        self.codes(format);
        let plane = |index: usize| part.planes.get(index);
        let stride = |index: usize| plane(index).map_or(0, |plane| plane.stride(0) as i64);
        Ok(WeightParams {
            data: self.address_or_null(plane(0))?,
            scales: self.address_or_null(plane(1))?,
            zeros: self.address_or_null(plane(2))?,
            stride: stride(0),
            scale_stride: stride(1),
            zero_stride: stride(2),
            group: format.group_len(k).max(1) as i32,
            kind: value_type(plane(floats)),
        })
    }
}
