// Functions that WGSL leaves to the device, to a few ulp on every device: drivers' own exp and tanh are often good to 16
// bits only.

// e^x. Below -87 the result is 0, above 88.7 infinity is not reached but the largest power that fits.
fn exp_f32(x: f32) -> f32 {
    let clamped = clamp(x, -87.3, 88.7);
    let n = round(clamped * 1.44269504);
    // ln 2 in two parts; the first has few bits, so that its product with n is exact.
    let r = fma(n, -1.42860682e-6, fma(n, -0.693145752, clamped));
    var p = 1.38888889e-3;
    p = fma(p, r, 8.33333333e-3);
    p = fma(p, r, 4.16666667e-2);
    p = fma(p, r, 1.66666667e-1);
    p = fma(p, r, 0.5);
    p = fma(p, r, 1.0);
    p = fma(p, r, 1.0);
    let half = i32(n) / 2;
    let scale = bitcast<f32>((half + 127) << 23u) * bitcast<f32>((i32(n) - half + 127) << 23u);
    return select(p * scale, 0.0, x < -87.3);
}

fn exp4_f32(x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(exp_f32(x.x), exp_f32(x.y), exp_f32(x.z), exp_f32(x.w));
}

// 1 / (1 + e^-x)
fn sigmoid(x: f32) -> f32 {
    let e = exp_f32(-abs(x));
    return select(e, 1.0, x >= 0.0) / (1.0 + e);
}

// tanh x, without loss of digits near 0.
fn tanh_f32(x: f32) -> f32 {
    let a = abs(x);
    if a < 0.15 {
        let s = x * x;
        return x * (1.0 + s * (-0.333333333 + s * (0.133333333 + s * (-0.0539682540 + s * 0.0218694885))));
    }
    let e = exp_f32(-2.0 * a);
    return sign(x) * (1.0 - e) / (1.0 + e);
}

// erf x by the rational approximation of its complement (Numerical Recipes, erfcc with Chebyshev coefficients), relative
// error of 1 - erf below 1.2e-7.
fn erfc_positive(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.5 * x);
    var p = 0.17087277;
    p = fma(p, t, -0.82215223);
    p = fma(p, t, 1.48851587);
    p = fma(p, t, -1.13520398);
    p = fma(p, t, 0.27886807);
    p = fma(p, t, -0.18628806);
    p = fma(p, t, 0.09678418);
    p = fma(p, t, 0.37409196);
    p = fma(p, t, 1.00002368);
    p = fma(p, t, -1.26551223);
    return t * exp_f32(fma(-x, x, p));
}

// The standard normal distribution function.
fn normal_cdf(x: f32) -> f32 {
    let tail = 0.5 * erfc_positive(abs(x) * 0.707106781);
    return select(tail, 1.0 - tail, x >= 0.0);
}
