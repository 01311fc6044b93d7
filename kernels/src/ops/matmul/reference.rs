//! The product in f64.

use super::{Activation, FP8_SPAN, Heads, Math, Matmul};
use crate::ops::rope::reference::{Turning, Turns, expect_kept};
use crate::oracle::Oracle;
use crate::quant::e4m3;
use crate::spec::{DType, KernelError, tolerance};

impl Activation {
    /// The function in f64.
    #[must_use]
    pub fn eval(self, x: f64) -> f64 {
        match self {
            Self::None => x,
            Self::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
            }
            Self::GeluErf => 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2),
            Self::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
            Self::Relu => x.max(0.0),
            Self::Silu => x / (1.0 + (-x).exp()),
        }
    }

    /// A bound of the slope.
    fn slope(self) -> f64 {
        if self == Self::None { 1.0 } else { 1.13 }
    }

    /// The result with its error, for an argument known to within `inner`.
    ///
    /// The absolute term covers implementations that form `1 + tanh` or `1 + erf` in f32: for negative arguments they
    /// lose digits relative to the result, never more than a few ulp of the argument.
    pub(in crate::ops) fn with_error(self, x: f64, inner: f64) -> (f64, f64) {
        let value = self.eval(x);
        match self {
            Self::None | Self::Relu => (value, inner),
            _ => (value, tolerance::pointwise(inner, self.slope(), x)),
        }
    }
}

/// The activations of a row as 8-bit floats, and how far those may be off that lie so close to the middle of two that a kernel's
/// rounding of scale and quotient decides.
fn fp8_row(row: &[f64]) -> Vec<(f64, f64)> {
    let mut all = Vec::with_capacity(row.len());
    for span in row.chunks(FP8_SPAN) {
        // Kernels keep scales away from where their inverse overflows.
        let scale = span.iter().fold(1e-30f64, |max, v| max.max(v.abs())) / f64::from(e4m3::MAX);
        for &x in span {
            let near = |x: f64| f64::from(e4m3::value(e4m3::nearest(x as f32)));
            let quotient = x / scale;
            let (low, high) = (near(quotient * (1.0 - 1e-6)), near(quotient * (1.0 + 1e-6)));
            all.push((near(quotient) * scale, (high - low).abs() * scale));
        }
    }
    all
}

