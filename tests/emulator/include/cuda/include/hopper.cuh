// The functions of `kernels/src/cuda/include/hopper.cuh` for the host.
#pragma once
#include "cuda/include/ptx.cuh"

EMULATOR_QUIET void mbarrier_init(u64* bar, u32 count) { emulator::barrier_init(reinterpret_cast<std::uint64_t*>(bar), count); }
EMULATOR_QUIET void mbarrier_init_fence() { emulator::barrier_init_fence(); }
EMULATOR_QUIET void mbarrier_arrive(u64* bar) { emulator::barrier_arrive(reinterpret_cast<std::uint64_t*>(bar), 0, -1); }
EMULATOR_QUIET void mbarrier_arrive_expect(u64* bar, u32 bytes) {
    emulator::barrier_arrive(reinterpret_cast<std::uint64_t*>(bar), bytes, -1);
}
EMULATOR_QUIET void mbarrier_arrive_remote(u64* bar, u32 rank) {
    emulator::barrier_arrive(reinterpret_cast<std::uint64_t*>(bar), 0, static_cast<int>(rank));
}
EMULATOR_QUIET void mbarrier_wait(u64* bar, u32 parity) { emulator::barrier_wait(reinterpret_cast<std::uint64_t*>(bar), parity); }

struct alignas(64) TensorMap {
    u64 words[16];
};
EMULATOR_QUIET void tensor_map_prefetch(const TensorMap*) {}
EMULATOR_QUIET void tma_load_2d(void* to, const TensorMap* map, u64* bar, i32 x, i32 y) {
    const int at[2] = {x, y};
    emulator::tensor_load(to, map, reinterpret_cast<std::uint64_t*>(bar), at, 2, 0);
}
EMULATOR_QUIET void tma_load_3d(void* to, const TensorMap* map, u64* bar, i32 x, i32 y, i32 z) {
    const int at[3] = {x, y, z};
    emulator::tensor_load(to, map, reinterpret_cast<std::uint64_t*>(bar), at, 3, 0);
}
EMULATOR_QUIET void tma_load_2d_multicast(void* to, const TensorMap* map, u64* bar, i32 x, i32 y, u16 blocks) {
    const int at[2] = {x, y};
    emulator::tensor_load(to, map, reinterpret_cast<std::uint64_t*>(bar), at, 2, blocks);
}
EMULATOR_QUIET void tma_store_2d(const TensorMap* map, const void* from, i32 x, i32 y) {
    const int at[2] = {x, y};
    emulator::tensor_store(map, from, at, 2);
}
EMULATOR_QUIET void tma_store_commit() { emulator::tensor_store_commit(); }
template <int N> EMULATOR_QUIET void tma_store_wait_read() { emulator::tensor_store_wait(N); }
EMULATOR_QUIET void fence_async_shared() { emulator::fence_async(); }

EMULATOR_QUIET u32 cluster_rank() { return emulator::here->cluster_rank; }
EMULATOR_QUIET void cluster_sync() { emulator::cluster_barrier(); }
EMULATOR_QUIET bool elect_one() {
    return __ffs(ballot(true)) - 1 == static_cast<i32>(lane_id());
}
template <int COUNT> EMULATOR_QUIET void registers_grow() { static_assert(COUNT % 8 == 0 && COUNT <= 256, "a count of registers"); }
template <int COUNT> EMULATOR_QUIET void registers_shrink() { static_assert(COUNT % 8 == 0 && COUNT >= 24, "a count of registers"); }
