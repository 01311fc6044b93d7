// Instructions of Hopper (sm_90a) behind names: mbarriers, bulk tensor copies, clusters. `wgmma.cuh` has the matrix products
// of warpgroups. The host emulator has a file of the same name and functions.
#pragma once
#include "cuda/include/ptx.cuh"

// ---- mbarrier: an 8-byte word in shared memory. A phase ends when `count` arrivals and all announced bytes have come ----

DEVICE void mbarrier_init(u64* bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}
// Shows initialized barriers to the copy engine and to the cluster; a block or cluster barrier must follow.
DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// One arrival.
DEVICE void mbarrier_arrive(u64* bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
// One arrival, which announces `bytes` that copies will bring.
DEVICE void mbarrier_arrive_expect(u64* bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
                 : "memory");
}
// One arrival at the barrier of the same place in block `rank` of the cluster.
DEVICE void mbarrier_arrive_remote(u64* bar, u32 rank) {
    asm volatile("{.reg .b32 remote;\n mapa.shared::cluster.u32 remote, %0, %1;\n"
                 " mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];}" ::"r"(shared_address(bar)),
                 "r"(rank)
                 : "memory");
}
// Waits until the phase of this parity (0 for the first) has ended.
DEVICE void mbarrier_wait(u64* bar, u32 parity) {
    asm volatile("{.reg .pred done;\n WAIT:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 " @done bra DONE;\n bra WAIT;\n DONE:\n}" ::"r"(shared_address(bar)),
                 "r"(parity)
                 : "memory");
}

// ---- the copy engine ----

// A tensor map that the launch made (`Launch::tensor_map`), a member of the kernel's parameters.
struct alignas(64) TensorMap {
    u64 words[16];
};

DEVICE void tensor_map_prefetch(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Copies the box at element (x, y) to shared memory, 128-byte aligned, and counts its bytes at `bar`. What lies outside of
// the tensor becomes zeros.
DEVICE void tma_load_2d(void* to, const TensorMap* map, u64* bar, i32 x, i32 y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                 ::"r"(shared_address(to)), "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y)
                 : "memory");
}
DEVICE void tma_load_3d(void* to, const TensorMap* map, u64* bar, i32 x, i32 y, i32 z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
            shared_address(to)),
        "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z)
        : "memory");
}
// As tma_load_2d, to the same place in every block of the cluster whose bit in `blocks` is set; each one's own barrier counts.
DEVICE void tma_load_2d_multicast(void* to, const TensorMap* map, u64* bar, i32 x, i32 y, u16 blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
                 "{%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
                 "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "h"(blocks)
                 : "memory");
}
// Copies a box from shared memory to element (x, y); what lies outside of the tensor is left out.
DEVICE void tma_store_2d(const TensorMap* map, const void* from, i32 x, i32 y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                 "r"(shared_address(from)), "r"(x), "r"(y)
                 : "memory");
}
DEVICE void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most `N` groups of this thread's stores still read shared memory.
template <int N> DEVICE void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
// Makes what this thread wrote to shared memory visible to the copy engine and to wgmma; before the barrier.
DEVICE void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- clusters, registers ----

DEVICE u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// Barrier of all threads of the cluster.
DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// One lane of a converged warp.
DEVICE bool elect_one() {
    u32 yes;
    asm volatile("{.reg .pred p;\n elect.sync _|p, 0xffffffff;\n selp.u32 %0, 1, 0, p;}" : "=r"(yes));
    return yes != 0;
}
// Registers of each thread of a warpgroup from here on, a multiple of 8.
template <int COUNT> DEVICE void registers_grow() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> DEVICE void registers_shrink() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