pub(super) fn reference(op: &Matmul, io: &mut Oracle) -> Result<(), KernelError> {
    let (m, k, n_out) = (op.x.size(0), op.w.k(), op.columns());
    let (mut x, bias) = (io.read(&op.x)?, io.biases(&op.w)?);
    if let Some(norm) = &op.norm {
        let weight = io.read(&norm.weight)?;
        for row in x.chunks_mut(k.max(1)) {
            let square = row.iter().map(|v| v * v).sum::<f64>() / k as f64;
            let scale = 1.0 / (square + f64::from(norm.eps)).sqrt();
            for (v, weight) in row.iter_mut().zip(&weight) {
                *v *= scale * (f64::from(norm.weight_offset) + weight);
            }
        }
    }
    let (w, zeros) = io.weights_and_zeros(&op.w)?;
    let residual = op.residual.as_ref().map(|view| io.read(view)).transpose()?;

    // Absolute error of one activation after the rounding that `math` allows, by row.
    let row_error: Vec<f64> = (0..m)
        .map(|row| match op.math {
            Math::Int8 => x[row * k..][..k].iter().fold(0.0f64, |max, v| max.max(v.abs())) / 254.0,
            Math::Exact | Math::Bf16 | Math::Fp8 => 0.0,
        })
        .collect();
    let fp8: Vec<(f64, f64)> =
        if op.math == Math::Fp8 { x.chunks(k.max(1)).flat_map(fp8_row).collect() } else { Vec::new() };

    let product = |row: usize, col: usize| {
        let (mut sum, mut magnitude, mut weight) = (0.0, 0.0, 0.0);
        for (a, b) in x[row * k..][..k].iter().zip(&w[col * k..][..k]) {
            sum += a * b;
            magnitude += (a * b).abs();
            weight += b.abs();
        }
        // Kernels may sum `x q` and `x zero` apart: `|q| + |zero| <= |q - zero| + 2 |zero|`.
        if let Some(zeros) = zeros.get(col * k..(col + 1) * k) {
            magnitude +=
                x[row * k..][..k].iter().zip(zeros).map(|(a, zero)| 2.0 * (a * zero).abs()).sum::<f64>();
        }
        // The sum of squares errs as another dot product does; half of it gets into the root.
        let magnitude = if op.norm.is_some() { 2.0 * magnitude } else { magnitude };
        if op.math == Math::Fp8 {
            // Kernels round all activations of a row or none, so that a product is one of two.
            let (mut rounded, mut slack) = (0.0, 0.0);
            for ((value, tie), b) in fp8[row * k..][..k].iter().zip(&w[col * k..][..k]) {
                rounded += value * b;
                slack += (tie * b).abs();
            }
            // Tensor cores of Hopper keep 13 bits below the largest of the products that they add at once.
            let exact = tolerance::dot(k, magnitude + bias[col].abs()) + 2f64.powi(-13) * magnitude;
            return ((sum + rounded) / 2.0 + bias[col], (sum - rounded).abs() / 2.0 + slack + exact);
        }
        let error = match op.math {
            Math::Exact | Math::Fp8 => tolerance::dot(k, magnitude + bias[col].abs()),
            Math::Bf16 => tolerance::rounded_dot(k, magnitude + bias[col].abs(), DType::BF16),
            Math::Int8 => tolerance::dot(k, magnitude + bias[col].abs()) + row_error[row] * weight,
        };
        (sum + bias[col], error)
    };

    if let Some(heads) = &op.heads {
        let all: Vec<(f64, f64)> = (0..m * n_out).map(|at| product(at / n_out, at % n_out)).collect();
        return of_heads(op, heads, io, all);
    }
    let picked = io.pick(m * n_out, if op.gated { 2 * k } else { k });
    let (mut values, mut errors) = (Vec::with_capacity(picked.len()), Vec::with_capacity(picked.len()));
    for &index in &picked {
        let (row, col) = (index / n_out, index % n_out);
        let (sum, error) = product(row, col);
        let (mut value, mut error) = op.act.with_error(sum, error);
        if op.gated {
            let (up, up_error) = product(row, col + n_out);
            error = error * up.abs() + up_error * value.abs() + error * up_error;
            value *= up;
            error += 2.0 * DType::F32.roundoff() * value.abs();
        }
        if let Some(residual) = &residual {
            value += residual[index];
            error += 2.0 * DType::F32.roundoff() * (value.abs() + residual[index].abs());
        }
        values.push(value);
        errors.push(error);
    }
    let indices = (picked.len() < m * n_out).then_some(picked);
    io.expect_some(&op.out, indices, values, errors);
    Ok(())
}

/// States what becomes of products `[m, n]`, each with its error, as heads.
fn of_heads(op: &Matmul, heads: &Heads, io: &mut Oracle, rows: Vec<(f64, f64)>) -> Result<(), KernelError> {
    let turns = Turns::new(
        io,
        &Turning {
            positions: &heads.positions,
            inv_freq: &heads.inv_freq,
            pair_axis: heads.pair_axis.as_ref(),
            style: heads.style,
            scaling: heads.attention_scaling,
        },
    )?;
    let (count, head_dim) = (heads.all(), op.w.n() / heads.all().max(1));
    let turned = heads.heads_q + heads.heads_kv;
    // Queries, keys and values with their errors.
    let mut all: [(Vec<f64>, Vec<f64>); 3] = Default::default();
    for (number, elements) in rows.chunks_exact(head_dim.max(1)).enumerate() {
        let (mut head, mut errors): (Vec<f64>, Vec<f64>) = elements.iter().copied().unzip();
        let of_row = number % count;
        if of_row < turned {
            turns.turn(number / count, &mut head, &mut errors);
        }
        let kind = usize::from(of_row >= heads.heads_q) + usize::from(of_row >= turned);
        all[kind].0.extend(head);
        all[kind].1.extend(errors);
    }
    let [(q, q_errors), (k, k_errors), (v, v_errors)] = all;
    io.expect(&op.out, q, q_errors);
    expect_kept(io, &heads.slots, &heads.k_pages, (&k, &k_errors))?;
    expect_kept(io, &heads.slots, &heads.v_pages, (&v, &v_errors))
}
