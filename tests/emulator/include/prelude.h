// What CUDA builds into every translation unit, for the host. Included before each kernel.
#pragma once
#include "runtime.h"

#include <cmath>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// `extern "C" void __launch_bounds__(threads, blocks) ocelli_kernel` becomes a constant, to which launches are held, and the kernel.
#define __launch_bounds__(THREADS_OF_BLOCK, BLOCKS) \
    emulator_unused(); \
    static constexpr unsigned EMULATOR_MOST_THREADS = (THREADS_OF_BLOCK); \
    extern "C" void
#define SHARED_MEMORY(name) unsigned char* const name = emulator::here->shared

#define threadIdx (emulator::here->thread)
#define blockIdx (emulator::here->block)
#define blockDim (emulator::here->block_dim)
#define gridDim (emulator::here->grid_dim)

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct uint3 { unsigned x, y, z; };
EMULATOR_QUIET uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
EMULATOR_QUIET uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
EMULATOR_QUIET int2 make_int2(int x, int y) { return {x, y}; }
EMULATOR_QUIET int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
EMULATOR_QUIET float2 make_float2(float x, float y) { return {x, y}; }
EMULATOR_QUIET float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <typename To, typename From> EMULATOR_QUIET To emulator_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps their number");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
EMULATOR_QUIET unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
EMULATOR_QUIET int __float_as_int(float x) { return emulator_bits<int>(x); }
EMULATOR_QUIET float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
EMULATOR_QUIET float __int_as_float(int x) { return emulator_bits<float>(x); }

EMULATOR_QUIET int __popc(unsigned x) { return __builtin_popcount(x); }
EMULATOR_QUIET int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
EMULATOR_QUIET int __ffs(int x) { return __builtin_ffs(x); }
EMULATOR_QUIET unsigned __umulhi(unsigned a, unsigned b) { return (static_cast<std::uint64_t>(a) * b) >> 32; }
EMULATOR_QUIET unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
    return y;
}
EMULATOR_QUIET float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
EMULATOR_QUIET float __frcp_rn(float x) { return 1.0f / x; }
EMULATOR_QUIET float __fadd_rn(float a, float b) { return a + b; }
EMULATOR_QUIET float __fmul_rn(float a, float b) { return a * b; }
EMULATOR_QUIET float __fdividef(float a, float b) { return a / b; }
EMULATOR_QUIET float __expf(float x) { return std::exp(x); }
using std::isinf;
using std::isnan;

EMULATOR_QUIET void __syncthreads() { emulator::block_barrier(); }
EMULATOR_QUIET void __syncwarp(unsigned mask = 0xffffffffu) { emulator::warp_barrier(mask); }
EMULATOR_QUIET void __threadfence() {}
EMULATOR_QUIET void __threadfence_block() {}

// ---- shuffles and votes ----

struct EmulatorShuffle {
    unsigned value, result;
    int by, width;
};
EMULATOR_QUIET int emulator_lane() { return emulator::here->thread.x & 31; }

