//! Weight matrices as kernels see them that take one weight at a time: `wgpu/include/weight.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::launch::Kernel;
use crate::buffer::{View, WeightPart};
use crate::spec::{Format, Grouped, KernelError};

/// Parameters that `weight.wgsl` reads, in this order somewhere in the kernel's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct WeightParams {
    /// First element of the weights, or of their packed words.
    pub w: u32,
    /// Elements from row to row.
    pub w_stride: u32,
    /// First scale.
    pub scales: u32,
    /// Scales from row to row.
    pub scale_stride: u32,
    /// First word or value of the zero points.
    pub zeros: u32,
    /// Words or values from row to row of them.
    pub zero_stride: u32,
    /// Weights along a row that share a scale.
    pub group: u32,
    /// What scales are multiplied with.
    pub factor: f32,
}

impl Kernel<'_, '_> {
    /// Gives the values by which `quant/grouped/group.wgsl` is chosen.
    pub fn codes(&mut self, Grouped { code, zero, scale, .. }: Grouped) -> &mut Self {
        self.define("CODE", code.folder())
            .define("BITS", code.bits())
            .define("CENTRE", code.centre().unwrap_or_default())
            .define("ZERO", zero.name())
            .define("SCALE", scale)
    }

    /// Binds one part of a weight matrix with rows of `k` at 0, 1 and 2, as many as the format has planes. `shared`: the
    /// matrix is dense and in one buffer with activations of this launch.
    pub fn weight(
        &mut self,
        format: Format,
        k: usize,
        part: &WeightPart,
        shared: bool,
    ) -> Result<WeightParams, KernelError> {
        let group = format.group_len(k).max(1) as u32;
        let mut params = WeightParams { group, factor: part.factor, ..Default::default() };
        let stride = |view: &View| view.stride(0) as u32;
        let first = &part.planes[0];
        params.w_stride = stride(first);
        match format {
            Format::Dense(dtype) => {
                self.define("W", dtype).define("W_ACCESS", if shared { "read_write" } else { "read" });
                params.w = if shared { self.bind(0, first)? } else { self.read(0, first)? };
            }
            Format::Grouped(grouped) => {
                self.codes(grouped);
                params.w = self.read(0, first)?;
                (params.scales, params.scale_stride) =
                    (self.read(1, &part.planes[1])?, stride(&part.planes[1]));
                if let Some(zeros) = part.planes.get(2) {
                    (params.zeros, params.zero_stride) = (self.read(2, zeros)?, stride(zeros));
                }
            }
            // Every row refuses it.
            Format::KMajor(..) => {}
        }
        Ok(params)
    }
}
