//! One launch of a product: operands as bindings and parameters, and where the sums go.

use bytemuck::{Pod, Zeroable};

use super::super::{Activation, Matmul};
use crate::buffer::{View, WeightPart};
use crate::spec::{DType, Format, KernelError, ShapeError};
use crate::wgpu::{Kernel, WgpuCx};

/// Bytes of sums in working memory at once: what a device's cache may hold until they are finished.
const MOST_SUMS: usize = 16 << 20;

/// `Params` of `operands.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(super) struct Params {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub n_out: u32,
    pub slice: u32,
    pub x: u32,
    pub x_stride: u32,
    pub w: u32,
    pub w_stride: u32,
    pub scales: u32,
    pub scale_stride: u32,
    pub zeros: u32,
    pub zero_stride: u32,
    pub group: u32,
    pub factor: f32,
    pub bias: u32,
    pub residual: u32,
    pub residual_stride: u32,
    pub out: u32,
    pub out_stride: u32,
    pub notes: u32,
    pub notes_stride: u32,
}

/// `Params` of `finish.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FinishParams {
    m: u32,
    n: u32,
    n_out: u32,
    slices: u32,
    sums: u32,
    residual: u32,
    residual_stride: u32,
    out: u32,
    out_stride: u32,
}

/// The rows of one part of the weights times all rows of `op.x`.
pub(super) struct Product<'a> {
    /// The op, whose rows of x are those of this launch.
    pub op: &'a Matmul,
    /// The rows of w.
    pub part: &'a WeightPart,
    /// The row of the stacked matrix that is the part's first.
    first: usize,
    /// Working memory that the sums go to, if not to `op.out`, and the slices of k.
    sums: Option<(&'a View, usize)>,
}

/// Calls `launch` for each product of `op`, with k cut into `slices`; what is left in working memory is finished after.
///
/// Rows of x are done in blocks where operands do not fit in a binding, or sums not in working memory.
pub(super) fn products(
    op: &Matmul,
    cx: &mut WgpuCx<'_>,
    slices: usize,
    mut launch: impl FnMut(&Product<'_>, &mut WgpuCx<'_>) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    if op.out.is_empty() {
        return Ok(());
    }
    let (m, n) = (op.x.size(0), op.w.n());
    let direct = slices == 1 && (!op.gated || op.w.parts().len() == 1);
    let mut most = block_rows(op, cx.caps().wgpu.max_binding as usize);
    if !direct {
        most = most.min(MOST_SUMS / (4 * n * slices)).max(1);
    }
    for start in (0..m).step_by(most) {
        let rows = narrow(op, start, most.min(m - start))?;
        let sums = match direct {
            true => None,
            false => Some(cx.scratch(0, slices * rows.x.size(0) * n, DType::F32)?),
        };
        let mut first = 0;
        for part in op.w.parts() {
            if part.rows > 0 {
                let sums = sums.as_ref().map(|sums| (sums, slices));
                launch(&Product { op: &rows, part, first, sums }, cx)?;
            }
            first += part.rows;
        }
        if let Some(sums) = &sums {
            finish(&rows, cx, sums, slices)?;
        }
    }
    Ok(())
}

/// Rows of x, residual and out that fit in a binding of `most` bytes.
fn block_rows(op: &Matmul, most: usize) -> usize {
    // A binding begins at an aligned offset before the first row.
    let most = most.saturating_sub(1024);
    let fits = |view: &View| match view.stride(0) * view.dtype().size() {
        0 => usize::MAX,
        bytes => (most / bytes).max(1),
    };
    let residual = op.residual.as_ref().map_or(usize::MAX, fits);
    fits(&op.x).min(fits(&op.out)).min(residual)
}

/// The op with `len` rows of x from `start` on.
fn narrow(op: &Matmul, start: usize, len: usize) -> Result<Matmul, ShapeError> {
    let mut rows = op.clone();
    if len < op.x.size(0) {
        rows.x = op.x.narrow(0, start, len)?;
        rows.out = op.out.narrow(0, start, len)?;
        rows.residual = op.residual.as_ref().map(|view| view.narrow(0, start, len)).transpose()?;
    }
    Ok(rows)
}

