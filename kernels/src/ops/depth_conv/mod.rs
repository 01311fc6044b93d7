//! A convolution of each channel of a picture by itself.
//!
//! `out[y, x, n] = sum_t weight[t, n] * in[y * stride + ty - padding, x * stride + tx - padding, n / multiplier] + bias[n]` over the taps
//! `t = ty * width + tx` that lie in the picture; those beyond its edges count as zeros. Channels are the fastest axis. A convolution
//! over all channels is a product of gathered rows and needs no op of its own.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::check;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// Sizes of a filter and how it moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Rows and columns of taps.
    pub size: (u32, u32),
    /// Rows, and columns, from one place to the next.
    pub stride: u32,
    /// Rows above, and columns left of, the picture that the first place begins at; as many follow after it.
    pub padding: u32,
}

impl Filter {
    /// Taps.
    #[must_use]
    pub const fn taps(&self) -> usize {
        self.size.0 as usize * self.size.1 as usize
    }

    /// Rows and columns of the result for a picture of `(rows, columns)`; zero where the filter is larger than it.
    #[must_use]
    pub fn places(&self, (rows, cols): (usize, usize)) -> (usize, usize) {
        let along = |size: usize, taps: u32| {
            let free = (size + 2 * self.padding as usize).checked_sub(taps as usize);
            free.map_or(0, |free| free / self.stride.max(1) as usize + 1)
        };
        (along(rows, self.size.0), along(cols, self.size.1))
    }
}

/// `x: [pictures * rows * columns, channels]  weight: f32 [taps, multiplier * channels]  ->  out: [pictures * places, multiplier *
/// channels]`.
#[derive(Clone, Debug)]
pub struct DepthConv {
    /// Pictures of one size, row by row.
    pub x: View,
    /// f32 `[taps, multiplier * channels]`.
    pub weight: View,
    /// f32 `[multiplier * channels]`, added to the sums.
    pub bias: Option<View>,
    /// Rows and columns of a picture.
    pub grid: (usize, usize),
    /// The filter.
    pub filter: Filter,
    /// Result, row by row.
    pub out: View,
}

/// The key of a [`DepthConv`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct DepthConvSpec {
    /// Pictures, bucketed.
    pub pictures: u32,
    /// Rows of a picture, bucketed.
    pub rows: u32,
    /// Its columns, bucketed.
    pub cols: u32,
    /// Channels of the input.
    pub channels: u32,
    /// Channels of the result for each of those.
    pub multiplier: u32,
    /// Rows of taps.
    pub height: u32,
    /// Columns of taps.
    pub width: u32,
    /// Rows, and columns, from one place to the next.
    pub stride: u32,
    /// Rows and columns beyond the picture on each side.
    pub padding: u32,
    /// Whether there is a bias.
    pub bias: bool,
    /// Type of the input.
    pub x: DType,
    /// Type of the result.
    pub out: DType,
}

impl DepthConv {
    /// Pictures.
    fn pictures(&self) -> usize {
        self.x.size(0) / (self.grid.0 * self.grid.1).max(1)
    }

    /// Rows and columns of the result.
    fn places(&self) -> (usize, usize) {
        self.filter.places(self.grid)
    }

    /// Channels of the result for each of the input.
    fn multiplier(&self) -> usize {
        self.out.size(1) / self.x.size(1).max(1)
    }
}

impl Op for DepthConv {
    const NAME: &'static str = "depth_conv";
    type Spec = DepthConvSpec;

    fn spec(&self) -> Result<DepthConvSpec, ShapeError> {
        let Self { x, weight, bias, grid, filter, out } = self;
        check::rank("x", x, 2)?;
        check::float("x", x)?;
        check::rank("out", out, 2)?;
        check::float("out", out)?;
        let (rows, channels, wide) = (x.size(0), x.size(1), out.size(1));
        let area = grid.0 * grid.1;
        if area == 0 || !rows.is_multiple_of(area) {
            return Err(ShapeError::mismatch(
                "x axis 0",
                format!("a multiple of {} x {}", grid.0, grid.1),
                rows,
            ));
        }
        if filter.stride == 0 || filter.taps() == 0 || filter.padding >= filter.size.0.min(filter.size.1) {
            let expected = "a stride, taps, and a padding below the size of the filter";
            return Err(ShapeError::mismatch("filter", expected, format!("{filter:?}")));
        }
        if channels == 0 || !wide.is_multiple_of(channels) {
            return Err(ShapeError::mismatch("out axis 1", format!("a multiple of {channels}"), wide));
        }
        let places = self.places();
        check::shape("out", out, &[self.pictures() * places.0 * places.1, wide])?;
        check::dtype("weight", weight, DType::F32)?;
        check::shape("weight", weight, &[filter.taps(), wide])?;
        let mut inputs = vec![("x", x), ("weight", weight)];
        if let Some(bias) = bias {
            check::dtype("bias", bias, DType::F32)?;
            check::shape("bias", bias, &[wide])?;
            inputs.push(("bias", bias));
        }
        check::output("out", out, inputs)?;
        Ok(DepthConvSpec {
            pictures: bucket(self.pictures()),
            rows: bucket(grid.0),
            cols: bucket(grid.1),
            channels: channels as u32,
            multiplier: self.multiplier() as u32,
            height: filter.size.0,
            width: filter.size.1,
            stride: filter.stride,
            padding: filter.padding,
            bias: bias.is_some(),
            x: x.dtype(),
            out: out.dtype(),
        })
    }

    fn cost(&self) -> Cost {
        Cost {
            flops: 2 * (self.out.len() * self.filter.taps()) as u64,
            read: self.x.bytes() + self.weight.bytes() + self.bias.as_ref().map_or(0, View::bytes),
            written: self.out.bytes(),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        visit(Access::In, &mut self.weight);
        if let Some(bias) = &mut self.bias {
            visit(Access::In, bias);
        }
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(spec: &DepthConvSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (pictures, channels) = (spec.pictures as usize, spec.channels as usize);
        let grid = (spec.rows as usize, spec.cols as usize);
        let filter = Filter { size: (spec.height, spec.width), stride: spec.stride, padding: spec.padding };
        let (places, wide) = (filter.places(grid), channels * spec.multiplier as usize);
        Ok(DepthConv {
            x: operands.activations(&[pictures * grid.0 * grid.1, channels], spec.x)?,
            weight: operands.table(&[filter.taps(), wide], DType::F32)?,
            bias: if spec.bias { Some(operands.table(&[wide], DType::F32)?) } else { None },
            grid,
            filter,
            out: operands.output(&[pictures * places.0 * places.1, wide], spec.out)?,
        })
    }

    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError> {
        reference::reference(self, io)
    }

    #[cfg(feature = "conformance")]
    fn cases(cx: &mut crate::conformance::CaseCx) -> Vec<crate::conformance::Case<Self>> {
        cases::cases(cx)
    }
}
