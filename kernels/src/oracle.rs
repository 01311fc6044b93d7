//! Reads operands as f64 and collects what an op's reference expects, with error bounds.

use half::{bf16, f16};

use crate::buffer::{StreamId, View, Weights};
use crate::quant;
use crate::spec::{DType, Element, Format, KernelError, tolerance};

/// Multiply-adds above which only a seeded sample of the outputs is checked.
const SAMPLE_ABOVE: u64 = 1 << 27;

/// What the reference expects of one output view.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The output.
    pub view: View,
    /// Row-major indices of the values, ascending; `None` is every element.
    pub indices: Option<Vec<usize>>,
    /// Values in f64.
    pub values: Vec<f64>,
    /// Largest allowed distance from each value, storage rounding included.
    pub bounds: Vec<f64>,
}

impl Expected {
    /// Errors where what is expected could not fail a kernel: values or bounds are missing, a value is NaN, a bound is NaN,
    /// infinite or negative.
    pub fn check(&self) -> Result<(), String> {
        let elements = self.indices.as_ref().map_or(self.view.len(), Vec::len);
        if (self.values.len(), self.bounds.len()) != (elements, elements) {
            let (values, bounds) = (self.values.len(), self.bounds.len());
            return Err(format!(
                "reference of {:?}: expected {elements} values and bounds, found {values} and {bounds}",
                self.view
            ));
        }
        for (i, (&value, &bound)) in self.values.iter().zip(&self.bounds).enumerate() {
            if value.is_nan() || !bound.is_finite() || bound < 0.0 {
                return Err(format!(
                    "reference of element {} of {:?}: expected a number and a finite bound, found {value:e} within \
                     {bound:e}",
                    self.index(i),
                    self.view
                ));
            }
        }
        Ok(())
    }

    /// Compares a kernel's results, by row-major index, with what is expected: each is the value itself or within the bound of
    /// it. NaN never is, and an infinity is only where that infinity is expected. Errors as [`check`](Self::check) does, too.
    pub fn compare(&self, got: impl Fn(usize) -> f64) -> Result<(), String> {
        self.check()?;
        for (i, (&want, &bound)) in self.values.iter().zip(&self.bounds).enumerate() {
            let index = self.index(i);
            let got = got(index);
            let off = (got - want).abs();
            if got != want && (off.is_nan() || off > bound) {
                return Err(format!(
                    "element {index} of {:?}: expected {want:e} within {bound:e}, found {got:e} (off by {off:e})",
                    self.view
                ));
            }
        }
        Ok(())
    }

    /// Row-major index of value `i`.
    fn index(&self, i: usize) -> usize {
        self.indices.as_ref().map_or(i, |indices| indices[i])
    }
}

/// Operand access for [`Op::reference`](crate::Op::reference).
pub struct Oracle {
    by: StreamId,
    sample: bool,
    expected: Vec<Expected>,
}

impl Oracle {
    /// For ops whose memory belongs to stream `by`. With `sample`, large ops are checked in part.
    #[must_use]
    pub fn new(by: StreamId, sample: bool) -> Self {
        Self { by, sample, expected: Vec::new() }
    }

    /// The elements of a view in row-major order.
    pub fn read(&self, view: &View) -> Result<Vec<f64>, KernelError> {
        match view.dtype() {
            DType::F32 => self.read_as::<f32, _>(view, f64::from),
            DType::BF16 => self.read_as::<bf16, _>(view, f64::from),
            DType::F16 => self.read_as::<f16, _>(view, f64::from),
            DType::I8 => self.read_as::<i8, _>(view, f64::from),
            DType::U8 => self.read_as::<u8, _>(view, f64::from),
            DType::I32 => self.read_as::<i32, _>(view, f64::from),
            DType::E4M3 => self.read_bytes(view, quant::e4m3::value),
            DType::E8M0 => self.read_bytes(view, quant::e8m0),
        }
    }

    /// The elements of an i32 view in row-major order.
    pub fn ints(&self, view: &View) -> Result<Vec<i64>, KernelError> {
        self.read_as::<i32, i64>(view, i64::from)
    }

    fn read_bytes(&self, view: &View, to: impl Fn(u8) -> f32) -> Result<Vec<f64>, KernelError> {
        let base = view.read_bytes_ptr(self.by)?;
        let mut all = Vec::with_capacity(view.len());
        // SAFETY: offsets of the layout stay within its extent, for which the pointer is valid; elements are bytes.
        view.layout().for_each_offset(|offset| all.push(to(unsafe { *base.add(offset) }).into()));
        Ok(all)
    }

    fn read_as<T: Element, R>(&self, view: &View, to: impl Fn(T) -> R) -> Result<Vec<R>, KernelError> {
        let base = view.read_ptr::<T>(self.by)?;
        let mut all = Vec::with_capacity(view.len());
        // SAFETY: offsets of the layout stay within its extent, for which the pointer is valid.
        view.layout().for_each_offset(|offset| all.push(to(unsafe { *base.add(offset) })));
        Ok(all)
    }

