// out[i] = x[i], through shared memory and a local array, 4 elements a thread. MISTAKE makes one of those that the emulator must find.
#include "cuda/include/ptx.cuh"

struct Params {
    const f32* x;
    f32* out;
    i32 len;
    i32 pad;
};

KERNEL(32, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    f32* const held = reinterpret_cast<f32*>(smem);
    const i32 i = static_cast<i32>(threadIdx.x);

    const i32 from = MISTAKE == 1 && i == 7 ? p.len : 4 * i;
    float4 v = *reinterpret_cast<const float4*>(p.x + from + (MISTAKE == 2 ? 1 : 0));
    if (MISTAKE != 3) *reinterpret_cast<float4*>(held + 4 * (MISTAKE == 4 && i == 31 ? i + 1 : i)) = v;
    f32 local[4];
    for (i32 j = 0; j < (MISTAKE == 5 ? p.len : 4); ++j) local[j] = held[4 * i + j];
    const i32 all = MISTAKE == 6 ? 1 << p.len : 1;
    for (i32 j = 0; j < 4; ++j) p.out[4 * i + j + (MISTAKE == 7 && i == 31 ? 1 : 0)] = local[j] * static_cast<f32>(all);
}
