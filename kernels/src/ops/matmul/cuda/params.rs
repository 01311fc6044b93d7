//! What launches of products share: columns of the result that one launch gives, their weights and their epilogue, as
//! `weights.cuh` and `epilogue.cuh` take them.

use bytemuck::{Pod, Zeroable};

use super::super::{Activation, Matmul, MatmulSpec};
use crate::buffer::{View, WeightPart};
use crate::cuda::CudaLaunch;
use crate::cuda::{Kernel, value_type, zero_kind};
use crate::select::Variant;
use crate::spec::{Format, KernelError};

/// A row of the table.
pub(super) type Row = Variant<MatmulSpec, CudaLaunch<Matmul>>;

/// `WeightRows` of `weights.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(super) struct WeightRows {
    pub data: u64,
    pub scales: u64,
    pub zeros: u64,
    pub stride: i64,
    pub scale_stride: i64,
    pub zero_stride: i64,
    pub first: i32,
    pub group: i32,
    pub kind: u32,
    pub aligned: u32,
    pub factor: f32,
    pub zero: u32,
}

/// `Epilogue` of `epilogue.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(super) struct Epilogue {
    pub bias: u64,
    pub bias_up: u64,
    pub residual: u64,
    pub out: u64,
    pub residual_stride: i64,
    pub out_stride: i64,
    pub rows: i32,
    pub cols: i32,
    pub bias_type: u32,
    pub bias_up_type: u32,
    pub residual_type: u32,
    pub out_type: u32,
    pub act: u32,
    pub aligned: u32,
}

/// Rows of one stored tensor.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// The tensor.
    pub part: &'a WeightPart,
    /// The first of its rows.
    pub first: usize,
}

/// Neighbouring columns of the result whose weights lie together: what one launch gives.
pub(super) struct Segment<'a> {
    /// The op.
    pub op: &'a Matmul,
    /// The first column of the result.
    pub col: usize,
    /// Columns.
    pub cols: usize,
    /// Rows of weights that are multiplied; the gate of a gated product.
    pub w: Rows<'a>,
    /// Rows of weights that a gate scales.
    pub up: Option<Rows<'a>>,
}

/// The columns of the result, cut where weights, gates or what they scale begin in another stored tensor. Nothing if the
/// result is empty.
pub(super) fn segments(op: &Matmul) -> Vec<Segment<'_>> {
    let (n_out, mut all, mut col) = (op.columns(), Vec::new(), 0);
    while col < n_out && op.x.size(0) > 0 {
        let Some((w, mut cols)) = rows_from(op, col) else { break };
        cols = cols.min(n_out - col);
        let mut up = None;
        if op.gated {
            let Some((rows, more)) = rows_from(op, col + n_out) else { break };
            cols = cols.min(more);
            up = Some(rows);
        }
        all.push(Segment { op, col, cols, w, up });
        col += cols;
    }
    all
}

/// The tensor that holds row `row` of the stacked weights, from there on, and how many of its rows are left.
fn rows_from(op: &Matmul, row: usize) -> Option<(Rows<'_>, usize)> {
    let mut begin = 0;
    for part in op.w.parts() {
        if row < begin + part.rows {
            return Some((Rows { part, first: row - begin }, begin + part.rows - row));
        }
        begin += part.rows;
    }
    None
}

/// Whether rows of a view `[rows, cols]` begin at multiples of 16 bytes, the first at `address`.
pub(super) fn rows_aligned(address: u64, view: &View) -> bool {
    let pitch = view.stride(0) * view.dtype().size();
    address.is_multiple_of(16) && (view.size(0) <= 1 || pitch.is_multiple_of(16))
}

impl Segment<'_> {
    /// The rows of weights, and those that a gate scales: zeros where nothing is gated.
    pub fn weights(&self, kernel: &Kernel<'_, '_>) -> Result<[WeightRows; 2], KernelError> {
        let up = self.up.map_or(Ok(WeightRows::default()), |rows| self.rows(rows, kernel))?;
        Ok([self.rows(self.w, kernel)?, up])
    }

    fn rows(&self, rows: Rows<'_>, kernel: &Kernel<'_, '_>) -> Result<WeightRows, KernelError> {
        let (format, planes) = (self.op.w.format(), &rows.part.planes);
        let stride = |i: usize| planes.get(i).map_or(0, |plane| plane.stride(0) as i64);
        let data = kernel.address(&planes[0])?;
        Ok(WeightRows {
            data,
            scales: kernel.address_or_null(planes.get(1))?,
            zeros: kernel.address_or_null(planes.get(2))?,
            stride: stride(0),
            scale_stride: stride(1),
            zero_stride: stride(2),
            first: rows.first as i32,
            group: format.group_len(self.op.w.k()).max(1) as i32,
            kind: match format {
                Format::Dense(_) => value_type(Some(&planes[0])),
                Format::Grouped(_) | Format::KMajor(..) => value_type(planes.get(1)),
            },
            aligned: u32::from(rows_aligned(data, &planes[0])),
            factor: rows.part.factor,
            zero: zero_kind(format),
        })
    }

    /// What follows the products.
    pub fn epilogue(&self, kernel: &Kernel<'_, '_>) -> Result<Epilogue, KernelError> {
        let Self { op, col, .. } = *self;
        let column =
            |view: &View| Ok::<_, KernelError>(kernel.address(view)? + (col * view.dtype().size()) as u64);
        let bias = |rows: Option<Rows<'_>>| {
            let bias = rows.and_then(|rows| rows.part.bias.as_ref().map(|bias| (rows.first, bias)));
            let Some((first, view)) = bias else { return Ok::<_, KernelError>((0, 0)) };
            Ok((kernel.address(view)? + (first * view.dtype().size()) as u64, value_type(Some(view))))
        };
        let ((bias, bias_type), (bias_up, bias_up_type)) = (bias(Some(self.w))?, bias(self.up)?);
        let (out, residual) = (column(&op.out)?, op.residual.as_ref().map_or(Ok(0), column)?);
        let aligned = bias.is_multiple_of(16)
            && bias_up.is_multiple_of(16)
            && rows_aligned(out, &op.out)
            && op.residual.as_ref().is_none_or(|view| rows_aligned(residual, view));
        Ok(Epilogue {
            bias,
            bias_up,
            residual,
            out,
            residual_stride: op.residual.as_ref().map_or(0, |view| view.stride(0) as i64),
            out_stride: op.out.stride(0) as i64,
            rows: op.x.size(0) as i32,
            cols: self.cols as i32,
            bias_type,
            bias_up_type,
            residual_type: value_type(op.residual.as_ref()),
            out_type: value_type(Some(&op.out)),
            act: match op.act {
                Activation::None => 0,
                Activation::GeluTanh => 1,
                Activation::GeluErf => 2,
                Activation::QuickGelu => 3,
                Activation::Silu => 4,
                Activation::Relu => 5,
            },
            aligned: u32::from(aligned),
        })
    }
}
