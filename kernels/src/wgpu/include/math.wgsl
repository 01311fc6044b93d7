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

// 2 / pi in binary: 32 bits a word, after one word of zeros.
const TWO_OVER_PI = array<u32, 7>(
    0u, 0xa2f9836eu, 0x4e441529u, 0xfc2757d1u, 0xf534ddc0u, 0xdb629599u, 0x3c439041u,
);

// The high word of a product.
fn mul_high(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let cross = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let other = (a & 0xffffu) * (b >> 16u) + (cross & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (cross >> 16u) + (other >> 16u);
}

// (sin x, cos x) of any finite x.
//
// The reduction to |r| <= pi / 4 works on the bits of x (Payne and Hanek): with |x| = m 2^(e - 150), m of 24 bits, only a
// window of 2 / pi decides x 2 / pi modulo 4: bits above it add multiples of four, bits below it less than 2^-29 quarter
// turns. Integers are exact on every device, whereas a product of floats might melt with the sum after it into one
// operation, and then not be the rounded value that the caller means.
fn sin_cos(x: f32) -> vec2<f32> {
    let bits = bitcast<u32>(x) & 0x7fffffffu;
    var r = bitcast<f32>(bits);
    var quadrant = 0u;
    if bits > 0x3f490fdau && bits < 0x7f800000u {
        let m = (bits & 0x7fffffu) | 0x800000u;
        let first = (bits >> 23u) - 120u;
        let word = first >> 5u;
        let shift = first & 31u;
        let middle = TWO_OVER_PI[word + 1u];
        let high = (TWO_OVER_PI[word] << shift) | ((middle >> 1u) >> (31u - shift));
        let low = (middle << shift) | ((TWO_OVER_PI[word + 2u] >> 1u) >> (31u - shift));
        // Quarter turns in units of 2^-30, modulo four.
        let turns = m * high + mul_high(m, low);
        quadrant = (turns + 0x20000000u) >> 30u;
        r = f32(bitcast<i32>(turns - (quadrant << 30u))) * 1.46291808e-9;
    }
    let z = r * r;
    let s = fma(fma(fma(-1.9496317e-4, z, 8.331984e-3), z, -0.16666651) * z, r, r);
    let c = fma(fma(fma(fma(2.4439169e-5, z, -1.3887373e-3), z, 4.1666646e-2), z, -0.5), z, 1.0);
    // Odd quadrants swap the two; bit 1 of the quadrant negates the sine, that of the next one the cosine.
    let odd = (quadrant & 1u) == 1u;
    let sine_sign = ((quadrant << 30u) ^ bitcast<u32>(x)) & 0x80000000u;
    let cosine_sign = ((quadrant + 1u) << 30u) & 0x80000000u;
    return vec2<f32>(
        bitcast<f32>(bitcast<u32>(select(s, c, odd)) ^ sine_sign),
        bitcast<f32>(bitcast<u32>(select(c, s, odd)) ^ cosine_sign),
    );
}

// 2^x, at most 2^127; below 2^-126 the result is 0.
fn exp2_f32(x: f32) -> f32 {
    return exp2x4_f32(vec4<f32>(x)).x;
}

fn exp2x4_f32(x: vec4<f32>) -> vec4<f32> {
    let n = round(clamp(x, vec4<f32>(-127.0), vec4<f32>(127.0)));
    // In [-0.5, 0.5] wherever the result is not a limit, and exact.
    let r = clamp(x - n, vec4<f32>(-0.5), vec4<f32>(0.5));
    var y = vec4<f32>(1.54531629e-4);
    y = fma(y, r, vec4<f32>(1.33908634e-3));
    y = fma(y, r, vec4<f32>(9.61808256e-3));
    y = fma(y, r, vec4<f32>(5.55035711e-2));
    y = fma(y, r, vec4<f32>(2.40226508e-1));
    y = fma(y, r, vec4<f32>(6.93147188e-1));
    y = fma(y, r, vec4<f32>(1.0));
    let scaled = bitcast<vec4<f32>>(bitcast<vec4<i32>>(y) + (vec4<i32>(n) << vec4<u32>(23u)));
    return select(scaled, vec4<f32>(0.0), x < vec4<f32>(-126.0));
}