    /// A weight matrix `[n, k]`, decoded.
    pub fn weights(&self, weights: &Weights) -> Result<Vec<f64>, KernelError> {
        self.weights_and_zeros(weights).map(|(all, _)| all)
    }

    /// A weight matrix `[n, k]`, decoded, and the size of what each weight has beside its scaled code, as kernels may add it apart: nothing
    /// where the format has no zero points.
    pub fn weights_and_zeros(&self, weights: &Weights) -> Result<(Vec<f64>, Vec<f64>), KernelError> {
        let (mut all, mut zeros) = (Vec::with_capacity(weights.n() * weights.k()), Vec::new());
        for part in weights.parts() {
            let (format, k) = (weights.format(), weights.k());
            match format {
                Format::Dense(_) => all.extend(self.read(&part.planes[0])?),
                Format::Grouped(grouped) => {
                    quant::grouped::decode_f64(format, grouped, k, part, self, &mut all, &mut zeros)?;
                }
                Format::KMajor(grouped, kind) => {
                    let of = (grouped, kind);
                    quant::kmajor::decode_f64(format, of, k, part, self, &mut all, &mut zeros)?;
                }
            }
        }
        Ok((all, zeros))
    }

    /// The biases of a stacked matrix `[n]`, zero where a part has none.
    pub fn biases(&self, weights: &Weights) -> Result<Vec<f64>, KernelError> {
        let mut all = Vec::with_capacity(weights.n());
        for part in weights.parts() {
            match &part.bias {
                Some(bias) => all.extend(self.read(bias)?),
                None => all.resize(all.len() + part.rows, 0.0),
            }
        }
        Ok(all)
    }

    /// Row-major indices of the outputs to compute: all of them, or a seeded sample of a large op, corners included.
    #[must_use]
    pub fn pick(&self, outputs: usize, macs_each: usize) -> Vec<usize> {
        if !self.sample || outputs as u64 * macs_each as u64 <= SAMPLE_ABOVE {
            return (0..outputs).collect();
        }
        let wanted = (SAMPLE_ABOVE / macs_each.max(1) as u64).clamp(64, 1 << 14) as usize;
        let mut state = outputs as u64;
        let mut all: Vec<usize> = (0..wanted)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((u128::from(state) * outputs as u128) >> 64) as usize
            })
            .chain([0, outputs - 1])
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// States every value of an output. `errors` bound the arithmetic; rounding to the view's type is added here. Infinities are
    /// expected exactly.
    pub fn expect(&mut self, view: &View, values: Vec<f64>, errors: Vec<f64>) {
        self.expect_some(view, None, values, errors);
    }

    /// As [`expect`](Self::expect) for the given indices only.
    pub fn expect_some(
        &mut self,
        view: &View,
        indices: Option<Vec<usize>>,
        values: Vec<f64>,
        errors: Vec<f64>,
    ) {
        let dtype = view.dtype();
        let bounds = values.iter().zip(&errors).map(|(&value, &error)| {
            match dtype.is_float() && !value.is_infinite() {
                true => tolerance::stored(error, value, dtype),
                false => error,
            }
        });
        let bounds = bounds.collect();
        self.expected.push(Expected { view: view.clone(), indices, values, bounds });
    }

    /// What the reference stated.
    #[must_use]
    pub fn into_expected(self) -> Vec<Expected> {
        self.expected
    }
}

/// Writes a value to an element of a view, rounded to its type.
pub(crate) fn encode(dtype: DType, value: f64, bytes: &mut Vec<u8>) {
    match dtype {
        DType::F32 => bytes.extend((value as f32).to_le_bytes()),
        DType::BF16 => bytes.extend(bf16::from_f32(value as f32).to_le_bytes()),
        DType::F16 => bytes.extend(f16::from_f32(value as f32).to_le_bytes()),
        DType::I8 => bytes.extend((value as i8).to_le_bytes()),
        DType::U8 => bytes.push(value as u8),
        DType::I32 => bytes.extend((value as i32).to_le_bytes()),
        DType::E4M3 => bytes.push(quant::e4m3::nearest(value as f32)),
        DType::E8M0 => bytes.push(quant::to_e8m0(value as f32)),
    }
}

/// The first element in `bytes`.
pub(crate) fn decode(dtype: DType, bytes: &[u8]) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        DType::I32 => f64::from(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        DType::BF16 => f64::from(bf16::from_le_bytes([bytes[0], bytes[1]])),
        DType::F16 => f64::from(f16::from_le_bytes([bytes[0], bytes[1]])),
        DType::I8 => f64::from(bytes[0] as i8),
        DType::U8 => f64::from(bytes[0]),
        DType::E4M3 => f64::from(quant::e4m3::value(bytes[0])),
        DType::E8M0 => f64::from(quant::e8m0(bytes[0])),
    }
}
