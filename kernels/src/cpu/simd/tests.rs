//! Every level of the machine against f64.

use half::{bf16, f16};

use super::super::isa::Isa;
use super::*;

/// Every level of the machine, and portable vectors of other widths.
fn each_level<K: Kernel + Copy>(k: K) {
    for isa in Isa::available() {
        isa.run(k);
    }
    k.run(Portable::<2>);
    k.run(Portable::<4>);
    k.run(Portable::<16>);
}

/// Applies `f` lane by lane to all `xs`.
fn apply<S: Simd>(s: S, xs: &[f32], f: impl Fn(S::V) -> S::V) -> Vec<f32> {
    let mut out = vec![f32::NAN; xs.len()];
    for i in (0..xs.len()).step_by(S::LANES) {
        let n = S::LANES.min(xs.len() - i);
        // SAFETY: the arrays hold MAX_LANES values or more, and offsets keep clear of their ends.
        unsafe { s.store_n(out.as_mut_ptr().add(i), f(s.load_n(xs.as_ptr().add(i), n)), n) }
    }
    out
}

fn range(lo: f32, hi: f32, n: usize) -> Vec<f32> {
    (0..=n).map(|i| lo + (hi - lo) * i as f32 / n as f32).collect()
}

fn ulps(got: f32, want: f64) -> f64 {
    let w = want as f32;
    if got == w {
        return 0.0;
    }
    let ulp = f64::from(f32::from_bits(w.abs().to_bits() + 1)) - f64::from(w.abs());
    (f64::from(got) - want).abs() / ulp
}

/// Abramowitz and Stegun 7.1.5 and 7.1.14: series and continued fraction.
fn erf64(x: f64) -> f64 {
    let a = x.abs();
    if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..200 {
            term *= -a * a / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return (sum * std::f64::consts::FRAC_2_SQRT_PI).copysign(x);
    }
    let mut f = 0.0;
    for n in (1..120).rev() {
        f = f64::from(n) / 2.0 / (a + f);
    }
    (1.0 - (-a * a).exp() / (a + f) / std::f64::consts::PI.sqrt()).copysign(x)
}

#[derive(Clone, Copy)]
struct Math;
impl Kernel for Math {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let xs = range(-87.3, 88.7, 400_001);
        for (x, y) in xs.iter().zip(apply(s, &xs, |v| math::exp(s, v))) {
            let u = ulps(y, f64::from(*x).exp());
            assert!(u <= 2.0, "{:?} exp({x}) = {y}, {u} ulp", S::LEVEL);
        }
        let special = [f32::NEG_INFINITY, -1e30, -200.0, -88.0, 89.0, 1e30, f32::INFINITY, 0.0, f32::NAN];
        let y = apply(s, &special, |v| math::exp(s, v));
        assert_eq!(y[..8], [0.0, 0.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY, f32::INFINITY, 1.0]);
        assert!(y[8].is_nan());

        let mut xs = range(0.0, 1.0, 100_001);
        xs.extend([2e-38, 1e-30, 1e-7]);
        for (x, y) in xs.iter().zip(apply(s, &xs, |v| math::ln_1p(s, v))) {
            let u = ulps(y, f64::from(*x).ln_1p());
            assert!(u <= 4.0, "{:?} ln_1p({x}) = {y}, {u} ulp", S::LEVEL);
        }

        let mut xs = range(-12.0, 12.0, 100_001);
        xs.extend([-1e-20, 1e-20, 0.0, 1e-3, -1e4, 1e4, 100.0, -100.0]);
        let check = |name: &str, got: Vec<f32>, want: &dyn Fn(f64) -> f64, abs: f64, ulp: f64| {
            for (x, y) in xs.iter().zip(got) {
                let w = want(f64::from(*x));
                let (e, u) = ((f64::from(y) - w).abs(), ulps(y, w));
                assert!(
                    e <= abs || u <= ulp,
                    "{:?} {name}({x}) = {y}, expected {w}: {e:e}, {u} ulp",
                    S::LEVEL
                );
            }
        };
        check("tanh", apply(s, &xs, |v| math::tanh(s, v)), &f64::tanh, 0.0, 4.0);
        check("sigmoid", apply(s, &xs, |v| math::sigmoid(s, v)), &|x| 1.0 / (1.0 + (-x).exp()), 1e-38, 4.0);
        check("silu", apply(s, &xs, |v| math::silu(s, v)), &|x| x / (1.0 + (-x).exp()), 1e-36, 4.0);
        check(
            "quick_gelu",
            apply(s, &xs, |v| math::quick_gelu(s, v)),
            &|x| x / (1.0 + (-1.702 * x).exp()),
            1e-7,
            4.0,
        );
        let c = (2.0 / std::f64::consts::PI).sqrt();
        let gelu_tanh = |x: f64| x / (1.0 + (-2.0 * c * (x + 0.044715 * x * x * x)).exp());
        check("gelu_tanh", apply(s, &xs, |v| math::gelu_tanh(s, v)), &gelu_tanh, 2e-7, 4.0);
        check("erf", apply(s, &xs, |v| math::erf(s, v)), &erf64, 2e-7, 0.0);
        let gelu = |x: f64| x / 2.0 * (1.0 + erf64(x / 2f64.sqrt()));
        check("gelu_erf", apply(s, &xs, |v| math::gelu_erf(s, v)), &gelu, 4e-7, 4.0);
    }
}

