// s = x + add
// RMS:    out = s / sqrt(mean(s^2) + eps) * (weight_offset + weight)
// LAYER:  out = (s - mean(s)) / sqrt(var(s) + eps) * (weight_offset + weight) + bias
//
// x, add, sum: [rows, d] of type X   weight: [d] of type WEIGHT   bias: [d] of type BIAS   out: [rows, d] of type OUT
//
// A workgroup of WG invocations normalizes one row, four neighbouring columns an invocation at a time. KEEP such quads
// stay in an invocation's registers, so that a row is read from memory once; KEEP = 0 is for rows that are too long for
// that: each pass reads them again. The variance is a pass of its own about the mean, so that nothing cancels. The sum s
// is stored in the last pass, after everything was read.
//
// ADD, SUM, WEIGHT, BIAS: operands that exist. SUM_TO and OUT_TO name the tensor that takes the sum and the result: `sum`
// and `out`, or `x` and `add` where they are updated in place; a tensor that is read and written is bound once, and
// X_WRITTEN or ADD_WRITTEN is set. VEC: every row begins at a multiple of four elements, see quad.wgsl.
//
// The invocations' parts are joined by a tree in workgroup memory; with SUBGROUP by subgroup sums, of whatever width, and
// one exchange of those.
#include "ops/norm/quad.wgsl" NAME=x BINDING=0 TYPE=${X} ACCESS=read_write WRITTEN=${X_WRITTEN}
#if ADD
#include "ops/norm/quad.wgsl" NAME=add BINDING=1 TYPE=${X} ACCESS=read_write WRITTEN=${ADD_WRITTEN}
#endif
#if WEIGHT
#include "ops/norm/quad.wgsl" NAME=weight BINDING=2 TYPE=${WEIGHT} ACCESS=read WRITTEN=false
#endif
#if BIAS
#include "ops/norm/quad.wgsl" NAME=bias BINDING=3 TYPE=${BIAS} ACCESS=read WRITTEN=false
#endif
#if SUM && SUM_TO == sum
#include "ops/norm/quad.wgsl" NAME=sum BINDING=4 TYPE=${X} ACCESS=read_write WRITTEN=true
#endif
#if OUT_TO == out
#include "ops/norm/quad.wgsl" NAME=out BINDING=5 TYPE=${OUT} ACCESS=read_write WRITTEN=true
#endif
#include "wgpu/include/grid.wgsl"

struct Params {
    rows: u32,
    d: u32,
    x: u32,
    x_stride: u32,
    add: u32,
    add_stride: u32,
    weight: u32,
    bias: u32,
    sum: u32,
    sum_stride: u32,
    out: u32,
    out_stride: u32,
    weight_offset: f32,
    eps: f32,
}
${PARAMS} p: Params;

const WG: u32 = ${WG}u;

#if SUBGROUP
// A subgroup has four invocations or more.
var<workgroup> parts: array<f32, WG / 4u>;

struct Lane {
    number: u32,
    subgroup: u32,
    subgroups: u32,
    within: u32,
}

// The sum over all invocations, for each of them.
fn total(value: f32, lane: Lane) -> f32 {
    let part = subgroupAdd(value);
    if lane.within == 0u {
        parts[lane.subgroup] = part;
    }
    workgroupBarrier();
    var all = 0.0;
    for (var i = 0u; i < lane.subgroups; i++) {
        all += parts[i];
    }
    workgroupBarrier();
    return all;
}
#else
var<workgroup> parts: array<f32, WG>;

struct Lane {
    number: u32,
}

// The sum over all invocations, for each of them.
fn total(value: f32, lane: Lane) -> f32 {
    parts[lane.number] = value;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half >>= 1u) {
        if lane.number < half {
            parts[lane.number] += parts[lane.number + half];
        }
        workgroupBarrier();
    }
    let all = parts[0];
    workgroupBarrier();
    return all;
}
#endif

// x + add at columns `col..col + 4`.
fn summed(row: u32, col: u32) -> vec4<f32> {
    let x = x_quad(p.x + row * p.x_stride, col);
#if ADD
    return x + add_quad(p.add + row * p.add_stride, col);
#else
    return x;
#endif
}

// `values` with zeros beyond the row.
fn within_row(col: u32, values: vec4<f32>) -> vec4<f32> {
#if VEC
    return values;
#else
    return select(vec4<f32>(0.0), values, vec4<u32>(col, col + 1u, col + 2u, col + 3u) < vec4<u32>(p.d));
#endif
}

fn finish(row: u32, col: u32, s: vec4<f32>, mean: f32, scale: f32) {
    var value = (s - mean) * scale;
#if WEIGHT
    value *= weight_quad(p.weight, col) + p.weight_offset;
#endif
#if BIAS
    value += bias_quad(p.bias, col);
#endif
#if SUM
    ${SUM_TO}_set_quad(p.sum + row * p.sum_stride, col, s);
#endif
    ${OUT_TO}_set_quad(p.out + row * p.out_stride, col, value);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) number: u32,
#if SUBGROUP
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) within: u32,
#endif
) {
    let row = linear_workgroup(group, groups);
    if row >= p.rows {
        return;
    }
#if SUBGROUP
    let lane = Lane(number, subgroup, subgroups, within);
#else
    let lane = Lane(number);
#endif
    let first = 4u * number;
    let step = 4u * WG;
    var mean = 0.0;
    var square = 0.0;

#if KEEP > 0
    var kept: array<vec4<f32>, ${KEEP}>;
    var part = 0.0;
    for (var i = 0u; i < ${KEEP}u; i++) {
        let col = first + i * step;
        if col < p.d {
            kept[i] = summed(row, col);
            let s = within_row(col, kept[i]);
#if LAYER
            part += dot(s, vec4<f32>(1.0));
#else
            part += dot(s, s);
#endif
        }
    }
    square = total(part, lane) / f32(p.d);
#if LAYER
    mean = square;
    part = 0.0;
    for (var i = 0u; i < ${KEEP}u; i++) {
        let col = first + i * step;
        if col < p.d {
            let s = within_row(col, kept[i] - mean);
            part += dot(s, s);
        }
    }
    square = total(part, lane) / f32(p.d);
#endif
    let scale = inverseSqrt(square + p.eps);
    for (var i = 0u; i < ${KEEP}u; i++) {
        let col = first + i * step;
        if col < p.d {
            finish(row, col, kept[i], mean, scale);
        }
    }
#else
    var part = 0.0;
#if LAYER
    for (var col = first; col < p.d; col += step) {
        part += dot(within_row(col, summed(row, col)), vec4<f32>(1.0));
    }
    mean = total(part, lane) / f32(p.d);
    part = 0.0;
#endif
    for (var col = first; col < p.d; col += step) {
        let s = within_row(col, summed(row, col) - mean);
        part += dot(s, s);
    }
    square = total(part, lane) / f32(p.d);
    let scale = inverseSqrt(square + p.eps);
    for (var col = first; col < p.d; col += step) {
        finish(row, col, summed(row, col), mean, scale);
    }
#endif
}
