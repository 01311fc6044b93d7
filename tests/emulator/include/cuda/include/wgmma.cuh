// The functions of `kernels/src/cuda/include/wgmma.cuh` for the host. Products write their sums when they are waited for, as late
// as the real ones may.
#pragma once
#include "cuda/include/hopper.cuh"

EMULATOR_QUIET void wgmma_fence() { emulator::wgmma_fence(); }
EMULATOR_QUIET void wgmma_commit() { emulator::wgmma_commit(); }
template <int N> EMULATOR_QUIET void wgmma_wait() { emulator::wgmma_wait(N); }
template <int N> EMULATOR_QUIET void wgmma_wait_after(f32) { emulator::wgmma_wait(N); }
template <int COUNT> EMULATOR_QUIET void wgmma_pin(f32 (&d)[COUNT]) { asm volatile("" ::"r"(&d) : "memory"); }

EMULATOR_QUIET u64 wgmma_descriptor(const void* p, u32 stride = 1024, u32 lead = 16) {
    const u64 address = shared_address(p);
    return ((address & 0x3ffff) >> 4) | (static_cast<u64>((lead & 0x3ffff) >> 4) << 16) |
           (static_cast<u64>((stride & 0x3ffff) >> 4) << 32) | (1ull << 62);
}
template <int N, typename T, bool B_MN = false> EMULATOR_QUIET void wgmma_ss(f32 (&d)[N / 2], u64 a, u64 b, bool add) {
    emulator::wgmma(emulator::kind_of<T>(), d, N, nullptr, a, b, add, B_MN);
}
template <int N, typename T, bool B_MN = false>
EMULATOR_QUIET void wgmma_rs(f32 (&d)[N / 2], const u32 (&a)[4], u64 b, bool add) {
    emulator::wgmma(emulator::kind_of<T>(), d, N, a, 0, b, add, B_MN);
}
