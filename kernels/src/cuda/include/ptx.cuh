// Instructions of sm_80 and later behind names: conversions, warp operations, barriers, loads, cp.async, ldmatrix, mma.
// The host emulator has a file of the same name and functions. Hopper's own instructions are in `hopper.cuh`.
#pragma once
#include "cuda/include/types.cuh"

// ---- conversions: to nearest, ties to even ----

DEVICE f32 to_f32(f32 x) { return x; }
DEVICE f32 to_f32(bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }
DEVICE f32 to_f32(f16 x) {
    f32 y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

template <typename T> DEVICE T from_f32(f32 x);
template <> DEVICE f32 from_f32<f32>(f32 x) { return x; }
template <> DEVICE bf16 from_f32<bf16>(f32 x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> DEVICE f16 from_f32<f16>(f32 x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Four values as 8-bit floats in a word, `a` lowest; too large ones become the largest. sm_89 and later.
DEVICE u32 pack4_e4m3(f32 a, f32 b, f32 c, f32 d) {
    u32 v = 0;
#if __CUDA_ARCH__ >= 890
    asm("{.reg .b16 lo, hi;\n cvt.rn.satfinite.e4m3x2.f32 lo, %2, %1;\n cvt.rn.satfinite.e4m3x2.f32 hi, %4, %3;\n"
        " mov.b32 %0, {lo, hi};}"
        : "=r"(v)
        : "f"(a), "f"(b), "f"(c), "f"(d));
#endif
    return v;
}

// Two values in a word, `lo` in the lower half: what mma takes.
template <typename T> DEVICE u32 pack2(f32 lo, f32 hi);
template <> DEVICE u32 pack2<bf16>(f32 lo, f32 hi) {
    u32 d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}
template <> DEVICE u32 pack2<f16>(f32 lo, f32 hi) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}
template <typename T> DEVICE float2 unpack2(u32 x);
template <> DEVICE float2 unpack2<bf16>(u32 x) {
    return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
}
template <> DEVICE float2 unpack2<f16>(u32 x) {
    float2 y;
    asm("{.reg .b16 lo, hi;\n mov.b32 {lo, hi}, %2;\n cvt.f32.f16 %0, lo;\n cvt.f32.f16 %1, hi;}"
        : "=f"(y.x), "=f"(y.y)
        : "r"(x));
    return y;
}

// a * b + c on pairs, rounded once to the type of the pair.
template <typename T> DEVICE u32 fma2(u32 a, u32 b, u32 c);
template <> DEVICE u32 fma2<bf16>(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
template <> DEVICE u32 fma2<f16>(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// 2^x within 2 units in the last place; 0 for x below -126.
DEVICE f32 exp2_fast(f32 x) {
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x within 1 unit in the last place; 0 for x infinite or beyond 2^126.
DEVICE f32 reciprocal_fast(f32 x) {
    f32 y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- bits ----

// Any function of three bits, applied to words: bit i of `TABLE` is its value where (a, b, c) spells i.
template <int TABLE> DEVICE u32 lop3(u32 a, u32 b, u32 c) {
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
    return d;
}
// Bytes of (b, a), 7..4 from b and 3..0 from a, as `selector` numbers them from its lowest nibble up.
DEVICE u32 byte_perm(u32 a, u32 b, u32 selector) {
    u32 d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}
// Sum of four products of signed bytes, added to c.
DEVICE i32 dot4_i8(u32 a, u32 b, i32 c) {
    i32 d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// ---- threads ----

DEVICE u32 lane_id() { return threadIdx.x & 31; }
// The warp's number in the block, the same in all lanes to the compiler's knowledge.
DEVICE u32 warp_id() { return __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0); }

// All take part. A value of 4 bytes travels.
template <typename T> DEVICE T shfl(T v, i32 lane) { return __shfl_sync(0xffffffffu, v, lane); }
template <typename T> DEVICE T shfl_xor(T v, i32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
template <typename T> DEVICE T shfl_down(T v, i32 by) { return __shfl_down_sync(0xffffffffu, v, by); }
template <typename T> DEVICE T shfl_up(T v, i32 by) { return __shfl_up_sync(0xffffffffu, v, by); }
DEVICE u32 ballot(bool yes) { return __ballot_sync(0xffffffffu, yes); }

// Sum, maximum over the `WIDTH` neighbouring lanes; every lane gets it.
template <int WIDTH = 32> DEVICE f32 warp_sum(f32 v) {
#pragma unroll
    for (int mask = WIDTH / 2; mask > 0; mask /= 2) v += shfl_xor(v, mask);
    return v;
}
template <int WIDTH = 32> DEVICE f32 warp_max(f32 v) {
#pragma unroll
    for (int mask = WIDTH / 2; mask > 0; mask /= 2) v = fmaxf(v, shfl_xor(v, mask));
    return v;
}

// Barrier `id` (1 to 15; 0 is __syncthreads) of `threads` threads of the block, whole warps.
DEVICE void barrier_sync(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// As above, without waiting.
DEVICE void barrier_arrive(u32 id, u32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Programmatic dependent launch. What earlier launches wrote is visible after it, and the next launch may start: its blocks come as
// soon as all of this grid have begun and there is room. A kernel that is launched as a dependent calls it once, in every block, before
// its first access to memory that another launch writes; what stands before it reads weights alone. Because nobody lets the next launch
// start who has not waited, all launches before the last one have ended for whoever waits.
DEVICE void grid_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- memory ----

// Address of shared memory as instructions take it.
DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

// Tells the compiler that `p` points to global memory, which it does not see of a pointer chosen among parameters.
template <typename T> DEVICE T* in_global(T* p) {
    __builtin_assume(__isGlobal(p));
    return p;
}

// 16, 8, 4 bytes that are read once: weights. They do not stay in L1. Loads of the non-coherent kind (ld.global.nc) would be moved behind a
// `grid_wait` that they stand before.
DEVICE uint4 load_stream(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
DEVICE uint2 load_stream(const uint2* p) {
    uint2 v;
    asm volatile("ld.global.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
DEVICE u32 load_stream(const u32* p) {
    u32 v;
    asm volatile("ld.global.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
// Asks for the line of `p` in L2.
DEVICE void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Orders what other blocks see: a flag is written with `store_release` after the data, and read with `load_acquire` before it.
DEVICE u32 load_acquire(const u32* p) {
    u32 v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
DEVICE void store_release(u32* p, u32 v) { asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }

// Starts a copy of 16 bytes from global to shared memory, both aligned to 16; `bytes` of them (0 to 16) are read, the rest
// are zeros. Where `bytes` is 0 nothing is read, but the address must lie in some allocation.
DEVICE void cp_async_16(void* to, const void* from, u32 bytes = 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
}
// As above for 4 or 8 bytes, aligned so.
template <int SIZE> DEVICE void cp_async_small(void* to, const void* from, u32 bytes = SIZE) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(SIZE), "r"(bytes)
                 : "memory");
}
// Closes a group of the copies that this thread started.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the `N` latest groups of this thread are under way; a barrier shows the data to others.
template <int N> DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ---- matrices ----

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8. Lane i gets of each
// matrix the elements (i / 4, 2 (i % 4)) and its right neighbour.
DEVICE void ldmatrix_x4(u32 (&d)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// As above, each matrix transposed.
DEVICE void ldmatrix_x4_trans(u32 (&d)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// Two matrices, from the addresses of lanes 0 to 15.
DEVICE void ldmatrix_x2(u32 (&d)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void ldmatrix_x2_trans(u32 (&d)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// d [16, 8] += a [16, 16] b [16, 8], elements `T`, sums f32. With g = lane / 4, t = lane % 4 a lane holds
// a: (g, 2t..), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..); b: (2t.., g), (2t + 8.., g); d: (g, 2t..), (g + 8, 2t..).
template <typename T> DEVICE void mma_16816(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <> DEVICE void mma_16816<bf16>(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> DEVICE void mma_16816<f16>(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// d [16, 8] += a [16, 32] b [32, 8] of signed bytes; a word holds four neighbours along k where above it holds two.
DEVICE void mma_16832_i8(i32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// As above for e4m3 floats of 8 bits, sums f32; sm_89 and later.
DEVICE void mma_16832_e4m3(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 890
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
