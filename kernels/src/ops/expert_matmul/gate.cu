// out[i, j] = act(sums[i, j]) * sums[i, n_out + j]
//
// sums: f32 [rows, 2 n_out]   out: [rows, n_out]   count: elements of out
#include "ops/matmul/epilogue.cuh"

struct Params {
    const f32* sums;
    void* out;
    i64 out_stride;
    u32 out_type;
    u32 n_out;
    u32 count;
    u32 act;
};

KERNEL(128, 8)(const __grid_constant__ Params p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.count) return;
    grid_wait();
    const u32 row = i / p.n_out, col = i % p.n_out;
    const f32* sums = p.sums + static_cast<u64>(row) * 2 * p.n_out + col;
    store_value(p.out, p.out_type, row * p.out_stride + col, activate(sums[0], p.act) * sums[p.n_out]);
}
