// y [64, 32] = 2 x [64, 32], f32: boxes of 16 rows come and go by the copy engine through one buffer.
#include "cuda/include/hopper.cuh"

struct Params {
    TensorMap x; // boxes [16, 32]
    TensorMap y;
};

KERNEL(128, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    f32* const buffer = reinterpret_cast<f32*>(smem);
    u64* const full = reinterpret_cast<u64*>(smem + 2048);
    const i32 i = static_cast<i32>(threadIdx.x);
    if (i == 0) {
        mbarrier_init(full, 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    for (i32 round = 0; round < 4; ++round) {
        if (i == 0) {
            mbarrier_arrive_expect(full, 2048);
            tma_load_2d(buffer, &p.x, full, 0, round * 16);
        }
        mbarrier_wait(full, round & 1);
        for (i32 j = 0; j < 4; ++j) buffer[i + 128 * j] *= 2.0f;
        if (MISTAKE != 1) fence_async_shared();
        if (MISTAKE != 2) __syncthreads();
        if (i == 0) {
            tma_store_2d(&p.y, buffer, 0, round * 16);
            tma_store_commit();
            if (MISTAKE == 3 || (MISTAKE == 4 && round == 3)) continue;
            tma_store_wait_read<0>();
        }
    }
}
