// out = x * sigmoid(gate)
//
// x: [rows, heads, d] of type X   gate: [rows, heads, d] of type GATE   out: [rows, heads, d] of type OUT; may be x itself
//
// A thread makes VEC neighbouring elements of a head: 8 where all heads begin at 16 bytes and d is a multiple of 8, else 1.
#include "cuda/include/math.cuh"
#include "cuda/include/vec.cuh"

struct Params {
    const X* x;
    const GATE* gate;
    OUT* out;
    u64 x_row;
    u64 x_head;
    u64 gate_row;
    u64 gate_head;
    u64 out_row;
    u64 out_head;
    u32 rows;
    u32 heads;
    u32 d;
    u32 padding;
};

DEVICE f32 sigmoid(f32 x) { return 1.0f / (1.0f + exp_f32(-x)); }

KERNEL(128, 8)(const __grid_constant__ Params p) {
    grid_wait();
    const u32 groups = p.d / VEC;
    const u64 item = static_cast<u64>(blockIdx.x) * 128 + threadIdx.x;
    const u64 row = item / groups / p.heads;
    if (row >= p.rows) return;
    const u64 head = item / groups % p.heads;
    const u64 col = item % groups * VEC;
    f32 x[VEC];
    f32 g[VEC];
    load_vec(x, p.x + row * p.x_row + head * p.x_head + col);
    load_vec(g, p.gate + row * p.gate_row + head * p.gate_head + col);
#pragma unroll
    for (int i = 0; i < VEC; ++i) x[i] *= sigmoid(g[i]);
    store_vec(p.out + row * p.out_row + head * p.out_head + col, x);
}
