// Patch (r, c) of a picture goes to token (r / factor, c / factor), block order(r % factor, c % factor): a permutation.
//
// x: [images * grid_h * grid_w, d] of type X   out: [images * (grid_h / factor) * (grid_w / factor), factor^2 * d] of type OUT
//
// A warp copies `columns` features of one patch, which are contiguous on both sides, in vectors of VEC elements: VEC = 8 where
// all rows begin at 16 bytes and d is a multiple of 8, with loads and stores of 16 bytes; else VEC = 1.
#include "cuda/include/vec.cuh"

struct Params {
    const X* x;
    OUT* out;
    u64 x_stride;
    u64 out_stride;
    // Warps' shares: patches, times the stretches of one.
    u32 items;
    u32 d;
    u32 columns;
    u32 grid_w;
    u32 factor;
    u32 column_first;
};

KERNEL(THREADS, 1)(const __grid_constant__ Params p) {
    grid_wait();
    const u32 item = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (item >= p.items) return;
    const u32 stretches = (p.d + p.columns - 1) / p.columns;
    const u32 patch = item / stretches;
    // Rows of patches count through all pictures, which hold whole blocks.
    const u32 r = patch / p.grid_w;
    const u32 c = patch % p.grid_w;
    const u32 token = r / p.factor * (p.grid_w / p.factor) + c / p.factor;
    const u32 dy = r % p.factor;
    const u32 dx = c % p.factor;
    const u32 block = p.column_first ? dx * p.factor + dy : dy * p.factor + dx;
    const X* from = p.x + patch * p.x_stride;
    OUT* to = p.out + token * p.out_stride + static_cast<u64>(block) * p.d;
    const u32 first = item % stretches * p.columns;
    const u32 end = min_of(first + p.columns, p.d);
#pragma unroll 4
    for (u32 col = first + lane_id() * VEC; col < end; col += 32 * VEC) {
        f32 features[VEC];
        load_vec(features, from + col);
        store_vec(to + col, features);
    }
}
