// out = scale * col * row * act(cap(x)) * by + add,  cap(x) = softcap * tanh(x / softcap)
//
// x, by: [rows, d] of one type   col: [d]   row: f32 [rows]   add, out: [rows, d] of one type
//
// x is held between low and high first, if it is bounded. A thread takes VEC neighbouring elements of a row, a block THREADS such groups. Absent operands are null pointers.
#include "ops/matmul/epilogue.cuh"

struct Params {
    const void* x;
    const void* col;
    const f32* row;
    const void* by;
    const void* add;
    void* out;
    i64 x_stride;
    i64 by_stride;
    i64 add_stride;
    i64 out_stride;
    u32 x_type;
    u32 col_type;
    u32 out_type;
    u32 d;
    u32 act;
    f32 scale;
    f32 softcap;
    f32 low;
    f32 high;
    u32 bounded;
};

// tanh x, without loss of digits near 0.
DEVICE f32 tanh_of(f32 x) {
    const f32 a = fabsf(x);
    if (a < 0.15f) {
        const f32 s = x * x;
        return x * fmaf(s, fmaf(s, fmaf(s, fmaf(s, 0.0218694885f, -0.0539682540f), 0.133333333f), -0.333333333f), 1.0f);
    }
    const f32 e = exp2_fast(-2.8853900818f * a);
    const f32 t = (1.0f - e) * reciprocal_fast(1.0f + e);
    return x < 0.0f ? -t : t;
}

KERNEL(128, 8)(const __grid_constant__ Params p) {
    const u32 chunks = (p.d + 128 * VEC - 1) / (128 * VEC);
    const i64 row = blockIdx.x / chunks;
    const u32 at = (blockIdx.x % chunks * 128 + threadIdx.x) * VEC;
    grid_wait();
    if (at >= p.d) return;
    f32 v[VEC], other[VEC];
    load_group(v, p.x, p.x_type, row * p.x_stride + at);
    if (p.bounded) {
#pragma unroll
        for (int i = 0; i < VEC; ++i) v[i] = fminf(fmaxf(v[i], p.low), p.high);
    }
    if (p.softcap != 0.0f) {
        const f32 inverse = 1.0f / p.softcap;
#pragma unroll
        for (int i = 0; i < VEC; ++i) v[i] = p.softcap * tanh_of(v[i] * inverse);
    }
    activate_all(v, p.act);
    const f32 scale = p.row ? p.scale * p.row[row] : p.scale;
#pragma unroll
    for (int i = 0; i < VEC; ++i) v[i] *= scale;
    if (p.col) {
        load_group(other, p.col, p.col_type, at);
#pragma unroll
        for (int i = 0; i < VEC; ++i) v[i] *= other[i];
    }
    if (p.by) {
        load_group(other, p.by, p.x_type, row * p.by_stride + at);
#pragma unroll
        for (int i = 0; i < VEC; ++i) v[i] *= other[i];
    }
    if (p.add) {
        load_group(other, p.add, p.out_type, row * p.add_stride + at);
#pragma unroll
        for (int i = 0; i < VEC; ++i) v[i] += other[i];
    }
    store_group(p.out, p.out_type, row * p.out_stride + at, v);
}