#[test]
fn elementary_functions_are_as_accurate_as_stated() {
    each_level(Math);
}

#[derive(Clone, Copy)]
struct Memory;
impl Memory {
    #[inline(always)]
    fn narrow<S: Simd, T: StoreElem + std::fmt::Debug>(s: S, from: &[f32]) {
        for n in 0..=S::LANES {
            let mut out = [T::from_f32(7.0); MAX_LANES + 1];
            // SAFETY: the arrays hold MAX_LANES values or more, and offsets keep clear of their ends.
            unsafe {
                let v = s.load_n(from.as_ptr(), n);
                T::store_n(s, out.as_mut_ptr(), v, n);
                let mut back = [9.0f32; MAX_LANES + 1];
                s.store(back.as_mut_ptr(), T::load_n(s, out.as_ptr(), n));
                for i in 0..n {
                    let want = T::from_f32(from[i]);
                    let (o, w) = (out[i].to_f32(), want.to_f32());
                    assert!(o == w || (o.is_nan() && w.is_nan()), "{:?} {}: {o} {w}", S::LEVEL, from[i]);
                    assert!(back[i] == o || o.is_nan());
                }
                assert!(back[n..S::LANES].iter().all(|x| *x == 0.0));
                assert_eq!(back[S::LANES], 9.0);
            }
            assert!(out[n..].iter().all(|x| *x == T::from_f32(7.0)), "{:?} wrote past {n}", S::LEVEL);
        }
    }
}
impl Kernel for Memory {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let l = S::LANES;
        let mut bits = 1u32;
        for _ in 0..500 {
            let from: Vec<f32> = (0..MAX_LANES)
                .map(|i| {
                    bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    if i % 2 == 0 { f32::from_bits(bits) } else { (bits as f32 / 2e9 - 1.0) * 3.0 }
                })
                .collect();
            Self::narrow::<S, f32>(s, &from);
            Self::narrow::<S, bf16>(s, &from);
            Self::narrow::<S, f16>(s, &from);
        }
        let ties =
            [1.003_906_3, 1.011_718_8, -1.003_906_3, 65_520.0, 65_519.9, f32::INFINITY, f32::NAN, 1e-8];
        let ties = [ties, ties].concat();
        Self::narrow::<S, bf16>(s, &ties);
        Self::narrow::<S, f16>(s, &ties);

        let bytes: Vec<u8> = (0..=255).collect();
        let mut out = [0.0f32; MAX_LANES];
        for i in 0..256 - l {
            // SAFETY: the arrays hold MAX_LANES values or more, and offsets keep clear of their ends.
            unsafe {
                s.store(out.as_mut_ptr(), u8::load(s, bytes.as_ptr().add(i)));
                assert!((0..l).all(|j| out[j] == f32::from(bytes[i + j])));
                s.store(out.as_mut_ptr(), i8::load(s, bytes.as_ptr().add(i).cast()));
                assert!((0..l).all(|j| out[j] == f32::from(bytes[i + j] as i8)));
                s.store(out.as_mut_ptr(), i8::load_n(s, bytes.as_ptr().add(i).cast(), l - 1));
                assert!(out[l - 1] == 0.0 && out[0] == f32::from(bytes[i] as i8));
                s.store(out.as_mut_ptr(), s.load_u4(bytes.as_ptr().add(i)));
                assert!((0..l).all(|j| out[j] == f32::from((bytes[i + j / 2] >> (4 * (j % 2))) & 15)));
            }
        }
    }
}

