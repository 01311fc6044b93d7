// What follows a product: out = act(product + bias) + residual; gated: out = act(product + bias) * (up + bias_up) + residual.
//
// Types, activation and presence of operands are values of the parameters, the same for the whole grid: an epilogue handles
// each product once, where a uniform branch costs nothing beside memory, and one compilation serves every combination. A
// kernel that unrolls its epilogue may define ACT as a constant of `Act`; the branches then fold away.
//
// `emit<N>(e, row, col, product, up)` ends N neighbouring columns of a row. `e.aligned` says that rows of result, residual and
// biases begin at multiples of 16 bytes: groups of N columns that begin at a multiple of N are then read and written at once.
#pragma once
#include "cuda/include/values.cuh"

// Activations, in the order of the enum of the op.
enum Act : u32 { ACT_NONE, ACT_GELU_TANH, ACT_GELU_ERF, ACT_QUICK_GELU, ACT_SILU, ACT_RELU };

#ifndef ACT
#define ACT e.act
#endif

// Addresses are of the launch's first row and column.
struct Epilogue {
    const void* bias;     // [cols], added to `product`
    const void* bias_up;  // [cols], added to `up`
    const void* residual; // [rows, cols]; may be the very elements of out
    void* out;            // [rows, cols]
    i64 residual_stride;  // elements from row to row
    i64 out_stride;
    i32 rows;
    i32 cols;
    u32 bias_type; // VALUE_NONE where there is none
    u32 bias_up_type;
    u32 residual_type;
    u32 out_type;
    u32 act;
    u32 aligned;
};

// ---- activations ----

// 1 / (1 + e^-x)
DEVICE f32 sigmoid(f32 x) { return reciprocal_fast(1.0f + exp2_fast(-1.4426950409f * x)); }

DEVICE f32 activate(f32 x, u32 act) {
    switch (act) {
    // 0.5 (1 + tanh y) = sigmoid(2 y), y = sqrt(2 / pi) (x + 0.044715 x^3)
    case ACT_GELU_TANH: return x * sigmoid(x * fmaf(0.0713548163f, x * x, 1.5957691216f));
    case ACT_GELU_ERF: return 0.5f * x * (1.0f + erff(0.7071067812f * x));
    case ACT_QUICK_GELU: return x * sigmoid(1.702f * x);
    case ACT_SILU: return x * sigmoid(x);
    case ACT_RELU: return fmaxf(x, 0.0f);
    default: return x;
    }
}
template <int N> DEVICE void activate_all(f32 (&v)[N], u32 act) {
    // The branch is taken once for all of them.
    switch (act) {
    case ACT_NONE: break;
#define ACTIVATE_ALL(which) \
    case which: \
        _Pragma("unroll") for (int i = 0; i < N; ++i) v[i] = activate(v[i], which); \
        break;
        ACTIVATE_ALL(ACT_GELU_TANH)
        ACTIVATE_ALL(ACT_GELU_ERF)
        ACTIVATE_ALL(ACT_QUICK_GELU)
        ACTIVATE_ALL(ACT_SILU)
        ACTIVATE_ALL(ACT_RELU)
#undef ACTIVATE_ALL
    }
}

// ---- the epilogue ----

template <int N> DEVICE void add_bias(f32 (&v)[N], const void* bias, u32 type, i32 col, bool whole, i32 count) {
    if (type == VALUE_NONE) return;
    f32 b[N];
    if (whole) {
        load_group(b, bias, type, col);
    } else {
        load_some(b, bias, type, col, count);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] += b[i];
}

// Ends columns `col` .. `col + N` of row `row` of the result, those that there are; `up` matters if Gated.
template <int N, bool Gated>
DEVICE void emit(const Epilogue& e, i32 row, i32 col, const f32 (&product)[N], const f32 (&up)[N]) {
    const i32 count = e.cols - col;
    if (row >= e.rows || count <= 0) return;
    const bool whole = N == 1 || (e.aligned != 0 && count >= N);
    f32 v[N];
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = product[i];
    add_bias(v, e.bias, e.bias_type, col, whole, count);
    activate_all(v, ACT);
    if constexpr (Gated) {
        f32 scale[N];
#pragma unroll
        for (int i = 0; i < N; ++i) scale[i] = up[i];
        add_bias(scale, e.bias_up, e.bias_up_type, col, whole, count);
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] *= scale[i];
    }
    if (e.residual_type != VALUE_NONE) {
        const i64 at = row * e.residual_stride + col;
        f32 r[N];
        if (whole) {
            load_group(r, e.residual, e.residual_type, at);
        } else {
            load_some(r, e.residual, e.residual_type, at, count);
        }
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] += r[i];
    }
    const i64 at = row * e.out_stride + col;
    if (whole) {
        store_group(e.out, e.out_type, at, v);
    } else {
        store_some(e.out, e.out_type, at, v, count);
    }
}
// As above without a gate.
template <int N> DEVICE void emit(const Epilogue& e, i32 row, i32 col, const f32 (&product)[N]) {
    emit<N, false>(e, row, col, product, product);
}

// The biases of a tile of N columns, fetched by the threads of a warpgroup; of a gated one those of the gates, then those of
// what they scale. Zeros where there are none.
template <i32 N, bool Gated> struct TileBiases {
    f32 value[N / 128];

    DEVICE TileBiases(const Epilogue& e, i32 first_col) {
        constexpr i32 COLS = Gated ? N / 2 : N;
#pragma unroll
        for (i32 i = 0; i < N / 128; ++i) {
            const i32 at = i * 128 + static_cast<i32>(threadIdx.x) % 128;
            const bool upper = Gated && at >= COLS;
            const i32 col = first_col + at % COLS;
            const u32 type = upper ? e.bias_up_type : e.bias_type;
            const bool exists = type != VALUE_NONE && col < e.cols;
            value[i] = exists ? load_value(upper ? e.bias_up : e.bias, type, col) : 0.0f;
        }
    }
    // Shows them to all threads; `barrier` is one of the warpgroup.
    DEVICE void share(f32* to, u32 barrier) const {
        barrier_sync(barrier, 128); // nobody needs those of the tile before
#pragma unroll
        for (i32 i = 0; i < N / 128; ++i) to[i * 128 + static_cast<i32>(threadIdx.x) % 128] = value[i];
        barrier_sync(barrier, 128);
    }
};
