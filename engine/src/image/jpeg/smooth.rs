//! Progressive pictures whose last scans are missing: libjpeg's block smoothing. Low coefficients that no scan has made
//! exact yet, and that are zero, are estimated from the mean levels of the 5 x 5 blocks around.

use std::ops::RangeInclusive;

use super::{Component, Frame, idct};

/// Coefficients that are estimated, and the DC coefficient: the first of the zigzag order.
const ESTIMATED: usize = 10;

/// How exactly the scans so far gave a component's first coefficients.
#[derive(Clone, Copy)]
pub(super) struct Progress {
    /// Lowest bit that is known; -1 where no scan had the coefficient.
    now: [i8; ESTIMATED],
    /// The same before the component's last scan.
    before: [i8; ESTIMATED],
}

impl Default for Progress {
    fn default() -> Self {
        Self { now: [-1; ESTIMATED], before: [-1; ESTIMATED] }
    }
}

impl Progress {
    /// Notes a scan of the coefficients `band` down to bit `low`. `later` where it is not the frame's first; the first
    /// one's predecessor counts as exact (nothing to estimate) once others follow.
    pub(super) fn scan(&mut self, band: RangeInclusive<usize>, low: u32, later: bool) {
        self.before = if later { self.now } else { [0; ESTIMATED] };
        for (i, bit) in self.now.iter_mut().enumerate() {
            if band.contains(&i) {
                *bit = low as i8;
            }
        }
    }
}

/// Weights of the 5 x 5 blocks around, row by row.
type Kernel = [[i64; 5]; 5];

const fn transposed(k: Kernel) -> Kernel {
    let mut out = [[0; 5]; 5];
    let mut i = 0;
    while i < 25 {
        out[i / 5][i % 5] = k[i % 5][i / 5];
        i += 1;
    }
    out
}

const O: [i64; 5] = [0; 5];

/// Where no AC coefficient is known at all: natural position, its place in zigzag order, weights.
const ALONE: [(usize, usize, Kernel); ESTIMATED] = [
    (1, 1, FIRST),
    (8, 2, transposed(FIRST)),
    (16, 3, SECOND),
    (9, 4, [[-1, 0, 0, 0, 1], [0, 9, 0, -9, 0], O, [0, -9, 0, 9, 0], [1, 0, 0, 0, -1]]),
    (2, 5, transposed(SECOND)),
    (3, 6, THIRD),
    (10, 7, [O, [0, 1, -3, 1, 0], O, [0, -1, 3, -1, 0], O]),
    (17, 8, [O, [0, 1, 0, -1, 0], [0, -3, 0, 3, 0], [0, 1, 0, -1, 0], O]),
    (24, 9, transposed(THIRD)),
    (0, 0, MEAN),
];
const FIRST: Kernel =
    [[-1, -1, 0, 1, 1], [-3, 13, 0, -13, 3], [-3, 38, 0, -38, 3], [-3, 13, 0, -13, 3], [-1, -1, 0, 1, 1]];
const SECOND: Kernel =
    [[0, 0, 1, 0, 0], [0, 2, 7, 2, 0], [0, -5, -14, -5, 0], [0, 2, 7, 2, 0], [0, 0, 1, 0, 0]];
const THIRD: Kernel = [O, [0, 1, 0, -1, 0], [0, 2, 0, -2, 0], [0, 1, 0, -1, 0], O];
const MEAN: Kernel = [
    [-2, -6, -8, -6, -2],
    [-6, 6, 42, 6, -6],
    [-8, 42, 152, 42, -8],
    [-6, 6, 42, 6, -6],
    [-2, -6, -8, -6, -2],
];

/// Where some are known.
const AMONG: [(usize, usize, Kernel); 5] = [
    (1, 1, STEP),
    (8, 2, transposed(STEP)),
    (16, 3, transposed(BEND)),
    (9, 4, [[0, -1, 0, 1, 0], [-1, 10, 0, -10, 1], O, [1, -10, 0, 10, -1], [0, 1, 0, -1, 0]]),
    (2, 5, BEND),
];
const STEP: Kernel = [O, O, [-7, 50, 0, -50, 7], O, O];
const BEND: Kernel = [O, O, [-1, 13, -24, 13, -1], O, O];

