// out [16, 8] = a [16, K] b [K, 8] by one mma of a warp. a is row-major, b is stored as BT [8, K]; with TRANSPOSED b is stored as it is,
// [K, 8], and ldmatrix transposes it. KIND: 0 elements of 16 bits ELEMENT; 1 signed bytes, sums i32; 2 e4m3.
#include "cuda/include/ptx.cuh"

struct Params {
    const u32* a;
    const u32* b;
    f32* out;
};

KERNEL(32, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    const u32 lane = lane_id();
    // a: 16 rows of 32 bytes; b: 8 rows of 32 bytes, or 16 of 16.
    u32* const a_rows = reinterpret_cast<u32*>(smem);
    u32* const b_rows = a_rows + 16 * 8;
    for (u32 i = lane; i < 16 * 8; i += 32) a_rows[i] = p.a[i];
    for (u32 i = lane; i < 8 * 8; i += 32) b_rows[i] = p.b[i];
    __syncwarp();
    u32 a[4], b[2];
    // Lanes 0-15 point to rows of the left half, the others to the right half.
    ldmatrix_x4(a, a_rows + lane % 16 * 8 + lane / 16 * 4);
#if TRANSPOSED
    ldmatrix_x2_trans(b, b_rows + lane % 16 * 4);
#else
    ldmatrix_x2(b, b_rows + lane % 8 * 8 + lane / 8 % 2 * 4);
#endif
    f32 d[4] = {};
#if KIND == 0
    mma_16816<ELEMENT>(d, a, b[0], b[1]);
#elif KIND == 1
    i32 sums[4] = {};
    mma_16832_i8(sums, a, b[0], b[1]);
    for (i32 i = 0; i < 4; ++i) d[i] = static_cast<f32>(sums[i]);
#else
    mma_16832_e4m3(d, a, b[0], b[1]);
#endif
    for (i32 i = 0; i < 4; ++i) p.out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}
