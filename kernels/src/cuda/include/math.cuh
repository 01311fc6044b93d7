// Functions whose results are the same on every device: integers and fused multiply-adds alone.
#pragma once
#include "cuda/include/types.cuh"

// e^x to 2 ulp for x up to 88.7, which larger ones give too; 0 below -87.3.
DEVICE f32 exp_f32(f32 x) {
    const f32 clamped = fminf(fmaxf(x, -87.3f), 88.7f);
    const f32 n = rintf(clamped * 1.44269504f);
    // ln 2 in two parts; the first has few bits, so that its product with n is exact.
    const f32 r = fmaf(n, -1.42860682e-6f, fmaf(n, -0.693145752f, clamped));
    f32 p = 1.38888889e-3f;
    p = fmaf(p, r, 8.33333333e-3f);
    p = fmaf(p, r, 4.16666667e-2f);
    p = fmaf(p, r, 1.66666667e-1f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    const i32 exponent = static_cast<i32>(n);
    const i32 half = exponent / 2;
    const f32 scale = __uint_as_float((half + 127) << 23) * __uint_as_float((exponent - half + 127) << 23);
    return x < -87.3f ? 0.0f : p * scale;
}

// Word `i` of 2 / pi in binary, 32 bits each, after one word of zeros. Comparisons, because a table would lie in memory.
DEVICE u32 two_over_pi(u32 i) {
    const u32 low = i == 0 ? 0u : i == 1 ? 0xa2f9836eu : i == 2 ? 0x4e441529u : 0xfc2757d1u;
    const u32 high = i == 4 ? 0xf534ddc0u : i == 5 ? 0xdb629599u : 0x3c439041u;
    return i < 4 ? low : high;
}

// (sin x, cos x) of any finite x, to 2 ulp of 1.
//
// The reduction to |r| <= pi / 4 works on the bits of x (Payne and Hanek): with |x| = m 2^(e - 150), m of 24 bits, only a
// window of 2 / pi decides x 2 / pi modulo 4: bits above it add multiples of four, bits below it less than 2^-29 quarter turns.
DEVICE float2 sin_cos(f32 x) {
    const u32 sign = __float_as_uint(x) & 0x80000000u;
    const u32 bits = __float_as_uint(x) ^ sign;
    f32 r = __uint_as_float(bits);
    u32 quadrant = 0;
    if (bits > 0x3f490fdau && bits < 0x7f800000u) {
        const u32 m = (bits & 0x7fffffu) | 0x800000u;
        const u32 first = (bits >> 23) - 120;
        const u32 word = first / 32;
        const u32 shift = first % 32;
        const u64 upper = static_cast<u64>(two_over_pi(word)) << 32 | two_over_pi(word + 1);
        const u64 lower = static_cast<u64>(two_over_pi(word + 1)) << 32 | two_over_pi(word + 2);
        const u32 high = static_cast<u32>((upper << shift) >> 32);
        const u32 low = static_cast<u32>((lower << shift) >> 32);
        // Quarter turns in units of 2^-30, modulo four.
        const u32 turns = m * high + static_cast<u32>((static_cast<u64>(m) * low) >> 32);
        quadrant = (turns + 0x20000000u) >> 30;
        r = static_cast<f32>(static_cast<i32>(turns - (quadrant << 30))) * 1.46291808e-9f;
    }
    const f32 z = r * r;
    const f32 s = fmaf(fmaf(fmaf(-1.9496317e-4f, z, 8.331984e-3f), z, -0.16666651f) * z, r, r);
    const f32 c = fmaf(fmaf(fmaf(fmaf(2.4439169e-5f, z, -1.3887373e-3f), z, 4.1666646e-2f), z, -0.5f), z, 1.0f);
    // Odd quadrants swap the two; bit 1 of the quadrant negates the sine, that of the next one the cosine.
    const bool odd = quadrant & 1;
    const u32 sine_sign = ((quadrant & 2u) << 30) ^ sign;
    const u32 cosine_sign = ((quadrant + 1u) & 2u) << 30;
    return make_float2(__uint_as_float(__float_as_uint(odd ? c : s) ^ sine_sign),
                       __uint_as_float(__float_as_uint(odd ? s : c) ^ cosine_sign));
}
