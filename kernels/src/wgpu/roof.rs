//! Loops whose rate is a limit of the device: what other kernels are held against.

use bytemuck::{Pod, Zeroable};

use super::launch::WgpuCx;
use super::stream::WgpuStream;
use crate::buffer::View;
use crate::spec::{Caps, KernelError};

/// Invocations of a workgroup of the arithmetic loops.
const WORKGROUP: usize = 256;
/// Invocations of a workgroup of the reading loop.
const READERS: usize = 64;
/// Groups of four words that a workgroup of the reading loop sums.
const RUN: usize = 64 * READERS;

/// Arithmetic whose rate is a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Multiply-adds of f32.
    FmaF32,
    /// Multiply-adds of f16.
    FmaF16,
    /// Dot products of four packed bytes.
    Int8,
    /// Products of f16 matrices with f32 sums by a whole subgroup.
    MatrixF16,
}

impl Arithmetic {
    /// Whether a device has it.
    #[must_use]
    pub fn is_of(self, caps: &Caps) -> bool {
        match self {
            Self::FmaF32 | Self::Int8 => true,
            Self::FmaF16 => caps.wgpu.f16,
            Self::MatrixF16 => caps.wgpu.matrix > 0,
        }
    }

    /// Operations of one turn of a workgroup; a multiply-add is two. Where subgroups may be of several widths, those of the
    /// largest count: there are as many at least.
    #[must_use]
    pub fn operations(self, caps: &Caps) -> f64 {
        let side = f64::from(caps.wgpu.matrix);
        let subgroups = WORKGROUP / (caps.wgpu.subgroup.1.max(1) as usize).min(WORKGROUP);
        2.0 * match self {
            Self::FmaF32 | Self::FmaF16 => (WORKGROUP * 8 * 16) as f64,
            Self::Int8 => (WORKGROUP * 4 * 8 * 4) as f64,
            Self::MatrixF16 => subgroups as f64 * 4.0 * side * side * side,
        }
    }

    /// Words that one workgroup writes.
    #[must_use]
    pub fn words(self, caps: &Caps) -> usize {
        match self {
            Self::MatrixF16 => 4 * (caps.wgpu.matrix * caps.wgpu.matrix) as usize,
            _ => WORKGROUP,
        }
    }
}

/// `Params` of `fma.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FmaParams {
    turns: u32,
    out: u32,
    factor: f32,
    summand: f32,
}

/// `Params` of `read.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ReadParams {
    count: u32,
    run: u32,
    data: u32,
    out: u32,
}

impl WgpuStream {
    /// Reads all of `data`, whose length is a multiple of 16 bytes and which one binding can hold, and writes sums to `out`,
    /// an i32 view of [`read_sums`](Self::read_sums) elements.
    pub fn read_all(&mut self, data: &View, out: &View) -> Result<(), KernelError> {
        let count = data.bytes() as usize / 16;
        let mut cx = WgpuCx { stream: self };
        let mut kernel = cx.kernel("wgpu/roof/read.wgsl");
        let first = kernel.read(0, data)? as usize * data.dtype().size() / 16;
        let sums = kernel.bind(1, out)?;
        kernel.params(&ReadParams { count: count as u32, run: RUN as u32, data: first as u32, out: sums });
        kernel.dispatch_linear(count.div_ceil(RUN))
    }

    /// How many sums [`read_all`](Self::read_all) writes for so many bytes.
    #[must_use]
    pub fn read_sums(bytes: usize) -> usize {
        (bytes / 16).div_ceil(RUN) * READERS
    }

    /// Runs `turns` turns of a loop of arithmetic in each of `groups` workgroups. `data` holds two f16 matrices where there
    /// are matrices; `out` is an i32 view of [`Arithmetic::words`] for each workgroup.
    pub fn spin(
        &mut self,
        arithmetic: Arithmetic,
        groups: usize,
        turns: u32,
        data: &View,
        out: &View,
    ) -> Result<(), KernelError> {
        let side = self.gpu.caps.wgpu.matrix;
        let mut cx = WgpuCx { stream: self };
        let mut kernel;
        match arithmetic {
            Arithmetic::FmaF32 | Arithmetic::FmaF16 => {
                kernel = cx.kernel("wgpu/roof/fma.wgsl");
                kernel.define("TYPE", if arithmetic == Arithmetic::FmaF16 { "f16" } else { "f32" });
                let out = kernel.bind(0, out)?;
                kernel.params(&FmaParams { turns, out, factor: 0.999, summand: 0.01 });
            }
            Arithmetic::Int8 => {
                kernel = cx.kernel("wgpu/roof/dot.wgsl");
                let out = kernel.bind(0, out)?;
                kernel.params(&[turns, out, 0x7f81_3d05]);
            }
            Arithmetic::MatrixF16 => {
                kernel = cx.kernel("wgpu/roof/matrix.wgsl");
                kernel.define("SIDE", side);
                let data = kernel.read(0, data)?;
                let out = kernel.bind(1, out)?;
                kernel.params(&[turns, data, out]);
            }
        }
        kernel.dispatch_linear(groups)
    }
}

#[cfg(test)]
mod tests {
    use crate::wgpu::source::{Defines, expand};
    use naga::front::wgsl;
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    /// Validates a kernel of this folder, also on machines without a device that could run it.
    fn valid(path: &str, defines: &[(&'static str, &str)]) {
        let mut all: Defines = defines.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        all.insert("PARAMS", "@group(1) @binding(0) var<uniform>".to_owned());
        let text = expand(path, &all).unwrap_or_else(|error| panic!("{error}"));
        let module = wgsl::parse_str(&text).unwrap_or_else(|error| panic!("{}", error.emit_to_string(&text)));
        Validator::new(ValidationFlags::all(), Capabilities::all())
            .validate(&module)
            .unwrap_or_else(|error| panic!("{}", error.emit_to_string(&text)));
    }

    #[test]
    fn every_loop_is_valid() {
        valid("wgpu/roof/read.wgsl", &[]);
        valid("wgpu/roof/dot.wgsl", &[]);
        for arithmetic in ["f32", "f16"] {
            valid("wgpu/roof/fma.wgsl", &[("TYPE", arithmetic)]);
        }
        for side in ["8", "16"] {
            valid("wgpu/roof/matrix.wgsl", &[("SIDE", side)]);
        }
    }
}
