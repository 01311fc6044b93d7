//! Tables of positions for one square grid, interpolated for others.

/// How a table is interpolated between its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// From the two nearest along each axis; the corners of both grids are the same places.
    LinearCorners,
    /// From the two nearest along each axis; the edges of both grids are the same places.
    Linear,
    /// From the four nearest along each axis, by Keys' kernel with `a = -0.75`; the edges of both grids are the same places.
    Cubic,
}

impl Between {
    /// For place `index` of `size`: rows of a table of `side` along an axis, each with its factor, in f32.
    fn axis(self, index: usize, size: usize, side: usize) -> Vec<(usize, f32)> {
        let (index, length) = (index as f32, side as f32);
        let place = match self {
            Self::LinearCorners => index * (length - 1.0) / size.saturating_sub(1).max(1) as f32,
            Self::Linear | Self::Cubic => (index + 0.5) * length / size as f32 - 0.5,
        };
        let floor = place.floor();
        let offsets = if self == Self::Cubic { -1..=2 } else { 0..=1 };
        let tap = |offset: i32| {
            let row = (floor as i64 + i64::from(offset)).clamp(0, side as i64 - 1);
            let distance = (place - floor - offset as f32).abs();
            (row as usize, self.factor(distance))
        };
        offsets.map(tap).collect()
    }

    fn factor(self, distance: f32) -> f32 {
        const A: f32 = -0.75;
        match self {
            Self::LinearCorners | Self::Linear => (1.0 - distance).max(0.0),
            Self::Cubic if distance <= 1.0 => ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0,
            Self::Cubic => ((A * distance - 5.0 * A) * distance + 8.0 * A) * distance - 4.0 * A,
        }
    }

    /// Rows of a table of `side x side` that make each place of `grid`, row by row, with their factors; the third is how many each
    /// place has.
    #[must_use]
    pub fn taps(self, grid: (usize, usize), side: usize) -> (Vec<i32>, Vec<f32>, usize) {
        let axis = |size: usize| (0..size).map(|i| self.axis(i, size, side)).collect::<Vec<_>>();
        let (down, across) = (axis(grid.0), axis(grid.1));
        let (mut ids, mut factors) = (Vec::new(), Vec::new());
        for (rows, cols) in down.iter().flat_map(|rows| across.iter().map(move |cols| (rows, cols))) {
            for ((row, a), (col, b)) in rows.iter().flat_map(|row| cols.iter().map(move |col| (row, col))) {
                ids.push((row * side + col) as i32);
                factors.push(a * b);
            }
        }
        let per_axis = if self == Self::Cubic { 4 } else { 2 };
        (ids, factors, per_axis * per_axis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_of_the_same_size_is_the_table() {
        for between in [Between::LinearCorners, Between::Linear, Between::Cubic] {
            let (ids, factors, taps) = between.taps((3, 3), 3);
            assert_eq!(ids.len(), 9 * taps);
            for (place, (ids, factors)) in ids.chunks(taps).zip(factors.chunks(taps)).enumerate() {
                let own: f32 =
                    ids.iter().zip(factors).filter(|(id, _)| **id == place as i32).map(|(_, f)| f).sum();
                let all: f32 = factors.iter().sum();
                assert!((own - 1.0).abs() < 1e-6 && (all - 1.0).abs() < 1e-6, "{between:?} {place}");
            }
        }
    }

    #[test]
    fn between_rows_and_beyond_them() {
        // Two places on a side of five: corners are rows 0 and 4; by edges they are at 0.75 and 3.25.
        assert_eq!(Between::LinearCorners.axis(1, 2, 5), [(4, 1.0), (4, 0.0)]);
        assert_eq!(Between::Linear.axis(0, 2, 5), [(0, 0.25), (1, 0.75)]);
        assert_eq!(Between::Linear.axis(0, 9, 3)[0].0, 0);
        let cubic = Between::Cubic.axis(0, 2, 5);
        assert_eq!(cubic.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [0, 0, 1, 2]);
        assert!((cubic.iter().map(|(_, factor)| factor).sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