/// Whether libjpeg smooths this picture: all DC coefficients are known, and some of the next nine are not exact.
pub(super) fn wanted(frame: &Frame) -> bool {
    let known = |c: &Component| {
        c.progress.now[0] >= 0 && c.quant.is_some_and(|quant| ALONE.iter().all(|&(at, ..)| quant[at] != 0))
    };
    frame.components.iter().all(known)
        && frame.components.iter().any(|c| c.progress.now[1..].iter().any(|&bit| bit != 0))
}

/// Turns a progressive frame's coefficients, read from `scans` scans, into samples, smoothing.
pub(super) fn idct_smoothed(frame: &mut Frame, scans: usize) {
    let (rows, last_good) = (frame.mcus_y, frame.last_good);
    for component in &mut frame.components {
        let Some(quant) = component.quant else { continue };
        let mut row = vec![0; component.blocks_w * 64];
        for mcu_row in 0..rows {
            // Below the last row that the last scan has, the scans before it count.
            let known = match mcu_row > last_good {
                true if scans == 1 => Progress::default().before,
                true => component.progress.before,
                false => component.progress.now,
            };
            // The last row of units may have fewer rows of blocks; libjpeg then counts all rows as if they had as few.
            let real = component.height.div_ceil(8) % component.v;
            let blocks = if mcu_row + 1 < rows || real == 0 { component.v } else { real };
            for block in 0..blocks {
                let nominal = mcu_row * blocks + block;
                let neighbours = (nominal.min(2), (blocks * rows - 1 - nominal).min(2));
                let at = mcu_row * component.v + block;
                smooth_row(component, &quant, &known, at, neighbours, &mut row);
                let samples = component.stride() * 8;
                if let Some(samples) = component.plane.chunks_exact_mut(samples).nth(at) {
                    idct::block_row(&row, &quant, samples);
                }
            }
        }
    }
}

/// Block row `at` of a component, with estimates, to `out`. There are `above` and `below` rows to look at.
fn smooth_row(
    component: &Component,
    quant: &[u16; 64],
    known: &[i8; ESTIMATED],
    at: usize,
    (above, below): (usize, usize),
    out: &mut [i16],
) {
    let row = component.blocks_w * 64;
    out.copy_from_slice(&component.coefs[at * row..(at + 1) * row]);
    let alone = known[1..].iter().all(|&bit| bit == -1);
    let estimates = if alone { &ALONE[..] } else { &AMONG };
    let last = component.width.div_ceil(8) - 1;
    let rows: [usize; 5] = std::array::from_fn(|i| match i {
        0..2 => at - (2 - i).min(above),
        _ => at + (i - 2).min(below),
    });
    for (x, block) in out.as_chunks_mut::<64>().0.iter_mut().take(last + 1).enumerate() {
        let columns: [usize; 5] = std::array::from_fn(|i| (x + i).saturating_sub(2).min(last));
        let means = rows.map(|r| columns.map(|c| i64::from(component.coefs[r * row + c * 64])));
        for (natural, zigzag, kernel) in estimates {
            let low = known[*zigzag];
            if *zigzag > 0 && (low == 0 || block[*natural] != 0) {
                continue;
            }
            let weighted = means.as_flattened().iter().zip(kernel.as_flattened()).map(|(m, k)| m * k);
            let sum = i64::from(quant[0]) * weighted.sum::<i64>();
            let step = i64::from(quant[*natural]);
            let mut size = ((step << 7) + sum.abs()) / (step << 8);
            if *zigzag > 0 && low > 0 {
                size = size.min((1 << low) - 1);
            }
            block[*natural] = (size * sum.signum()) as i16;
        }
    }
}