#[test]
fn loads_widen_exactly_and_stores_round_to_even_within_bounds() {
    each_level(Memory);
}

#[derive(Clone, Copy)]
struct Lanes;
impl Kernel for Lanes {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let l = S::LANES;
        let a: Vec<f32> = (0..16).map(|i| (i as f32 - 5.5) * 1.25).collect();
        let b: Vec<f32> = (0..16).map(|i| 3.0 - (i * 7 % 16) as f32).collect();
        let get = |v: S::V| {
            let mut o = [0.0f32; MAX_LANES];
            // SAFETY: the arrays hold MAX_LANES values or more, and offsets keep clear of their ends.
            unsafe { s.store(o.as_mut_ptr(), v) };
            o[..l].to_vec()
        };
        // SAFETY: the arrays hold MAX_LANES values or more, and offsets keep clear of their ends.
        let (va, vb) = unsafe { (s.load(a.as_ptr()), s.load(b.as_ptr())) };
        let want = |f: &dyn Fn(f32, f32) -> f32| (0..l).map(|i| f(a[i], b[i])).collect::<Vec<_>>();
        assert_eq!(get(s.add(va, vb)), want(&|x, y| x + y));
        assert_eq!(get(s.sub(va, vb)), want(&|x, y| x - y));
        assert_eq!(get(s.mul(va, vb)), want(&|x, y| x * y));
        assert_eq!(get(s.div(va, vb)), want(&|x, y| x / y));
        assert_eq!(get(s.fma(va, vb, va)), want(&|x, y| x * y + x));
        assert_eq!(get(s.fnma(va, vb, va)), want(&|x, y| x - x * y));
        assert_eq!(get(s.min(va, vb)), want(&f32::min));
        assert_eq!(get(s.max(va, vb)), want(&f32::max));
        assert_eq!(get(s.neg(va)), want(&|x, _| -x));
        assert_eq!(get(s.abs(va)), want(&|x, _| x.abs()));
        assert_eq!(get(s.sqrt(s.abs(va))), want(&|x, _| x.abs().sqrt()));
        assert_eq!(get(s.copysign(va, vb)), want(&f32::copysign));
        assert_eq!(get(s.round(va)), want(&|x, _| x.round_ties_even()));
        assert_eq!(get(s.to_float(s.to_int(va))), want(&|x, _| x.round_ties_even()));
        assert_eq!(get(s.select(s.lt(va, vb), va, vb)), want(&|x, y| if x < y { x } else { y }));
        assert_eq!(get(s.select(s.le(va, va), va, vb)), want(&|x, _| x));
        for n in 0..=l {
            let v = get(s.select(s.first(n), va, vb));
            assert!((0..l).all(|i| v[i] == if i < n { a[i] } else { b[i] }));
        }
        assert_eq!(s.sum(va), a[..l].iter().sum::<f32>());
        assert_eq!(s.max_lane(vb), b[..l].iter().copied().fold(f32::MIN, f32::max));

        let k: Vec<i32> = (0..16).map(|i| i * 2 % 31).collect();
        let w: Vec<i32> = (0..16).map(|i: i32| i.wrapping_mul(0x1357_9bdf) ^ -5).collect();
        let geti = |v: S::I| {
            let mut o = [0i32; MAX_LANES];
            // SAFETY: the arrays hold MAX_LANES values or more, and offsets keep clear of their ends.
            unsafe { s.store_i(o.as_mut_ptr(), v) };
            o[..l].to_vec()
        };
        // SAFETY: the arrays hold MAX_LANES values or more, and offsets keep clear of their ends.
        let (vk, vw) = unsafe { (s.load_i(k.as_ptr()), s.load_i(w.as_ptr())) };
        let want = |f: &dyn Fn(i32, i32) -> i32| (0..l).map(|i| f(w[i], k[i])).collect::<Vec<_>>();
        assert_eq!(geti(s.add_i(vw, vk)), want(&i32::wrapping_add));
        assert_eq!(geti(s.sub_i(vw, vk)), want(&i32::wrapping_sub));
        assert_eq!(geti(s.and_i(vw, vk)), want(&|x, y| x & y));
        assert_eq!(geti(s.or_i(vw, vk)), want(&|x, y| x | y));
        assert_eq!(geti(s.xor_i(vw, vk)), want(&|x, y| x ^ y));
        assert_eq!(geti(s.shl_i::<5>(vw)), want(&|x, _| x << 5));
        assert_eq!(geti(s.shr_i::<5>(vw)), want(&|x, _| (x as u32 >> 5) as i32));
        assert_eq!(geti(s.sra_i::<5>(vw)), want(&|x, _| x >> 5));
        assert_eq!(geti(s.shr_lanes_i(vw, vk)), want(&|x, y| (x as u32 >> y) as i32));
        assert_eq!(geti(s.to_bits(s.of_bits(vw))), want(&|x, _| x));
        assert_eq!(geti(s.splat_i(-3)), want(&|_, _| -3));
        let (small, mut bytes) =
            ([-128, 127, 0, -1, 5, -77, 64, -64, 3, 2, 1, 99, -99, 7, -7, 126], [55i8; MAX_LANES + 1]);
        // SAFETY: the arrays hold MAX_LANES values or more.
        unsafe { s.store_i8(bytes.as_mut_ptr(), s.load_i(small.as_ptr())) };
        assert!((0..l).all(|i| i32::from(bytes[i]) == small[i]) && bytes[l] == 55);

