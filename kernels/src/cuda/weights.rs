//! Weight matrices as kernels see them that take one weight at a time: `cuda/include/weight.cuh`.

use bytemuck::{Pod, Zeroable};

use super::launch::{Kernel, value_type};
use crate::buffer::WeightPart;
use crate::spec::{Format, KernelError};

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
    factor: f32,
    zero: u32,
}

impl Kernel<'_, '_> {
    /// Sets `CODE`, see `quant/codes.cuh`.
    pub fn codes(&mut self, format: Format) -> &mut Self {
        let folder = format.grouped().map_or("none", |grouped| grouped.code.folder());
        self.define("CODE", format_args!("code_{folder}"))
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
            factor: part.factor,
            zero: zero_kind(format),
        })
    }
}

/// The `ZeroKind` of `element.cuh`.
pub fn zero_kind(format: Format) -> u32 {
    format.grouped().map_or(0, |grouped| grouped.zero as u32)
}
