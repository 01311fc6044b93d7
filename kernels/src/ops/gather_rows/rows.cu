// out[i] = scale * table[ids[i]]
//
// table: [rows, d] of any format   ids: i32 [tokens]   out: [tokens, d]
//
// A launch serves one part of the table, rows `first..first + rows` of the whole: it writes the rows of `out` whose ids fall
// into the part, and no others. A block decodes a stretch of one row, so that few tokens of long rows, as in decoding, still
// make several blocks. CODE: see `quant/codes.cuh`.
#include "cuda/include/weight.cuh"

struct Params {
    Weight table;
    const i32* ids;
    void* out;
    i64 out_stride;
    u32 out_type;
    u32 d;
    u32 first;
    u32 rows;
    u32 columns;
    f32 scale;
};

KERNEL(128, 8)(const __grid_constant__ Params p) {
    const u32 chunks = (p.d + p.columns - 1) / p.columns;
    const u32 i = blockIdx.x / chunks;
    grid_wait();
    // Negative ids become numbers beyond every part.
    const u32 id = static_cast<u32>(p.ids[i]);
    if (id < p.first || id - p.first >= p.rows) return;
    const u32 row = id - p.first;
    const u32 begin = (blockIdx.x % chunks) * p.columns;
    const u32 end = min_of(begin + p.columns, p.d);
    for (u32 col = begin + threadIdx.x; col < end; col += blockDim.x) {
        store_value(p.out, p.out_type, i * p.out_stride + col, p.scale * weight_at(p.table, row, col));
    }
}
