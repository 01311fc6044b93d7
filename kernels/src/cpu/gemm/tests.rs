//! Products against f64, at every level of the machine and with portable vectors of other widths.

use half::{bf16, f16};

use super::*;

/// A matrix in one of the float types, with padding between rows that holds NaN.
pub(super) struct Matrix {
    bytes: Vec<u8>,
    dtype: DType,
    stride: usize,
    cols: usize,
}

pub(super) struct Rng(pub u64);
impl Rng {
    /// Uniform in [-1, 1).
    pub fn f32(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32) / (1 << 23) as f32 - 1.0
    }
}

impl Matrix {
    pub fn new(rows: usize, cols: usize, pad: usize, dtype: DType, mut value: impl FnMut() -> f32) -> Matrix {
        let stride = cols + pad;
        let mut bytes = Vec::new();
        for i in 0..rows * stride {
            let v = if i % stride < cols { value() } else { f32::NAN };
            match dtype {
                DType::BF16 => bytes.extend(bf16::from_f32(v).to_le_bytes()),
                DType::F16 => bytes.extend(f16::from_f32(v).to_le_bytes()),
                _ => bytes.extend(v.to_le_bytes()),
            }
        }
        Matrix { bytes, dtype, stride, cols }
    }

    pub fn operand(&self) -> Operand {
        Operand { ptr: self.bytes.as_ptr(), dtype: self.dtype, stride: self.stride }
    }

    pub fn operand_mut(&mut self) -> OperandMut {
        OperandMut { ptr: self.bytes.as_mut_ptr(), dtype: self.dtype, stride: self.stride }
    }

    pub fn at(&self, row: usize, col: usize) -> f64 {
        // SAFETY: within the matrix.
        f64::from(unsafe { epilogue::read(self.dtype, self.bytes.as_ptr(), row * self.stride + col) })
    }

    fn padding_is_untouched(&self) -> bool {
        let rows = self.bytes.len() / self.dtype.size() / self.stride.max(1);
        (0..rows).all(|r| (self.cols..self.stride).all(|c| self.at(r, c).is_nan()))
    }
}

#[derive(Clone, Debug)]
pub(super) struct Case {
    pub m: usize,
    pub k: usize,
    pub parts: Vec<usize>,
    pub x: DType,
    pub w: DType,
    pub out: DType,
    pub act: Activation,
    pub gated: bool,
    pub bias: bool,
    pub residual: Option<DType>,
}

impl Case {
    pub fn plain(m: usize, n: usize, k: usize) -> Case {
        Case {
            m,
            k,
            parts: vec![n],
            x: DType::F32,
            w: DType::F32,
            out: DType::F32,
            act: Activation::None,
            gated: false,
            bias: false,
            residual: None,
        }
    }
}

