// The functions of `kernels/src/cuda/include/ptx.cuh` for the host.
#pragma once
#include "cuda/include/types.cuh"

EMULATOR_QUIET f32 to_f32(f32 x) { return x; }
EMULATOR_QUIET f32 to_f32(bf16 x) { return emulator::from_bf16(x.bits); }
EMULATOR_QUIET f32 to_f32(f16 x) { return emulator::from_f16(x.bits); }
template <typename T> T from_f32(f32 x);
template <> EMULATOR_QUIET f32 from_f32<f32>(f32 x) { return x; }
template <> EMULATOR_QUIET bf16 from_f32<bf16>(f32 x) { return bf16{emulator::to_bf16(x)}; }
template <> EMULATOR_QUIET f16 from_f32<f16>(f32 x) { return f16{emulator::to_f16(x)}; }

EMULATOR_QUIET u32 pack4_e4m3(f32 a, f32 b, f32 c, f32 d) {
    return emulator::to_e4m3(a) | emulator::to_e4m3(b) << 8 | emulator::to_e4m3(c) << 16 | static_cast<u32>(emulator::to_e4m3(d)) << 24;
}
template <typename T> EMULATOR_QUIET u32 pack2(f32 lo, f32 hi) {
    return from_f32<T>(lo).bits | static_cast<u32>(from_f32<T>(hi).bits) << 16;
}
template <typename T> EMULATOR_QUIET float2 unpack2(u32 x) {
    return make_float2(to_f32(T{static_cast<u16>(x)}), to_f32(T{static_cast<u16>(x >> 16)}));
}
// The product of two 16-bit values is exact in f64, and so is the sum but for its last bits, which do not reach the result's.
template <typename T> EMULATOR_QUIET u32 fma2(u32 a, u32 b, u32 c) {
    const float2 x = unpack2<T>(a), y = unpack2<T>(b), z = unpack2<T>(c);
    return pack2<T>(static_cast<f32>(static_cast<double>(x.x) * y.x + z.x), static_cast<f32>(static_cast<double>(x.y) * y.y + z.y));
}

EMULATOR_QUIET f32 exp2_fast(f32 x) { return x < -126.0f ? 0.0f : std::exp2(x); }
EMULATOR_QUIET f32 reciprocal_fast(f32 x) { return std::fabs(x) > 0x1p126f ? 0.0f : 1.0f / x; }

