// Parameters and operands that the kernels of a product share: rows of x and of weights in any format, read eight
// neighbouring elements of k at a time.
//
// X: type of x, or `bytes` for what `round.wgsl` made of it; XVEC: whether its rows can be read by 16 bytes; W: `codes`,
// or the type of dense weights; WVEC: whether rows of the weights can be read by 16 bytes. For `codes` see
// `quant/grouped/decode.wgsl`, whose interface dense weights have too: their span is eight decoded weights, their
// factor 1.
#include "wgpu/include/convert.wgsl"

struct Params {
    // Rows of x, rows of these weights, columns of both.
    m: u32,
    n: u32,
    k: u32,
    // Columns of the result, and columns of k that one slice of the grid sums.
    n_out: u32,
    slice: u32,
    // First elements and distances of rows, in elements of each plane.
    x: u32,
    x_stride: u32,
    w: u32,
    w_stride: u32,
    scales: u32,
    scale_stride: u32,
    zeros: u32,
    zero_stride: u32,
    group: u32,
    factor: f32,
    bias: u32,
    residual: u32,
    residual_stride: u32,
    out: u32,
    out_stride: u32,
    // Of x rounded to bytes: first note and notes of a row.
    notes: u32,
    notes_stride: u32,
}
${PARAMS} p: Params;

// Eight neighbours along k.
struct Eight {
    a: vec4<f32>,
    b: vec4<f32>,
}

#if X == bytes
// Two vectors of a block of 32, and its scale with the sum of its integers.
@group(0) @binding(0) var<storage, read_write> x: array<vec4<u32>>;
@group(0) @binding(7) var<storage, read_write> x_notes: array<vec2<f32>>;
#else
#include "ops/matmul/eight.wgsl" NAME=x BINDING=0 TYPE=${X} ACCESS=read_write VEC=${XVEC}
#endif

#if W == codes
#include "quant/grouped/decode.wgsl" PACKED=1 SCALES=2 ZEROS=3
#else
#include "ops/matmul/eight.wgsl" NAME=w BINDING=1 TYPE=${W} ACCESS=read VEC=${WVEC}

alias Span = Eight;

fn w_span(row: u32, col: u32) -> Span {
    return w_eight_at(p.w + row * p.w_stride, col);
}

fn w_notes(row: u32, col: u32) -> vec2<f32> {
    return vec2<f32>(1.0, 0.0);
}

fn w_eight(span: Span, row: u32, col: u32, notes: vec2<f32>) -> Eight {
    return span;
}
#endif

// Where a result's column comes from. A launch handles blocks of neighbouring rows of the weights; in a gated product a
// block is half gate and half what it scales, two rows of one, then the two of the other: column c of the block is row
// `weight_row(first, c)`, `first` the first column of the result that the block gives.
#if GATED
const PER_COLUMN: u32 = 2u;

fn weight_row(first: u32, c: u32) -> u32 {
    return min(first + (c >> 2u) * 2u + (c & 1u), p.n_out - 1u) + ((c >> 1u) & 1u) * p.n_out;
}
#else
const PER_COLUMN: u32 = 1u;

fn weight_row(first: u32, c: u32) -> u32 {
    return min(first + c, p.n - 1u);
}
#endif