fn activation(act: Activation, x: f64) -> f64 {
    match act {
        Activation::None => x,
        Activation::GeluTanh => x / (1.0 + (-1.595_769_121_605_731 * (x + 0.044715 * x * x * x)).exp()),
        // Within 2e-7 of erf, far below the tolerance used here.
        Activation::GeluErf => {
            let z = (x / 2f64.sqrt()).abs();
            let (mut term, mut sum) = (z, z);
            for n in 1..120 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            let erf = if z > 4.0 { 1.0 } else { sum * std::f64::consts::FRAC_2_SQRT_PI };
            x / 2.0 * (1.0 + erf.copysign(x))
        }
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

/// Runs `case` through `run` and compares each element; `round_x` is the relative rounding of `x` that is allowed.
pub(super) fn check(case: &Case, round_x: f64, what: &str, run: &dyn Fn(&GemmArgs)) {
    let mut rng = Rng(case.m as u64 * 1_000_003 + case.k as u64 * 17 + case.parts[0] as u64);
    let x = Matrix::new(case.m, case.k, 3, case.x, || rng.f32());
    let ws: Vec<Matrix> =
        case.parts.iter().map(|n| Matrix::new(*n, case.k, 5, case.w, || rng.f32())).collect();
    let biases: Vec<Matrix> =
        case.parts.iter().map(|n| Matrix::new(*n, 1, 0, case.w, || rng.f32())).collect();
    // SAFETY: the matrices live to the end of this function.
    let sources: Vec<Dense> = ws.iter().map(|w| unsafe { Dense::new(w.operand()) }).collect();
    let parts: Vec<Part> = (0..ws.len())
        .map(|i| Part {
            rows: case.parts[i],
            source: &sources[i],
            bias: case.bias.then(|| biases[i].operand()),
        })
        .collect();
    let n: usize = case.parts.iter().sum();
    let n_out = if case.gated { n / 2 } else { n };
    let residual = case.residual.map(|d| Matrix::new(case.m, n_out, 1, d, || rng.f32()));
    let mut out = Matrix::new(case.m, n_out, 2, case.out, || f32::NAN);
    run(&GemmArgs {
        m: case.m,
        k: case.k,
        x: x.operand(),
        rows: None,
        parts: &parts,
        act: case.act,
        gated: case.gated,
        residual: residual.as_ref().map(Matrix::operand),
        residual_row: ResidualRow::Same,
        out: out.operand_mut(),
    });
    assert!(out.padding_is_untouched(), "{what} {case:?}: wrote between rows");

    let stored: Vec<(usize, usize)> =
        (0..ws.len()).flat_map(|p| (0..case.parts[p]).map(move |r| (p, r))).collect();
    let product = |i: usize, j: usize| {
        let (p, r) = stored[j];
        let (mut sum, mut abs) = (0.0, 0.0);
        for c in 0..case.k {
            let t = x.at(i, c) * ws[p].at(r, c);
            sum += t;
            abs += t.abs();
        }
        if case.bias {
            sum += biases[p].at(r, 0);
            abs += biases[p].at(r, 0).abs();
        }
        (sum, abs)
    };
    // Above a few million multiply-adds, a sample of rows.
    let step = (case.m * n * case.k / 4_000_000).max(1);
    for i in (0..case.m).step_by(step) {
        for j in 0..n_out {
            let (y, abs) = product(i, j);
            let mut tolerance = (case.k as f64 * 6e-8 + round_x) * abs * 1.2 + 1e-6;
            let mut want = activation(case.act, y);
            if case.gated {
                let (up, up_abs) = product(i, j + n_out);
                tolerance = tolerance * up.abs().max(1.0)
                    + (case.k as f64 * 6e-8 + round_x) * up_abs * 1.2 * want.abs().max(1.0)
                    + 1e-6;
                want *= up;
            }
            if let Some(r) = &residual {
                want += r.at(i, j);
            }
            tolerance += want.abs() * case.out.roundoff();
            let got = out.at(i, j);
            assert!((got - want).abs() <= tolerance, "{what} {case:?} [{i}, {j}]: {got}, expected {want}");
        }
    }
}

pub(super) fn everywhere(case: &Case) {
    for threads in [1, 3] {
        let pool = Pool::new(threads);
        for isa in Isa::available() {
            // SAFETY: `check` makes matrices of the right sizes.
            check(case, 0.0, isa.level().name(), &|args| unsafe { gemm(isa, &pool, args) });
        }
    }
}

#[test]
fn edge_sizes() {
    for m in [0, 1, 2, 5, 6, 7, 13, 14, 15, 29, 193] {
        for n in [0, 1, 7, 15, 16, 17, 31, 32, 33, 67] {
            for k in [0, 1, 7, 16, 17, 255] {
                everywhere(&Case::plain(m, n, k));
            }
        }
    }
}

#[test]
fn several_blocks_of_k_and_rows() {
    for (m, n, k) in [(1, 64, 257), (14, 33, 513), (197, 95, 768), (600, 40, 300), (3, 515, 1031)] {
        everywhere(&Case::plain(m, n, k));
    }
}

#[test]
fn types_parts_gates_and_epilogues() {
    let floats = [DType::F32, DType::BF16, DType::F16];
    let acts = [
        Activation::None,
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::QuickGelu,
        Activation::Silu,
        Activation::Relu,
    ];
    let mut i = 0;
    for parts in [vec![70], vec![48, 16, 16], vec![5, 3, 24], vec![33, 33]] {
        for act in acts {
            for gated in [false, true] {
                i += 1;
                everywhere(&Case {
                    m: [1, 9, 31][i % 3],
                    k: [37, 64, 290][i / 3 % 3],
                    parts: parts.clone(),
                    x: floats[i % 3],
                    w: floats[i / 2 % 3],
                    out: floats[i / 3 % 3],
                    act,
                    gated,
                    bias: i % 4 != 0,
                    residual: (i % 3 != 0).then(|| floats[i / 5 % 3]),
                });
            }
        }
    }
}

#[test]
fn residual_may_be_the_output() {
    let pool = Pool::new(2);
    let mut rng = Rng(7);
    let x = Matrix::new(20, 30, 0, DType::F32, || rng.f32());
    let w = Matrix::new(40, 30, 0, DType::F32, || rng.f32());
    let mut out = Matrix::new(20, 40, 0, DType::F32, || 0.5);
    // SAFETY: the matrices outlive the call.
    let dense = unsafe { Dense::new(w.operand()) };
    let parts = [Part { rows: 40, source: &dense, bias: None }];
    let o = out.operand_mut();
    let args = GemmArgs {
        m: 20,
        k: 30,
        x: x.operand(),
        rows: None,
        parts: &parts,
        act: Activation::None,
        gated: false,
        residual: Some(Operand { ptr: o.ptr, dtype: o.dtype, stride: o.stride }),
        residual_row: ResidualRow::Same,
        out: o,
    };
    // SAFETY: as above.
    unsafe { gemm(Isa::best(), &pool, &args) };
    for (i, j) in [(0, 0), (19, 39), (7, 33)] {
        let want: f64 = 0.5 + (0..30).map(|c| x.at(i, c) * w.at(j, c)).sum::<f64>();
        assert!((out.at(i, j) - want).abs() < 1e-5);
    }
}

#[test]
fn bf16_products() {
    for (m, n, k) in
        [(1, 1, 1), (5, 17, 7), (14, 33, 64), (29, 70, 513), (31, 40, 1030), (200, 96, 768), (15, 33, 2100)]
    {
        for x in [DType::F32, DType::BF16, DType::F16] {
            let case = Case { x, w: DType::BF16, parts: vec![n, 3], bias: true, ..Case::plain(m, n, k) };
            let pool = Pool::new(2);
            for isa in Isa::available().into_iter().chain([Isa::best().without_extensions()]) {
                // SAFETY: `check` makes matrices of the right sizes.
                check(&case, 1.0 / 256.0, &isa.to_string(), &|args| unsafe {
                    assert!(gemm_bf16(isa, &pool, args));
                });
            }
        }
    }
    let pool = Pool::new(1);
    // SAFETY: as above.
    check(&Case::plain(3, 4, 5), 0.0, "weights that are not bf16", &|args| unsafe {
        assert!(!gemm_bf16(Isa::best(), &pool, args));
        gemm(Isa::best(), &pool, args);
    });
}

#[test]
#[cfg(target_arch = "x86_64")]
fn products_on_tiles() {
    let isa = Isa::best();
    let pool = Pool::new(2);
    for (m, n, k) in
        [(1, 1, 1), (5, 17, 7), (16, 33, 64), (17, 70, 513), (32, 40, 1030), (200, 96, 768), (47, 33, 2100)]
    {
        for x in [DType::F32, DType::BF16, DType::F16] {
            let case = Case { x, w: DType::BF16, parts: vec![n, 3], bias: true, ..Case::plain(m, n, k) };
            for (round, error) in [(true, 1.0 / 256.0), (false, 0.0)] {
                for w in [DType::BF16, DType::F32, DType::F16] {
                    let case = Case { w, parts: case.parts.clone(), ..case };
                    // SAFETY: `check` makes matrices of the right sizes.
                    check(&case, error, &format!("{isa} rounded {round} {x:?} {w:?}"), &|args| unsafe {
                        if !gemm_amx(isa, &pool, args, round) {
                            assert!(!isa.amx());
                            gemm(isa, &pool, args);
                        }
                    });
                }
            }
        }
    }
}

/// Infinite and largest values stay what they are where values are split, and an f32 keeps all its bits.
#[test]
#[cfg(target_arch = "x86_64")]
fn split_values_on_tiles() {
    let (isa, pool) = (Isa::best(), Pool::new(1));
    if !isa.amx() {
        return println!("no tiles here");
    }
    let values = [
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1.0 + f32::EPSILON,
        -0.1,
        3.0e-30,
        16_777_215.0,
    ];
    let mut next = values.into_iter();
    let x = Matrix::new(values.len(), 1, 0, DType::F32, || next.next().unwrap());
    let w = Matrix::new(1, 1, 0, DType::BF16, || 1.0);
    let mut out = Matrix::new(values.len(), 1, 0, DType::F32, || 0.5);
    // SAFETY: the matrices outlive the call.
    let dense = unsafe { Dense::new(w.operand()) };
    let parts = [Part { rows: 1, source: &dense, bias: None }];
    let args = GemmArgs {
        m: values.len(),
        k: 1,
        x: x.operand(),
        rows: None,
        parts: &parts,
        act: Activation::None,
        gated: false,
        residual: None,
        residual_row: ResidualRow::Same,
        out: out.operand_mut(),
    };
    // SAFETY: as above.
    assert!(unsafe { gemm_amx(isa, &pool, &args, false) });
    for (i, value) in values.into_iter().enumerate() {
        let got = out.at(i, 0) as f32;
        assert!(got == value || got.is_nan() && value.is_nan(), "{value}: {got}");
    }
}

/// `[n, k]` grouped integers with their exact values.
struct Ints {
    packed: Vec<i32>,
    scales: Vec<f32>,
    zeros: Vec<i32>,
    values: Vec<f64>,
}

impl Ints {
    fn new(n: usize, k: usize, bits: usize, group: usize, zero: bool, rng: &mut Rng) -> Ints {
        let words = |count: usize| (count * bits).div_ceil(32);
        let groups = k.div_ceil(group);
        let mut field = || (((rng.f32() + 1.0) / 2.0 * (1 << bits) as f32) as i32).min((1 << bits) - 1);
        let put = |to: &mut Vec<i32>, word: usize, at: usize, u: i32| {
            to[word] |= ((u as u32) << (at % (32 / bits) * bits)) as i32;
        };
        let mut all = Ints {
            packed: vec![0; n * words(k)],
            scales: (0..n * groups).map(|i| 0.01 + (i % 7) as f32 * 0.003).collect(),
            zeros: if zero { vec![0; words(n) * groups] } else { Vec::new() },
            values: Vec::new(),
        };
        let mut z = vec![1 << (bits - 1); n * groups];
        if zero {
            for r in 0..n {
                for g in 0..groups {
                    z[r * groups + g] = field();
                    put(&mut all.zeros, r / (32 / bits) * groups + g, r, z[r * groups + g]);
                }
            }
        }
        for r in 0..n {
            for c in 0..k {
                let u = field();
                put(&mut all.packed, r * words(k) + c / (32 / bits), c, u);
                let g = r * groups + c / group;
                all.values.push(f64::from(u - z[g]) * f64::from(all.scales[g]));
            }
        }
        all
    }
}

#[test]
fn int8_products() {
    use crate::quant::grouped::cpu::{Floats, GroupedRows, Zeros};
    use crate::spec::Code;
    let mut rng = Rng(3);
    let mut shapes = vec![(1, 1, 1), (3, 17, 31), (14, 33, 64), (6, 40, 130), (29, 70, 513), (31, 33, 1160)];
    shapes.extend([(200, 40, 2048), (15, 33, 4260)]);
    let pool = Pool::new(2);
    let plain: Vec<Isa> = Isa::available().iter().map(|i| i.without_extensions()).collect();
    for (i, (m, n, k)) in shapes.into_iter().enumerate() {
        for bits in [4, 8] {
            for (group, zero) in [(32, true), (64, false), (128, true), (1 << 40, i % 2 == 0)] {
                let w = Ints::new(n, k, bits, group, zero, &mut rng);
                let groups = k.div_ceil(group);
                let rows = GroupedRows {
                    packed: w.packed.as_ptr(),
                    words: (k * bits).div_ceil(32),
                    scales: Floats { ptr: w.scales.as_ptr().cast(), dtype: DType::F32, stride: groups },
                    factor: 1.0,
                    zeros: if zero { Zeros::Codes(w.zeros.as_ptr(), groups) } else { Zeros::None },
                    code: if bits == 4 { Code::Int4 } else { Code::Int8 },
                    group,
                };
                let x = Matrix::new(m, k, 1, DType::F32, || rng.f32() * 3.0);
                let parts = [Part { rows: n, source: &rows, bias: None }];
                for isa in Isa::available().iter().chain(&plain) {
                    let mut out = Matrix::new(m, n, 1, DType::F32, || f32::NAN);
                    let args = GemmArgs {
                        m,
                        k,
                        x: x.operand(),
                        rows: None,
                        parts: &parts,
                        act: Activation::None,
                        gated: false,
                        residual: None,
                        residual_row: ResidualRow::Same,
                        out: out.operand_mut(),
                    };
                    // SAFETY: the matrices have these sizes and outlive the call.
                    assert!(unsafe { gemm_int8(*isa, &pool, &args) });
                    assert!(out.padding_is_untouched());
                    for (r, c) in (0..m.min(40)).flat_map(|r| (0..n).map(move |c| (r, c))) {
                        let (mut want, mut bound) = (0.0, 1e-4);
                        for j in 0..k {
                            let v = w.values[c * k + j];
                            want += x.at(r, j) * v;
                            bound += v.abs() * 3.0 / 253.0;
                        }
                        let got = out.at(r, c);
                        assert!(
                            (got - want).abs() <= bound,
                            "{isa} {m}x{n}x{k} bits {bits} group {group}: {got} {want}"
                        );
                        // Rounding errors are independent: far below the bound where there are many.
                        assert!(
                            k < 500 || (got - want).abs() <= bound / 4.0,
                            "{isa} bits {bits} group {group}: {got} {want}"
                        );
                    }
                }
            }
        }
    }
}