template <int TABLE> EMULATOR_QUIET u32 lop3(u32 a, u32 b, u32 c) {
    u32 d = 0;
    for (int i = 0; i < 8; ++i)
        if (TABLE >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return d;
}
EMULATOR_QUIET u32 byte_perm(u32 a, u32 b, u32 selector) {
    const u64 bytes = static_cast<u64>(b) << 32 | a;
    u32 d = 0;
    for (int i = 0; i < 4; ++i) {
        const u32 pick = selector >> (4 * i);
        u32 byte = bytes >> (8 * (pick & 7)) & 255;
        if (pick & 8) byte = byte & 128 ? 255 : 0;
        d |= byte << (8 * i);
    }
    return d;
}
EMULATOR_QUIET i32 dot4_i8(u32 a, u32 b, i32 c) {
    for (int i = 0; i < 32; i += 8) c += static_cast<i8>(a >> i) * static_cast<i8>(b >> i);
    return c;
}

EMULATOR_QUIET u32 lane_id() { return threadIdx.x & 31; }
EMULATOR_QUIET u32 warp_id() { return __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0); }
template <typename T> EMULATOR_QUIET T shfl(T v, i32 lane) { return __shfl_sync(0xffffffffu, v, lane); }
template <typename T> EMULATOR_QUIET T shfl_xor(T v, i32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
template <typename T> EMULATOR_QUIET T shfl_down(T v, i32 by) { return __shfl_down_sync(0xffffffffu, v, by); }
template <typename T> EMULATOR_QUIET T shfl_up(T v, i32 by) { return __shfl_up_sync(0xffffffffu, v, by); }
EMULATOR_QUIET u32 ballot(bool yes) { return __ballot_sync(0xffffffffu, yes); }
template <int WIDTH = 32> f32 warp_sum(f32 v) {
    for (int mask = WIDTH / 2; mask > 0; mask /= 2) v += shfl_xor(v, mask);
    return v;
}
template <int WIDTH = 32> f32 warp_max(f32 v) {
    for (int mask = WIDTH / 2; mask > 0; mask /= 2) v = fmaxf(v, shfl_xor(v, mask));
    return v;
}
EMULATOR_QUIET void barrier_sync(u32 id, u32 threads) { emulator::named_barrier(id, threads, true); }
EMULATOR_QUIET void barrier_arrive(u32 id, u32 threads) { emulator::named_barrier(id, threads, false); }
EMULATOR_QUIET void grid_wait() {}

template <typename T> EMULATOR_QUIET T* in_global(T* p) { return p; }
EMULATOR_QUIET u32 shared_address(const void* p) { return emulator::shared_address(p); }
// Instrumented on purpose: these are the kernel's own accesses.
inline uint4 load_stream(const uint4* p) { return *p; }
inline uint2 load_stream(const uint2* p) { return *p; }
inline u32 load_stream(const u32* p) { return *p; }
EMULATOR_QUIET void prefetch_l2(const void*) {}
EMULATOR_QUIET u32 load_acquire(const u32* p) {
    emulator::touch_atomic(p, 4);
    emulator::spin();
    return *p;
}
EMULATOR_QUIET void store_release(u32* p, u32 v) {
    emulator::touch_atomic(p, 4);
    *p = v;
}

EMULATOR_QUIET void cp_async_16(void* to, const void* from, u32 bytes = 16) { emulator::copy_async(to, from, 16, bytes); }
template <int SIZE> EMULATOR_QUIET void cp_async_small(void* to, const void* from, u32 bytes = SIZE) {
    static_assert(SIZE == 4 || SIZE == 8, "the sizes of small copies");
    emulator::copy_async(to, from, SIZE, bytes);
}
EMULATOR_QUIET void cp_async_commit() { emulator::copy_async_commit(); }
template <int N> EMULATOR_QUIET void cp_async_wait() { emulator::copy_async_wait(N); }

EMULATOR_QUIET void ldmatrix_x4(u32 (&d)[4], const void* row) { emulator::load_matrices(d, row, 4, false); }
EMULATOR_QUIET void ldmatrix_x4_trans(u32 (&d)[4], const void* row) { emulator::load_matrices(d, row, 4, true); }
EMULATOR_QUIET void ldmatrix_x2(u32 (&d)[2], const void* row) { emulator::load_matrices(d, row, 2, false); }
EMULATOR_QUIET void ldmatrix_x2_trans(u32 (&d)[2], const void* row) { emulator::load_matrices(d, row, 2, true); }
EMULATOR_QUIET void stmatrix_x4(void* row, const u32 (&d)[4]) { emulator::store_matrices(row, d, 4, false); }
EMULATOR_QUIET void stmatrix_x4_trans(void* row, const u32 (&d)[4]) { emulator::store_matrices(row, d, 4, true); }

namespace emulator {
template <typename T> constexpr Kind kind_of() {
    return same_type<T, bf16>::value ? Kind::bf16 : same_type<T, e4m3>::value ? Kind::e4m3 : Kind::f16;
}
}
template <typename T> EMULATOR_QUIET void mma_16816(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    emulator::mma_16816(emulator::kind_of<T>(), d, a, b0, b1);
}
EMULATOR_QUIET void mma_16832_i8(i32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { emulator::mma_16832_i8(d, a, b0, b1); }
EMULATOR_QUIET void mma_16832_e4m3(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    emulator::mma_16832_e4m3(d, a, b0, b1);
}
