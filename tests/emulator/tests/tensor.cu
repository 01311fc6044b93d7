// out [64, COLS] = a [64, k] b, elements bf16: the copy engine fills a ring of two stages of 64 along k, a warpgroup multiplies. b is
// stored [COLS, k], or [k, COLS] with COLS_MAJOR. With FROM_REGISTERS `a` comes from registers. Blocks of a cluster of two compute the same; with MULTICAST
// each brings half of b to both.
#include "cuda/include/wgmma.cuh"

struct Params {
    TensorMap a; // boxes [64, 64]
    TensorMap b; // boxes [COLS / 2, 64], or [64, 64] with COLS_MAJOR
    f32* out;
    i32 k;
    i32 pad[13];
};

constexpr i32 STAGES = 2;
constexpr i32 A_BYTES = 64 * 128, B_BYTES = COLS * 128;
constexpr i32 CLUSTER = MULTICAST ? 2 : 1;

KERNEL(256, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    u64* const full = reinterpret_cast<u64*>(smem + STAGES * (A_BYTES + B_BYTES));
    u64* const empty = full + STAGES;
    if (threadIdx.x == 0) {
        for (i32 i = 0; i < STAGES; ++i) {
            mbarrier_init(full + i, 1);
            mbarrier_init(empty + i, 4 * CLUSTER);
        }
        if (MISTAKE != 9) mbarrier_init_fence();
    }
    if (MISTAKE != 1) {
        if (MULTICAST) cluster_sync();
        else __syncthreads();
    }
    const i32 steps = p.k / 64;
    if (threadIdx.x == 128) {
        for (i32 step = 0; step < steps; ++step) {
            const i32 slot = step % STAGES;
            if (MISTAKE != 2) mbarrier_wait(empty + slot, (step / STAGES & 1) ^ 1);
            mbarrier_arrive_expect(full + slot, A_BYTES + B_BYTES - (MISTAKE == 3 ? 16 : 0));
            u8* const stage = smem + slot * (A_BYTES + B_BYTES);
            tma_load_2d(stage, &p.a, full + slot, step * 64, 0);
            for (i32 part = 0; part < (COLS_MAJOR ? COLS / 64 : 2); ++part) {
                u8* const to = stage + A_BYTES + part * (COLS_MAJOR ? 64 * 128 : B_BYTES / 2);
                const i32 x = COLS_MAJOR ? part * 64 : step * 64, y = COLS_MAJOR ? step * 64 : part * (COLS / 2);
                if (!MULTICAST) tma_load_2d(to, &p.b, full + slot, x, y);
                else if (part % 2 == static_cast<i32>(cluster_rank())) tma_load_2d_multicast(to, &p.b, full + slot, x, y, 3);
            }
        }
    }
    if (threadIdx.x < 128) {
        const i32 warp = static_cast<i32>(warp_id()), lane = static_cast<i32>(lane_id());
        f32 d[COLS / 2];
        for (i32 i = 0; i < COLS / 2; ++i) d[i] = 0.0f;
        for (i32 step = 0; step < steps; ++step) {
            const i32 slot = step % STAGES;
            u8* const stage = smem + slot * (A_BYTES + B_BYTES);
            u8* const b_at = stage + A_BYTES;
            if (MISTAKE != 4) mbarrier_wait(full + slot, step / STAGES & 1);
            u32 a[4][4];
            if (FROM_REGISTERS)
                for (i32 j = 0; j < 4; ++j) {
                    const i32 row = warp * 16 + lane % 16, part = 2 * j + lane / 16;
                    ldmatrix_x4(a[j], stage + row * 128 + ((part ^ row % 8) * 16));
                }
            if (MISTAKE != 5) wgmma_fence();
            for (i32 j = 0; j < 4; ++j) {
                const u64 b = COLS_MAJOR ? wgmma_descriptor(b_at + j * 2048, 1024, 64 * 128) : wgmma_descriptor(b_at + j * 32);
                if (FROM_REGISTERS) wgmma_rs<COLS, bf16, COLS_MAJOR>(d, a[j], b, step + j > 0);
                else wgmma_ss<COLS, bf16, COLS_MAJOR>(d, wgmma_descriptor(stage + j * 32 + (MISTAKE == 6 ? 128 : 0)), b, step + j > 0);
            }
            wgmma_commit();
            if (MISTAKE == 7 && step == 1) d[0] += 1.0f;
            if (MISTAKE != 8) wgmma_wait<0>();
            if (lane < CLUSTER) {
                if (MULTICAST) mbarrier_arrive_remote(empty + slot, lane);
                else mbarrier_arrive(empty + slot);
            }
        }
        if (MISTAKE == 8) wgmma_wait<0>();
        for (i32 j = 0; j < COLS / 8; ++j)
            for (i32 i = 0; i < 4; ++i)
                p.out[(blockIdx.x * 64 + warp * 16 + lane / 4 + i / 2 * 8) * COLS + j * 8 + lane % 4 * 2 + i % 2] = d[4 * j + i];
    }
    // A block stays while the other one arrives at its barriers and brings it copies.
    if (MULTICAST) cluster_sync();
}
