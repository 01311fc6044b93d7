// Rounds x to 8-bit floats (e4m3), for products with weights of that type: 128 neighbours along k share a scale, max|x| / 448.
//
// x: [rows, k] f32, bf16 or f16   codes: [rows, 128 groups], zeros after k   scales: [groups, rows] f32, what codes are times
//
// Sixteen lanes have a group, eight neighbours each.
//
// SASS: LDG.E.128 F2FP.SATFINITE.E4M3
#include "cuda/include/values.cuh"

struct Params {
    const void* x;
    uint2* codes;
    f32* scales;
    i64 x_stride;
    i32 rows;
    i32 k;
    i32 groups;
    i32 scale_stride; // from group to group
    u32 x_type;
    u32 x_aligned; // whether each row of x begins at a multiple of 16 bytes
};

constexpr f32 LARGEST = 448.0f;
constexpr f32 TINY = 1e-30f; // rows below it become zeros: the inverse of their scale would be infinite

KERNEL(128, 4)(const __grid_constant__ Params p) {
    const i64 at = static_cast<i64>(blockIdx.x) * 128 + threadIdx.x;
    const i32 part = static_cast<i32>(at % 16), group = static_cast<i32>(at / 16 % p.groups);
    const i64 row = at / 16 / p.groups;
    const i32 col = group * 128 + part * 8;
    grid_wait();
    f32 v[8];
    load_columns(v, p.x, p.x_type, p.x_aligned != 0, row * p.x_stride, col, row < p.rows ? p.k : 0);
    f32 most = TINY;
#pragma unroll
    for (i32 i = 0; i < 8; ++i) most = fmaxf(most, fabsf(v[i]));
    most = warp_max<16>(most);
    if (row < p.rows) {
        const f32 inverse = LARGEST / most;
#pragma unroll
        for (i32 i = 0; i < 8; ++i) v[i] *= inverse;
        p.codes[at] = make_uint2(pack4_e4m3(v[0], v[1], v[2], v[3]), pack4_e4m3(v[4], v[5], v[6], v[7]));
        if (part == 0) p.scales[static_cast<i64>(group) * p.scale_stride + row] = most / LARGEST;
    }
}
