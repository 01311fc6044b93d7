// What follows a product: out = act(product + bias) + residual, gated: act(product + bias) * (up + bias) + residual.
//
// BIAS: none, or its type; ACT: none, gelu_tanh, gelu_erf, quick_gelu, silu or relu; GATED; RESIDUAL: none, its type, or
// `inplace` where it is the very elements of out; OUT: type of out; PARTIAL: whether sums go to working memory instead,
// f32 [slices, m, row of out_stride], for `finish.wgsl` to end. The bias is part of the first slice then.
// Gives `emit2(row, col, product, up)`: columns `col` and `col + 1` of the result, those that there are;
// `up` matters if gated.
#include "wgpu/include/math.wgsl"
#include "wgpu/include/output.wgsl" NAME=out BINDING=6 TYPE=${OUT}
#if BIAS != none
#include "wgpu/include/input.wgsl" NAME=bias BINDING=4 TYPE=${BIAS} ACCESS=read
#endif
#if RESIDUAL != none && RESIDUAL != inplace
#include "wgpu/include/input.wgsl" NAME=residual BINDING=5 TYPE=${RESIDUAL} ACCESS=read_write
#endif

fn activate(x: f32) -> f32 {
#if ACT == gelu_tanh
    // 0.5 (1 + tanh y) = sigmoid(2 y), y = sqrt(2 / pi) (x + 0.044715 x^3)
    return x * sigmoid(1.5957691216 * x * (1.0 + 0.044715 * x * x));
#elif ACT == gelu_erf
    return x * normal_cdf(x);
#elif ACT == quick_gelu
    return x * sigmoid(1.702 * x);
#elif ACT == silu
    return x * sigmoid(x);
#elif ACT == relu
    return max(x, 0.0);
#else
    return x;
#endif
}

fn biased(product: f32, col: u32) -> f32 {
#if BIAS != none
    return product + bias_at(p.bias + col);
#else
    return product;
#endif
}

fn finished(row: u32, col: u32, product: f32, up: f32) -> f32 {
    var value = activate(biased(product, col));
#if GATED
    value *= biased(up, p.n_out + col);
#endif
#if RESIDUAL == inplace
    value += out_at(p.out + row * p.out_stride + col);
#elif RESIDUAL != none
    value += residual_at(p.residual + row * p.residual_stride + col);
#endif
    return value;
}

#if PARTIAL
// The slice of k that this invocation sums.
var<private> slice_index: u32;

fn partial(col: u32, product: f32) -> f32 {
    if slice_index == 0u {
        return biased(product, col);
    }
    return product;
}
#endif

fn emit2(row: u32, col: u32, product: vec2<f32>, up: vec2<f32>) {
    if row >= p.m || col >= p.n_out {
        return;
    }
#if PARTIAL
    let at = p.out + (slice_index * p.m + row) * p.out_stride + col;
    out_set(at, partial(col, product.x));
    if col + 1u < p.n_out {
        out_set(at + 1u, partial(col + 1u, product.y));
    }
#else
    let at = p.out + row * p.out_stride + col;
    let first = finished(row, col, product.x, up.x);
    if col + 1u < p.n_out {
        out_set2(at, vec2<f32>(first, finished(row, col + 1u, product.y, up.y)));
    } else {
        out_set(at, first);
    }
#endif
}
