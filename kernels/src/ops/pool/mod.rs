//! Reduces rows to one per segment or per block of a grid.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod grad;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

pub use self::grad::{PoolGrad, PoolGradSpec};
use super::check;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// How rows are reduced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolKind {
    /// Arithmetic mean.
    #[default]
    Mean,
    /// Largest of each feature.
    Max,
    /// The first row of a segment.
    First,
    /// The last row of a segment.
    Last,
}

/// Which rows are reduced together.
#[derive(Clone, Debug)]
pub enum PoolOver {
    /// Segments of neighbouring rows: i32 `[segments + 1]`, ascending. An empty segment gives zeros.
    Segments(View),
    /// Blocks of `block_h x block_w` patches of each picture of `grid_h x grid_w`; mean and max only.
    Grid {
        /// Rows of patches, a multiple of `block_h`.
        grid_h: usize,
        /// Columns of patches, a multiple of `block_w`.
        grid_w: usize,
        /// Rows of a block.
        block_h: usize,
        /// Columns of a block.
        block_w: usize,
    },
}

impl PoolOver {
    /// Checks that rows `[rows, d]` can be reduced so, and that segments are apart from what is written: rows of the result, and rows and
    /// columns of a block or zeros.
    fn check(
        &self,
        name: &str,
        x: &View,
        kind: PoolKind,
        written: (&str, &View),
    ) -> Result<(usize, usize, usize), ShapeError> {
        match *self {
            PoolOver::Segments(ref starts) => {
                check::rank("segments", starts, 1)?;
                check::dtype("segments", starts, DType::I32)?;
                check::output(written.0, written.1, [("segments", starts)])?;
                if starts.is_empty() {
                    return Err(ShapeError::mismatch("segments", "at least one element", 0));
                }
                Ok((starts.size(0) - 1, 0, 0))
            }
            PoolOver::Grid { grid_h, grid_w, block_h, block_w } => {
                let whole = |grid: usize, block: usize| block > 0 && grid > 0 && grid.is_multiple_of(block);
                if !whole(grid_h, block_h) || !whole(grid_w, block_w) {
                    return Err(ShapeError::mismatch(
                        "grid",
                        format!("multiples of {block_h} x {block_w}"),
                        format!("{grid_h} x {grid_w}"),
                    ));
                }
                if !x.size(0).is_multiple_of(grid_h * grid_w) {
                    let expected = format!("a multiple of {grid_h} * {grid_w}");
                    return Err(ShapeError::mismatch(&format!("{name} axis 0"), expected, x.size(0)));
                }
                if matches!(kind, PoolKind::First | PoolKind::Last) {
                    return Err(ShapeError::mismatch("kind over a grid", "mean or max", format!("{kind:?}")));
                }
                Ok((x.size(0) / (block_h * block_w), block_h, block_w))
            }
        }
    }
}

/// `x: [rows, d]  ->  out: [segments or blocks, d]`.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Rows `[rows, d]`.
    pub x: View,
    /// Which rows are reduced together.
    pub over: PoolOver,
    /// How.
    pub kind: PoolKind,
    /// Result.
    pub out: View,
}

/// The key of a [`Pool`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolSpec {
    /// Rows of the result, bucketed.
    pub rows: u32,
    /// Features.
    pub d: u32,
    /// How rows are reduced.
    pub kind: PoolKind,
    /// Rows of a block of a grid; 0 for segments.
    pub block_h: u32,
    /// Columns of a block of a grid; 0 for segments.
    pub block_w: u32,
    /// Type of the rows.
    pub x: DType,
    /// Type of the result.
    pub out: DType,
}

impl Op for Pool {
    const NAME: &'static str = "pool";
    type Spec = PoolSpec;

    fn spec(&self) -> Result<PoolSpec, ShapeError> {
        let Self { x, over, kind, out } = self;
        check::rank("x", x, 2)?;
        check::float("x", x)?;
        check::float("out", out)?;
        let (rows, block_h, block_w) = over.check("x", x, *kind, ("out", out))?;
        check::shape("out", out, &[rows, x.size(1)])?;
        check::output("out", out, [("x", x)])?;
        Ok(PoolSpec {
            rows: bucket(rows),
            d: x.size(1) as u32,
            kind: *kind,
            block_h: block_h as u32,
            block_w: block_w as u32,
            x: x.dtype(),
            out: out.dtype(),
        })
    }

    fn cost(&self) -> Cost {
        Cost { flops: self.x.len() as u64, read: self.x.bytes(), written: self.out.bytes() }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        if let PoolOver::Segments(starts) = &mut self.over {
            visit(Access::In, starts);
        }
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(spec: &PoolSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        // Rows of a segment: its spec does not tell.
        const SEGMENT: usize = 16;
        let (rows, d) = (spec.rows as usize, spec.d as usize);
        let (block_h, block_w) = (spec.block_h as usize, spec.block_w as usize);
        let (over, each) = if block_h * block_w == 0 {
            let starts = operands.ints(&[rows + 1], &|i| (i * SEGMENT) as i32)?;
            (PoolOver::Segments(starts), SEGMENT)
        } else {
            let over = PoolOver::Grid { grid_h: block_h, grid_w: rows * block_w, block_h, block_w };
            (over, block_h * block_w)
        };
        Ok(Pool {
            x: operands.activations(&[rows * each, d], spec.x)?,
            over,
            kind: spec.kind,
            out: operands.output(&[rows, d], spec.out)?,
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
