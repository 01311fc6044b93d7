// Tiles of a product: their order, rings of stages, and slices of k that come together.
#pragma once
#include "cuda/include/ptx.cuh"

// The product of 32 bytes of each row of a and column of b: 16 elements of 16 bits, or 32 of e4m3.
template <typename T> DEVICE void mma_32_bytes(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    if constexpr (same_type<T, e4m3>::value) {
        mma_16832_e4m3(d, a, b0, b1);
    } else {
        mma_16816<T>(d, a, b0, b1);
    }
}

// A tile's place, in tiles.
struct Place {
    i32 down;   // along the rows of x
    i32 across; // along the columns of the result
};

// Tile `index` of `down` x `across`. Neighbours in this order, which run at the same time, make compact blocks of `GROUP` rows
// of tiles, so that the operands that they share stay in the second-level cache.
template <i32 GROUP> DEVICE Place place_of(i32 index, i32 down, i32 across) {
    const i32 band = index / (GROUP * across), in_band = index % (GROUP * across);
    const i32 height = min_of(GROUP, down - band * GROUP);
    return Place{band * GROUP + in_band % height, in_band / height};
}

// Whose turn it is in a ring, and the parity of the round.
template <i32 SIZE> struct Turn {
    i32 slot = 0;
    u32 parity = 0;
    DEVICE void next() {
        if (++slot == SIZE) {
            slot = 0;
            parity ^= 1;
        }
    }
    DEVICE void skip(i32 count) {
        slot += count;
        parity ^= slot / SIZE & 1;
        slot %= SIZE;
    }
};

// Sums that lie in registers, left in memory and added to others: those of thread i of `THREADS` at `i`, then `THREADS` on.
template <int THREADS, int A, int B> DEVICE void leave_sums(const f32 (&sum)[A][B], float4* to) {
#pragma unroll
    for (i32 i = 0; i < A * B; i += 4) {
        const f32* const from = sum[i / B] + i % B;
        to[i / 4 * THREADS] = make_float4(from[0], from[1], from[2], from[3]);
    }
}
template <int THREADS, int A, int B> DEVICE void add_sums(f32 (&sum)[A][B], const float4* from) {
#pragma unroll
    for (i32 i = 0; i < A * B; i += 4) {
        const float4 v = from[i / 4 * THREADS];
        f32* const to = sum[i / B] + i % B;
        to[0] += v.x, to[1] += v.y, to[2] += v.z, to[3] += v.w;
    }
}

// Sums of one tile over slices of k, which different blocks of `THREADS` threads made: each leaves its own in working memory, and
// the last to arrive adds all of them in the order of k, so that the result is the same each time. Returns whether this block
// is the last; `sums` are those of all slices then, and `counter` is zero again.
//
// sums of slice s lie at `memory + s * QUADS * THREADS` float4. `flag` is a word of shared memory.
template <int THREADS, int QUADS>
DEVICE bool join_slices(f32 (&sums)[QUADS][4], float4* memory, u32* counter, i32 slice, i32 slices, u32* flag) {
    leave_sums<THREADS>(sums, memory + slice * QUADS * THREADS + threadIdx.x);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *flag = atomicAdd(counter, 1u);
    __syncthreads();
    if (*flag != static_cast<u32>(slices - 1)) return false;
    if (threadIdx.x == 0) *counter = 0;
    __threadfence();
#pragma unroll
    for (i32 i = 0; i < QUADS; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
    for (i32 s = 0; s < slices; ++s) add_sums<THREADS>(sums, memory + s * QUADS * THREADS + threadIdx.x);
    return true;
}

// As above for a tile of a warpgroup in a grid that runs at once, where blocks of the last slices are the last to start: the last
// slice waits for the others, whose sums it adds in order. Returns whether `sum` is that of all. `barrier` is a named barrier of the
// warpgroup.
template <int A, int B>
DEVICE bool join_last(f32 (&sum)[A][B], float4* memory, u32* counter, i32 slice, i32 slices, u32 barrier) {
    constexpr i64 SLICE = A * B / 4 * 128;
    const bool first = threadIdx.x % 128 == 0;
    memory += threadIdx.x % 128;
    if (slice < slices - 1) {
        leave_sums<128>(sum, memory + slice * SLICE);
        __threadfence();
        barrier_sync(barrier, 128);
        if (first) atomicAdd(counter, 1u);
        return false;
    }
    if (first) {
        while (load_acquire(counter) < static_cast<u32>(slice)) {
        }
        *counter = 0;
    }
    barrier_sync(barrier, 128);
    __threadfence();
#pragma unroll 1
    for (i32 other = 0; other < slice; ++other) add_sums<128>(sum, memory + other * SLICE);
    return true;
}
