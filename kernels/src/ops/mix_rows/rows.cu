// out[i] = sum_t weights[i, t] * src[ids[i, t]], added to out[i] if ADD
//
// src: [limit, d] of type X   ids: i32 [rows, taps], or null: in order   weights: f32 [rows, taps]   out: [rows, d] of type OUT
//
// A block makes a stretch of one row, so that few long rows, as in decoding, still make several blocks. Ids that are negative or
// beyond `src` add nothing.
#include "cuda/include/ptx.cuh"

struct Params {
    const X* src;
    const i32* ids;
    const f32* weights;
    OUT* out;
    u64 src_stride;
    u64 out_stride;
    u32 taps;
    u32 d;
    u32 limit;
    u32 columns;
};

KERNEL(128, 8)(const __grid_constant__ Params p) {
    const u32 chunks = (p.d + p.columns - 1) / p.columns;
    const u32 i = blockIdx.x / chunks;
    grid_wait();
    const i32* ids = p.ids == nullptr ? nullptr : p.ids + static_cast<u64>(i) * p.taps;
    const f32* weights = p.weights + static_cast<u64>(i) * p.taps;
    OUT* to = p.out + i * p.out_stride;
    const u32 first = (blockIdx.x % chunks) * p.columns;
    const u32 end = min_of(first + p.columns, p.d);
    for (u32 col = first + threadIdx.x; col < end; col += blockDim.x) {
        f32 sum = ADD ? to_f32(to[col]) : 0.0f;
        for (u32 tap = 0; tap < p.taps; ++tap) {
            // Negative ids become numbers beyond every row.
            const u32 id = ids == nullptr ? i * p.taps + tap : static_cast<u32>(ids[tap]);
            if (id < p.limit) sum = fmaf(weights[tap], to_f32(p.src[id * p.src_stride + col]), sum);
        }
        to[col] = from_f32<OUT>(sum);
    }
}
