//! The nearest vectors, exactly.

use ocelli_engine::parallel::try_map;

/// Vectors that a thread looks at in one go.
const PART: usize = 4096;
/// Largest difference of a stored vector's length from 1: 16-bit arithmetic rounds to 2^-8.
const LENGTH: f64 = 0.01;

/// A picture that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// Number of the picture in the [`Matrix`].
    pub place: usize,
    /// The product of the two unit vectors in f64, summed in order: 1 is the same direction.
    pub score: f64,
}

/// All vectors of an index.
#[derive(Clone, Debug)]
pub struct Matrix {
    d: usize,
    /// `[pictures, d]`.
    values: Vec<f32>,
    paths: Vec<String>,
    sizes: Vec<(u32, u32)>,
}

impl Matrix {
    /// One without pictures, of vectors of `d` numbers.
    pub(crate) fn new(d: usize) -> Self {
        Self { d, values: Vec::new(), paths: Vec::new(), sizes: Vec::new() }
    }

    /// Adds a picture of `size` (width, height) with a vector as it is stored; false if that is no unit vector of this length.
    pub(crate) fn push(&mut self, path: &str, size: (u32, u32), bytes: &[u8]) -> bool {
        if bytes.len() != 4 * self.d {
            return false;
        }
        let before = self.values.len();
        self.values.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        let vector = &self.values[before..];
        let length = product(vector, vector).sqrt();
        // A length that is no number is not near 1 either.
        let near = (length - 1.0).abs() <= LENGTH;
        if !near {
            self.values.truncate(before);
            return false;
        }
        self.paths.push(path.to_owned());
        self.sizes.push(size);
        true
    }

    /// Number of pictures.
    #[must_use]
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// The path of a picture, from the folder of the index on.
    #[must_use]
    pub fn path(&self, place: usize) -> &str {
        &self.paths[place]
    }

    /// Width and height of a picture.
    #[must_use]
    pub fn size(&self, place: usize) -> (u32, u32) {
        self.sizes[place]
    }

    fn vector(&self, place: usize) -> &[f32] {
        &self.values[place * self.d..(place + 1) * self.d]
    }

    /// The `k` pictures whose vectors have the largest products with `query`, a unit vector of this length, the largest first and equal ones in
    /// the order of their paths; all of them where there are fewer. Fast sums in f32 leave those that could be among them, by the
    /// bound of their rounding; these are summed again in f64.
    #[must_use]
    pub fn nearest(&self, query: &[f32], k: usize, threads: usize) -> Vec<Hit> {
        if k == 0 || query.len() != self.d {
            return Vec::new();
        }
        let starts: Vec<usize> = (0..self.len()).step_by(PART).collect();
        let part = |&start: &usize, _| {
            let end = (start + PART).min(self.len());
            let rows = self.values[start * self.d..end * self.d].chunks_exact(self.d);
            Ok::<_, std::convert::Infallible>(rows.map(|row| rough(row, query)).collect::<Vec<f32>>())
        };
        let scores = try_map(&starts, threads, part).unwrap_or_default().concat();
        let mut sorted = scores.clone();
        let least = match sorted.len() {
            0 => return Vec::new(),
            count if k >= count => f32::NEG_INFINITY,
            count => *sorted.select_nth_unstable_by(count - k, f32::total_cmp).1,
        };
        // A sum of d products in f32 in any order is at most d * 2^-24 of the sum of their sizes away (to first order), which for two unit
        // vectors is at most 1; twice that leaves room for higher orders and lengths near 1. Both sides of the comparison have it.
        let bound = 2.0 * self.d as f32 * 2f32.powi(-24);
        let mut hits: Vec<Hit> = (0..self.len())
            .filter(|&place| scores[place] >= least - 2.0 * bound)
            .map(|place| Hit { place, score: product(self.vector(place), query) })
            .collect();
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.place.cmp(&b.place)));
        hits.truncate(k);
        hits
    }
}

/// The product in f64, summed in order.
fn product(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// The product in f32, summed in sixteen parts, which compilers make vectors of.
fn rough(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let (a_parts, b_parts) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_parts.remainder().iter().zip(b_parts.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_parts.zip(b_parts) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unit vectors that look random.
    fn vectors(count: usize, d: usize) -> Vec<Vec<f32>> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1u32 << 24) - 0.5
        };
        let mut unit = || {
            let row: Vec<f64> = (0..d).map(|_| next()).collect();
            let length = row.iter().map(|value| value * value).sum::<f64>().sqrt();
            row.iter().map(|value| (value / length) as f32).collect()
        };
        (0..count).map(|_| unit()).collect()
    }

    fn bytes(vector: &[f32]) -> Vec<u8> {
        vector.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn matrix(rows: &[Vec<f32>]) -> Matrix {
        let mut matrix = Matrix::new(rows[0].len());
        for (place, row) in rows.iter().enumerate() {
            assert!(matrix.push(&format!("{place:06}"), (1, 1), &bytes(row)));
        }
        matrix
    }

    #[test]
    fn the_nearest_are_those_of_a_full_sort_in_f64() {
        let mut rows = vectors(9000, 37);
        // Many that differ in the last bits alone, and some that do not differ.
        for place in 5000..5200 {
            rows[place] = rows[17].clone();
            rows[place][place % 37] *= 1.0 + (place % 3) as f32 * f32::EPSILON;
        }
        let matrix = matrix(&rows);
        for query in [&rows[17], &rows[8999], &rows[5100]] {
            let mut expected: Vec<(f64, usize)> =
                rows.iter().enumerate().map(|(place, row)| (product(row, query), place)).collect();
            expected.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            for (k, threads) in [(1, 1), (10, 2), (100, 3), (9000, 2), (20_000, 1)] {
                let found = matrix.nearest(query, k, threads);
                assert_eq!(found.len(), k.min(9000));
                for (hit, expected) in found.iter().zip(&expected) {
                    assert_eq!((hit.score, hit.place), *expected, "k {k}");
                }
            }
        }
        assert!(matrix.nearest(&rows[0], 0, 1).is_empty());
        assert!(Matrix::new(37).nearest(&rows[0], 3, 1).is_empty());
    }

    #[test]
    fn what_is_no_unit_vector_is_not_taken() {
        let mut matrix = Matrix::new(2);
        for wrong in
            [vec![], vec![1.0], vec![1.0, 1.0], vec![f32::NAN, 0.0], vec![0.0, 0.0], vec![1.0, 0.0, 0.0]]
        {
            assert!(!matrix.push("a", (1, 1), &bytes(&wrong)), "{wrong:?}");
        }
        assert!(matrix.push("a", (1, 1), &bytes(&[0.6, 0.8])));
        assert_eq!((matrix.len(), matrix.path(0), matrix.nearest(&[0.6, 0.8], 5, 1).len()), (1, "a", 1));
    }
}