impl Product<'_> {
    /// Whether gate and what it scales are both rows of this part.
    pub fn gated(&self) -> bool {
        self.op.gated && self.sums.is_none()
    }

    /// Columns of the result, or of the sums, that this launch gives.
    pub fn columns(&self) -> usize {
        if self.gated() { self.part.rows / 2 } else { self.part.rows }
    }

    /// Slices of k, and columns of each: whole steps of `step`.
    pub fn slices(&self, step: usize) -> (usize, usize) {
        let (k, wanted) = (self.op.w.k(), self.sums.map_or(1, |(_, slices)| slices));
        (wanted, k.div_ceil(wanted).next_multiple_of(step))
    }

    /// A launch of `path` with weights, bias, residual and result bound; x is the caller's. `bytes`: the source
    /// takes integer weights as bytes.
    pub fn kernel<'c, 'a>(
        &self,
        cx: &'c mut WgpuCx<'a>,
        path: &'static str,
        bytes: bool,
    ) -> Result<(Kernel<'c, 'a>, Params), KernelError> {
        let op = self.op;
        let mut kernel = cx.kernel(path);
        let mut params = Params {
            m: op.x.size(0) as u32,
            n: self.part.rows as u32,
            k: op.w.k() as u32,
            n_out: self.columns() as u32,
            slice: op.w.k() as u32,
            ..Params::default()
        };
        self.weights(&mut kernel, &mut params, bytes)?;
        match &self.part.bias {
            Some(bias) => {
                kernel.define("BIAS", bias.dtype());
                params.bias = kernel.read(4, bias)?;
            }
            None => {
                kernel.define("BIAS", "none");
            }
        }
        kernel.define("GATED", u8::from(self.gated())).define("PARTIAL", u8::from(self.sums.is_some()));
        match self.sums {
            None => {
                let result = result(&mut kernel, op)?;
                (params.residual, params.residual_stride) = (result.residual, result.residual_stride);
                (params.out, params.out_stride) = (result.out, result.out_stride);
                params.residual += self.first as u32;
            }
            Some((sums, _)) => {
                kernel.define("ACT", "none").define("RESIDUAL", "none").define("OUT", sums.dtype());
                params.out = kernel.bind(6, sums)?;
                params.out_stride = op.w.n() as u32;
            }
        }
        params.out += self.first as u32;
        Ok((kernel, params))
    }

    fn weights(
        &self,
        kernel: &mut Kernel<'_, '_>,
        params: &mut Params,
        bytes: bool,
    ) -> Result<(), KernelError> {
        let (format, k, planes) = (self.op.w.format(), self.op.w.k(), &self.part.planes);
        params.w = kernel.read(1, &planes[0])?;
        params.w_stride = planes[0].stride(0) as u32;
        match format {
            Format::Dense(dtype) => {
                let aligned = by_eights(params.w, params.w_stride, self.part.rows, k, dtype);
                kernel.define("W", dtype).define("WVEC", u8::from(aligned));
            }
            Format::Grouped(grouped) => {
                let bits = grouped.code.bits();
                params.scales = kernel.read(2, &planes[1])?;
                params.scale_stride = planes[1].stride(0) as u32;
                params.factor = self.part.factor;
                if let Some(zeros) = planes.get(2) {
                    params.zeros = kernel.read(3, zeros)?;
                    params.zero_stride = zeros.stride(0) as u32;
                }
                // Words of a row that are read at once.
                let words = match (bytes, bits) {
                    (true, _) => 4,
                    (false, 8) => 2,
                    (false, _) => 1,
                };
                let aligned = params.w.is_multiple_of(words) && params.w_stride.is_multiple_of(words);
                // A row that is one group counts as one without an end.
                let whole = format.groups(k) <= 1;
                let group = format.group_len(k);
                params.group = if whole { u32::MAX } else { group as u32 };
                let eight = whole || group.is_multiple_of(8);
                kernel
                    .codes(grouped)
                    .define("W", "codes")
                    .define("WVEC", u8::from(words > 1 && aligned))
                    .define("GROUPS", if eight { "eight" } else { "any" });
            }
            // Every row refuses it.
            Format::KMajor(..) => {}
        }
        Ok(())
    }

    /// Binds x as it is stored.
    pub fn x(&self, kernel: &mut Kernel<'_, '_>, params: &mut Params) -> Result<(), KernelError> {
        let x = &self.op.x;
        params.x = kernel.bind(0, x)?;
        params.x_stride = x.stride(0) as u32;
        let aligned = by_eights(params.x, params.x_stride, x.size(0), x.size(1), x.dtype());
        kernel.define("X", x.dtype()).define("XVEC", u8::from(aligned));
        Ok(())
    }
}

/// Whether rows of floats begin at multiples of 16 bytes, and are whole eights.
pub(super) fn by_eights(first: u32, stride: u32, rows: usize, k: usize, dtype: DType) -> bool {
    let step = 16 / dtype.size() as u32;
    k.is_multiple_of(8) && first.is_multiple_of(step) && (rows == 1 || stride.is_multiple_of(step))
}

/// Where the result and the residual lie.
struct Bound {
    residual: u32,
    residual_stride: u32,
    out: u32,
    out_stride: u32,
}

/// Binds residual and result for `epilogue.wgsl`.
fn result(kernel: &mut Kernel<'_, '_>, op: &Matmul) -> Result<Bound, KernelError> {
    let mut bound = Bound { residual: 0, residual_stride: 0, out: 0, out_stride: op.out.stride(0) as u32 };
    match &op.residual {
        Some(residual) if !residual.same_elements(&op.out) => {
            kernel.define("RESIDUAL", residual.dtype());
            bound.residual = kernel.bind(5, residual)?;
            bound.residual_stride = residual.stride(0) as u32;
        }
        residual => {
            kernel.define("RESIDUAL", if residual.is_some() { "inplace" } else { "none" });
        }
    }
    let act = match op.act {
        Activation::None => "none",
        Activation::GeluTanh => "gelu_tanh",
        Activation::GeluErf => "gelu_erf",
        Activation::QuickGelu => "quick_gelu",
        Activation::Relu => "relu",
        Activation::Silu => "silu",
    };
    bound.out = kernel.bind(6, &op.out)?;
    kernel.define("ACT", act).define("OUT", op.out.dtype());
    Ok(bound)
}

/// Ends products whose sums lie in working memory.
fn finish(op: &Matmul, cx: &mut WgpuCx<'_>, sums: &View, slices: usize) -> Result<(), KernelError> {
    let mut kernel = cx.kernel("ops/matmul/finish.wgsl");
    kernel.define("BIAS", "none").define("PARTIAL", 0).define("GATED", u8::from(op.gated));
    let first = kernel.bind(0, sums)?;
    let bound = result(&mut kernel, op)?;
    let (m, n_out) = (op.x.size(0), op.n_out());
    kernel.params(&FinishParams {
        m: m as u32,
        n: op.w.n() as u32,
        n_out: n_out as u32,
        slices: slices as u32,
        sums: first,
        residual: bound.residual,
        residual_stride: bound.residual_stride,
        out: bound.out,
        out_stride: bound.out_stride,
    });
    kernel.dispatch_linear((m * n_out.div_ceil(2)).div_ceil(64))
}
