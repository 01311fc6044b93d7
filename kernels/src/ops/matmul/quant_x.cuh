// What kernels that lay x out for products with codes in groups are given, and how they read it.
#pragma once
#include "cuda/include/values.cuh"

struct Params {
    const void* x;
    void* out;
    i64 x_stride;
    i32 rows;
    i32 k;
    i32 steps; // along k
    i32 tiles; // of rows, where `out` has them
    u32 x_type;
    u32 x_aligned; // whether each row of x begins at a multiple of 16 bytes
};

// Columns col .. col + 7 of a row, zeros where there are none.
DEVICE void load_eight(f32 (&v)[8], const Params& p, i32 row, i32 col) {
    load_columns(v, p.x, p.x_type, p.x_aligned != 0, row * p.x_stride, col, row < p.rows ? p.k : 0);
}
