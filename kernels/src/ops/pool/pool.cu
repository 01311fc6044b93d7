// Reduces rows to one per segment or per block of a grid: mean, largest, first or last.
//
// x: [rows, d] of type X   segments: i32 [outputs + 1], ascending, or null   out: [outputs, d] of type OUT
//
// The members of output o are the rows first + i / across * stride + i % across, i < count: of a segment, neighbours
// (across beyond every count); of a block of a grid, `across` neighbours in each of some lines `stride` apart. First and
// last are segments of one row.
//
// A block makes 32 VEC neighbouring columns of one output, a lane VEC of them: 8 where all rows begin at 16 bytes and d is a
// multiple of 8, else 1. Its SLICES warps go through every SLICES-th member each and join their results in shared memory, so
// that one long segment keeps a device busy too. The largest starts from a slice's own first member, and slices without one
// are left out at the end.
#include "cuda/include/vec.cuh"

enum Kind : u32 { MEAN, MAX, FIRST, LAST };

struct Params {
    const X* x;
    const i32* segments;
    OUT* out;
    u64 x_stride;
    u64 out_stride;
    u32 rows;
    u32 d;
    // Of a grid: columns of patches, and the size of a block.
    u32 grid_w;
    u32 block_h;
    u32 block_w;
    Kind kind;
};
constexpr u32 WIDTH = 32 * VEC;

struct Members {
    u32 first;
    u32 across;
    u32 stride;
    u32 count;
};

DEVICE Members members_of(const Params& p, u32 output) {
    if (!p.segments) {
        // Lines of blocks count through all pictures, which hold whole blocks.
        const u32 blocks = p.grid_w / p.block_w;
        const u32 first = output / blocks * p.block_h * p.grid_w + output % blocks * p.block_w;
        return {first, p.block_w, p.grid_w, p.block_w * p.block_h};
    }
    const i32 rows = static_cast<i32>(p.rows);
    const i32 first = min_of(max_of(p.segments[output], 0), rows);
    const i32 count = min_of(max_of(p.segments[output + 1], first), rows) - first;
    if (p.kind == FIRST || p.kind == LAST) {
        const i32 row = p.kind == LAST && count > 0 ? first + count - 1 : first;
        return {static_cast<u32>(row), 0xffffffffu, 0, static_cast<u32>(min_of(count, 1))};
    }
    return {static_cast<u32>(first), 0xffffffffu, 0, static_cast<u32>(count)};
}

DEVICE f32 join(Kind kind, f32 a, f32 b) { return kind == MAX ? fmaxf(a, b) : a + b; }

KERNEL(32 * SLICES, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    f32* parts = reinterpret_cast<f32*>(smem);
    grid_wait();
    const u32 chunks = (p.d + WIDTH - 1) / WIDTH;
    const u32 output = blockIdx.x / chunks;
    const u32 col = blockIdx.x % chunks * WIDTH + lane_id() * VEC;
    const u32 slice = threadIdx.x / 32;
    const Members members = members_of(p, output);

    f32 all[VEC];
#pragma unroll
    for (int j = 0; j < VEC; ++j) all[j] = 0.0f;
    if (col < p.d) {
#pragma unroll 4
        for (u32 i = slice; i < members.count; i += SLICES) {
            const u32 row = members.first + i / members.across * members.stride + i % members.across;
            f32 values[VEC];
            load_vec(values, p.x + row * p.x_stride + col);
#pragma unroll
            for (int j = 0; j < VEC; ++j) all[j] = i == slice ? values[j] : join(p.kind, all[j], values[j]);
        }
    }
    // Neighbouring lanes have neighbouring words, whatever VEC is.
#pragma unroll
    for (int j = 0; j < VEC; ++j) parts[slice * WIDTH + j * 32 + lane_id()] = all[j];
    __syncthreads();
    if (slice > 0 || col >= p.d) return;
    for (u32 other = 1; other < min_of(static_cast<u32>(SLICES), members.count); ++other) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) all[j] = join(p.kind, all[j], parts[other * WIDTH + j * 32 + lane_id()]);
    }
    if (p.kind == MEAN) {
        const f32 share = 1.0f / static_cast<f32>(max_of(members.count, 1u));
#pragma unroll
        for (int j = 0; j < VEC; ++j) all[j] *= share;
    }
    store_vec(p.out + output * p.out_stride + col, all);
}