// The lane that a lane reads in each kind of shuffle; its own where that lies outside of its part of the warp.
enum class EmulatorWay { from, exclusive, down, up };
template <EmulatorWay WAY> __attribute__((no_sanitize("thread", "alignment"))) void emulator_shuffle_all(void* const* brought, void*) {
    for (int lane = 0; lane < 32; ++lane) {
        auto* mine = static_cast<EmulatorShuffle*>(brought[lane]);
        if (mine == nullptr) continue;
        const int first = lane / mine->width * mine->width;
        int from = lane;
        if (WAY == EmulatorWay::from) from = first + mine->by % mine->width;
        if (WAY == EmulatorWay::exclusive && (lane ^ mine->by) < first + mine->width) from = lane ^ mine->by;
        if (WAY == EmulatorWay::down && lane + mine->by < first + mine->width) from = lane + mine->by;
        if (WAY == EmulatorWay::up && lane - mine->by >= first) from = lane - mine->by;
        auto* theirs = static_cast<EmulatorShuffle*>(brought[from]);
        if (theirs == nullptr) emulator::fail("a shuffle reads lane %d, which takes no part", from);
        mine->result = theirs->value;
    }
}
template <EmulatorWay WAY, typename T> EMULATOR_QUIET T emulator_shuffle(const char* kind, unsigned mask, T v, int by, int width) {
    static_assert(sizeof(T) == 4, "shuffles move 4 bytes");
    EmulatorShuffle mine = {emulator_bits<unsigned>(v), 0, by, width};
    emulator::meet(kind, mask, &mine, emulator_shuffle_all<WAY>, nullptr);
    return emulator_bits<T>(mine.result);
}
template <typename T> EMULATOR_QUIET T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
    return emulator_shuffle<EmulatorWay::from>("shfl", mask, v, lane & 31, width);
}
template <typename T> EMULATOR_QUIET T __shfl_xor_sync(unsigned mask, T v, int by, int width = 32) {
    return emulator_shuffle<EmulatorWay::exclusive>("shfl_xor", mask, v, by, width);
}
template <typename T> EMULATOR_QUIET T __shfl_down_sync(unsigned mask, T v, int by, int width = 32) {
    return emulator_shuffle<EmulatorWay::down>("shfl_down", mask, v, by, width);
}
template <typename T> EMULATOR_QUIET T __shfl_up_sync(unsigned mask, T v, int by, int width = 32) {
    return emulator_shuffle<EmulatorWay::up>("shfl_up", mask, v, by, width);
}
__attribute__((no_sanitize("thread", "alignment"))) inline void emulator_ballot_all(void* const* brought, void*) {
    unsigned all = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (brought[lane] != nullptr && static_cast<EmulatorShuffle*>(brought[lane])->value != 0) all |= 1u << lane;
    for (int lane = 0; lane < 32; ++lane)
        if (brought[lane] != nullptr) static_cast<EmulatorShuffle*>(brought[lane])->result = all;
}
EMULATOR_QUIET unsigned __ballot_sync(unsigned mask, int yes) {
    EmulatorShuffle mine = {yes != 0, 0, 0, 32};
    emulator::meet("ballot", mask, &mine, emulator_ballot_all, nullptr);
    return mine.result;
}
EMULATOR_QUIET int __any_sync(unsigned mask, int yes) { return __ballot_sync(mask, yes) != 0; }
EMULATOR_QUIET int __all_sync(unsigned mask, int yes) { return __ballot_sync(mask, !yes) == 0; }
EMULATOR_QUIET unsigned __activemask() { return 0xffffffffu; }

// ---- atomics: one thread runs at a time. The accesses are checked as atomic ones, which do not race with each other ----

namespace emulator {
void touch_atomic(const void* p, unsigned size);
}
#define EMULATOR_ATOMIC(NAME, T, NEW) \
    __attribute__((no_sanitize("thread", "alignment"))) inline T NAME(T* p, T v) { \
        emulator::touch_atomic(p, sizeof(T)); \
        const T old = *p; \
        *p = (NEW); \
        return old; \
    }
EMULATOR_ATOMIC(atomicAdd, int, old + v)
EMULATOR_ATOMIC(atomicAdd, unsigned, old + v)
EMULATOR_ATOMIC(atomicAdd, float, old + v)
EMULATOR_ATOMIC(atomicSub, int, old - v)
EMULATOR_ATOMIC(atomicMax, int, old < v ? v : old)
EMULATOR_ATOMIC(atomicMax, unsigned, old < v ? v : old)
EMULATOR_ATOMIC(atomicMin, int, v < old ? v : old)
EMULATOR_ATOMIC(atomicMin, unsigned, v < old ? v : old)
EMULATOR_ATOMIC(atomicOr, int, old | v)
EMULATOR_ATOMIC(atomicOr, unsigned, old | v)
EMULATOR_ATOMIC(atomicAnd, unsigned, old & v)
EMULATOR_ATOMIC(atomicExch, int, v)
EMULATOR_ATOMIC(atomicExch, unsigned, v)
__attribute__((no_sanitize("thread", "alignment"))) inline unsigned atomicCAS(unsigned* p, unsigned expected, unsigned v) {
    emulator::touch_atomic(p, 4);
    const unsigned old = *p;
    if (old == expected) *p = v;
    return old;
}
__attribute__((no_sanitize("thread", "alignment"))) inline int atomicCAS(int* p, int expected, int v) {
    emulator::touch_atomic(p, 4);
    const int old = *p;
    if (old == expected) *p = v;
    return old;
}
// atomicInc: back to 0 behind `most`.
EMULATOR_ATOMIC(atomicInc, unsigned, old >= v ? 0 : old + 1)
