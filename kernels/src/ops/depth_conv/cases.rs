//! Conformance cases.

use super::{DepthConv, Filter};
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType;

/// Sizes and types of a case.
#[derive(Clone, Copy)]
struct Shape {
    pictures: usize,
    grid: (usize, usize),
    channels: usize,
    multiplier: usize,
    filter: Filter,
    bias: bool,
    x: DType,
    out: DType,
    /// Elements between rows of inputs and results.
    gap: usize,
}

fn filter(size: (u32, u32), stride: u32, padding: u32) -> Filter {
    Filter { size, stride, padding }
}

fn conv(cx: &mut CaseCx, s: Shape) -> DepthConv {
    let (places, wide) = (s.filter.places(s.grid), s.channels * s.multiplier);
    DepthConv {
        x: cx.random_gapped(&[s.pictures * s.grid.0 * s.grid.1, s.channels], s.x, Fill::Spiky, s.gap),
        weight: cx.random_gapped(&[s.filter.taps(), wide], DType::F32, Fill::Normal(0.5), s.gap),
        bias: s.bias.then(|| cx.random(&[wide], DType::F32, Fill::Normal(1.0))),
        grid: s.grid,
        filter: s.filter,
        out: cx.output_gapped(&[s.pictures * places.0 * places.1, wide], s.out, s.gap),
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<DepthConv>> {
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    let three = filter((3, 3), 1, 1);
    let base = Shape {
        pictures: 1,
        grid: (6, 5),
        channels: 64,
        multiplier: 1,
        filter: three,
        bias: true,
        x: F32,
        out: F32,
        gap: 0,
    };
    let filters = [
        three,
        filter((3, 3), 2, 1),
        filter((7, 7), 1, 3),
        filter((7, 7), 2, 3),
        filter((1, 1), 1, 0),
        filter((2, 3), 1, 0),
        filter((3, 3), 3, 2),
        filter((5, 4), 2, 1),
    ];
    for filter in filters {
        for (pictures, grid) in [(1, (1, 1)), (2, (6, 5)), (3, (1, 9)), (1, (13, 8)), (0, (4, 4))] {
            for (channels, multiplier) in [(1, 1), (7, 2), (66, 1), (131, 3)] {
                let shape = Shape { pictures, grid, channels, multiplier, filter, ..base };
                let name = format!("{filter:?} on {pictures} of {grid:?} x {channels} to {multiplier}");
                all.push(Case { name, op: conv(cx, shape) });
            }
        }
    }
    for x in [F32, BF16, F16] {
        for out in [F32, BF16, F16] {
            for (multiplier, bias) in [(1, true), (1, false), (2, true)] {
                let shape = Shape { channels: 83, multiplier, bias, x, out, gap: 5, pictures: 2, ..base };
                let name = format!("{x} to {out}, {multiplier} each, bias {bias}");
                all.push(Case { name, op: conv(cx, shape) });
            }
        }
    }
    // Rows of real towers.
    for (grid, channels, filter) in [((24, 24), 512, three), ((16, 16), 384, filter((7, 7), 1, 3))] {
        let shape = Shape { grid, channels, filter, x: BF16, out: BF16, ..base };
        all.push(Case { name: format!("{channels} channels on {grid:?}"), op: conv(cx, shape) });
    }
    all
}
