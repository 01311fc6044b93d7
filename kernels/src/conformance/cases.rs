//! Operands of cases, on guarded memory.

use crate::buffer::{Storage, StreamId, View, Weights};
use crate::oracle::{decode, encode};
use crate::spec::{Code, DType, Format, Grouped, Layout, Zero};

/// Bytes before and after each operand, all set to 0xFF: a NaN in every float type.
const GUARD: usize = 64;

/// An op on guarded memory, with a name for reports.
pub struct Case<O> {
    /// What is special about it.
    pub name: String,
    /// The op.
    pub op: O,
}

/// What a random operand looks like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Normal with this standard deviation.
    Normal(f32),
    /// Normal, with one value in 64 a hundred times larger: activations of real models look so.
    Spiky,
    /// Uniform between the two.
    Uniform(f32, f32),
}

/// Allocates and fills operands, from a seed.
pub struct CaseCx {
    id: StreamId,
    state: u64,
    /// Whether operands get values.
    filled: bool,
}

impl CaseCx {
    /// A generator whose cases depend on `seed` alone.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { id: StreamId::fresh(), state: seed, filled: true }
    }

    /// A generator of operands without values, for those who look at shapes alone. Random shapes are others than with values.
    #[must_use]
    pub fn shapes(seed: u64) -> Self {
        Self { filled: false, ..Self::new(seed) }
    }

    /// The stream that the memory belongs to.
    #[must_use]
    pub const fn id(&self) -> StreamId {
        self.id
    }

    /// The next 64 random bits (splitmix64).
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A random number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.bits()) * limit as u128) >> 64) as usize
    }

    /// A random number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A random number as `fill` says.
    pub fn value(&mut self, fill: Fill) -> f64 {
        match fill {
            Fill::Uniform(low, high) => f64::from(low) + self.unit() * f64::from(high - low),
            Fill::Normal(_) | Fill::Spiky => {
                let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * self.unit()).cos();
                match fill {
                    Fill::Normal(std) => normal * f64::from(std),
                    _ if self.below(64) == 0 => normal * 100.0,
                    _ => normal,
                }
            }
        }
    }

    /// Guarded memory for `layout`, every byte 0xFF.
    fn guarded(&mut self, layout: Layout, dtype: DType) -> View {
        let bytes = layout.extent() * dtype.size();
        let storage = Storage::host(bytes + 2 * GUARD, self.id).expect("memory for a test case");
        if self.filled {
            storage.restore(&vec![0xFF; bytes + 2 * GUARD]);
        }
        View::new(storage, GUARD, layout, dtype).expect("a view of guarded memory")
    }

    /// A layout whose rows (axis -2) are `gap` elements further apart than dense ones.
    fn gapped(shape: &[usize], gap: usize) -> Layout {
        let mut strides = vec![1; shape.len()];
        for axis in (0..shape.len().saturating_sub(1)).rev() {
            let row_gap = if axis + 2 == shape.len() { gap } else { 0 };
            strides[axis] = shape[axis + 1].max(1) * strides[axis + 1] + row_gap;
        }
        Layout::strided(shape, &strides).expect("a layout of a test case")
    }

    /// An output: NaN in every element and around it.
    pub fn output(&mut self, shape: &[usize], dtype: DType) -> View {
        self.output_gapped(shape, dtype, 0)
    }

    /// An output whose rows are `gap` elements apart.
    pub fn output_gapped(&mut self, shape: &[usize], dtype: DType, gap: usize) -> View {
        self.guarded(Self::gapped(shape, gap), dtype)
    }

    /// A dense random input.
    pub fn random(&mut self, shape: &[usize], dtype: DType, fill: Fill) -> View {
        self.random_gapped(shape, dtype, fill, 0)
    }

    /// A random input whose rows are `gap` elements apart, with NaN in the gaps.
    pub fn random_gapped(&mut self, shape: &[usize], dtype: DType, fill: Fill, gap: usize) -> View {
        let view = self.guarded(Self::gapped(shape, gap), dtype);
        if !self.filled {
            return view;
        }
        let mut bytes = Vec::with_capacity(view.len() * dtype.size());
        for _ in 0..view.len() {
            let value = self.value(fill);
            encode(dtype, value, &mut bytes);
        }
        view.fill_from(&bytes, self.id).expect("own memory");
        view
    }

    /// A dense input of given numbers, rounded to `dtype`.
    pub fn values(&mut self, shape: &[usize], dtype: DType, values: &[f64]) -> View {
        let view = self.guarded(Layout::dense(shape).expect("a layout of a test case"), dtype);
        let mut bytes = Vec::new();
        values.iter().for_each(|&value| encode(dtype, value, &mut bytes));
        view.fill_from(&bytes, self.id).expect("as many values as elements");
        view
    }

    /// A dense i32 input.
    pub fn ints(&mut self, shape: &[usize], values: &[i32]) -> View {
        let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
        self.values(shape, DType::I32, &values)
    }

    /// A random weight matrix `[n, k]` of any format, its values near `1 / sqrt(k)`; with a bias if asked.
    pub fn weights(&mut self, format: Format, n: usize, k: usize, bias: bool) -> Weights {
        let std = 1.0 / (k.max(1) as f32).sqrt();
        let grouped = format.codes();
        // A third of the largest integer, or about the mean square of all codes of others, makes such values.
        let most = grouped.map_or(std, |Grouped { code, .. }| match code.centre() {
            Some(centre) => 3.0 * std / f32::from(centre),
            None => 4.0 * std / code.range().1,
        });
        // Scales of 8 bits are near 1, and a factor takes them there.
        let factor = grouped.filter(|grouped| !grouped.scale.is_float()).map_or(1.0, |_| 0.3 * most);
        let planes: Vec<View> = format
            .planes(n, k)
            .iter()
            .map(|plane| {
                let shape = [plane.rows, plane.cols];
                match (grouped, plane.name) {
                    (None, _) => self.random(&shape, plane.dtype, Fill::Normal(std)),
                    (_, "order") => self.order(k, format.groups(k)),
                    (Some(grouped), _) if plane.dtype == DType::I32 => self.codes(grouped.code, &shape),
                    (Some(grouped), "zeros") => {
                        let centre = f32::from(grouped.code.centre().unwrap_or_default());
                        // About the centre, as a code and as what takes the codes there.
                        let fill = match grouped.zero {
                            Zero::Offset => Fill::Uniform(-1.2 * centre * most, -0.1 * centre * most),
                            _ => Fill::Uniform(0.5 * centre, 1.5 * centre),
                        };
                        self.random(&shape, plane.dtype, fill)
                    }
                    _ => {
                        let unit = most / factor;
                        self.random(&shape, plane.dtype, Fill::Uniform(0.2 * unit, unit))
                    }
                }
            })
            .collect();
        let bias_type = format.dense().unwrap_or(DType::F32);
        let bias = bias.then(|| self.random(&[n], bias_type, Fill::Normal(0.5)));
        Weights::new(format, n, k, planes, bias).expect("planes as the format asks").times(factor)
    }

    /// A group for each of `k` columns, `[1, k]`, far from those of its neighbours.
    fn order(&mut self, k: usize, groups: usize) -> View {
        let view = self.guarded(Layout::dense(&[1, k]).expect("a layout of a test case"), DType::I32);
        if self.filled {
            let groups = (0..k).map(|col| ((7 * col + 3) % groups.max(1)) as i32);
            let bytes: Vec<u8> = groups.flat_map(i32::to_le_bytes).collect();
            view.fill_from(&bytes, self.id).expect("own memory");
        }
        view
    }

    /// Words of random codes.
    fn codes(&mut self, code: Code, shape: &[usize]) -> View {
        let view = self.guarded(Layout::dense(shape).expect("a layout of a test case"), DType::I32);
        if !self.filled {
            return view;
        }
        let mut bytes: Vec<u8> = (0..view.len()).flat_map(|_| (self.bits() as u32).to_le_bytes()).collect();
        if code == Code::Fp8 {
            // NaN may be read as any of several values.
            bytes.iter_mut().filter(|byte| **byte & 0x7f == 0x7f).for_each(|byte| *byte &= 0xfe);
        }
        view.fill_from(&bytes, self.id).expect("own memory");
        view
    }

    /// The value of an element, for checks of generated operands.
    #[must_use]
    pub fn get(&self, view: &View, index: usize) -> f64 {
        let mut bytes = vec![0; view.bytes() as usize];
        view.copy_to(&mut bytes, self.id).expect("own memory");
        decode(view.dtype(), &bytes[index * view.dtype().size()..])
    }
}