        let mut m = [s.zero(); MAX_LANES];
        for (i, r) in m.iter_mut().take(l).enumerate() {
            let row: Vec<f32> = (0..16).map(|j| (100 * i + j) as f32).collect();
            // SAFETY: the arrays hold MAX_LANES values or more, and offsets keep clear of their ends.
            *r = unsafe { s.load(row.as_ptr()) };
        }
        // SAFETY: the arrays hold MAX_LANES values or more, and offsets keep clear of their ends.
        unsafe { s.transpose(m.as_mut_ptr()) };
        for (i, r) in m.iter().take(l).enumerate() {
            assert_eq!(get(*r), (0..l).map(|j| (100 * j + i) as f32).collect::<Vec<_>>());
        }
    }
}

#[test]
fn lane_operations_equal_scalar_ones() {
    each_level(Lanes);
}

#[derive(Clone, Copy)]
struct Fields;
impl Kernel for Fields {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let words: [i32; MAX_LANES] =
            std::array::from_fn(|i| (i as u32 + 1).wrapping_mul(0x9E37_79B9) as i32);
        let check = |v: S::V, bits: usize, j: usize| {
            let mut got = [0.0f32; MAX_LANES];
            // SAFETY: MAX_LANES values.
            unsafe { s.store(got.as_mut_ptr(), v) };
            for (got, word) in got.iter().zip(words).take(S::LANES) {
                let field = (word as u32) >> (bits * j) & ((1 << bits) - 1);
                let want = (field as f32 - (1 << (bits - 1)) as f32) * (1u64 << (32 - bits)) as f32;
                assert_eq!(*got, want, "{} field {j} of {bits} bits of {word:x}", S::LEVEL);
            }
        };
        // SAFETY: MAX_LANES values.
        let w = unsafe { s.load_i(words.as_ptr()) };
        let f = s.fields::<4>(w);
        check(s.field::<4, 0>(f), 4, 0);
        check(s.field::<4, 1>(f), 4, 1);
        check(s.field::<4, 2>(f), 4, 2);
        check(s.field::<4, 3>(f), 4, 3);
        check(s.field::<4, 4>(f), 4, 4);
        check(s.field::<4, 5>(f), 4, 5);
        check(s.field::<4, 6>(f), 4, 6);
        check(s.field::<4, 7>(f), 4, 7);
        let f = s.fields::<8>(w);
        check(s.field::<8, 0>(f), 8, 0);
        check(s.field::<8, 1>(f), 8, 1);
        check(s.field::<8, 2>(f), 8, 2);
        check(s.field::<8, 3>(f), 8, 3);
    }
}

#[test]
fn packed_fields() {
    each_level(Fields);
}

#[derive(Clone, Copy)]
struct Permute;
impl Kernel for Permute {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let from: [f32; MAX_LANES] = std::array::from_fn(|i| i as f32 + 0.5);
        let index: [i32; MAX_LANES] = std::array::from_fn(|i| ((i * 7 + 3) % S::LANES) as i32);
        let mut got = [0.0f32; MAX_LANES];
        // SAFETY: MAX_LANES values each.
        unsafe { s.store(got.as_mut_ptr(), s.permute(s.load(from.as_ptr()), s.load_i(index.as_ptr()))) };
        for (got, at) in got.iter().zip(index).take(S::LANES) {
            assert_eq!(*got, from[at as usize]);
        }
    }
}

#[test]
fn lanes_by_index() {
    each_level(Permute);
}
