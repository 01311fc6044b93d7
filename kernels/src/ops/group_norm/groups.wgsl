// out = act((x - mean) / sqrt(var + eps) * weight + bias), mean and variance of a group of neighbouring channels of all rows of a
// picture
//
// x: [pictures * rows, groups * each] of type X   weight, bias: [groups * each] of types WEIGHT and BIAS   out: as x, of type OUT
//
// A workgroup makes one group of one picture. It goes through the rows three times: for the mean, for the variance about it, so
// that nothing cancels, and for the result. An invocation takes every WG-th element of the group.
//
// OUT_TO names the tensor that takes the result: `out`, or `x` where it is updated in place and bound once. ACT as in
// epilogue.wgsl.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/math.wgsl"
#if OUT_TO == x
#include "wgpu/include/output.wgsl" NAME=x BINDING=0 TYPE=${X}
#else
#include "wgpu/include/input.wgsl" NAME=x BINDING=0 TYPE=${X} ACCESS=read_write
#include "wgpu/include/output.wgsl" NAME=out BINDING=3 TYPE=${OUT}
#endif
#include "wgpu/include/input.wgsl" NAME=weight BINDING=1 TYPE=${WEIGHT} ACCESS=read
#include "wgpu/include/input.wgsl" NAME=bias BINDING=2 TYPE=${BIAS} ACCESS=read

struct Params {
    items: u32,
    rows: u32,
    each: u32,
    groups: u32,
    x: u32,
    x_stride: u32,
    weight: u32,
    bias: u32,
    out: u32,
    out_stride: u32,
    eps: f32,
}
${PARAMS} p: Params;

const WG: u32 = 256u;

var<workgroup> parts: array<f32, WG>;

fn activate(x: f32) -> f32 {
#if ACT == gelu_tanh
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

// The sum over all invocations, for each of them.
fn total(value: f32, lane: u32) -> f32 {
    parts[lane] = value;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half >>= 1u) {
        if lane < half {
            parts[lane] += parts[lane + half];
        }
        workgroupBarrier();
    }
    let all = parts[0];
    workgroupBarrier();
    return all;
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = linear_workgroup(group, groups);
    if item >= p.items {
        return;
    }
    let top = item / p.groups * p.rows;
    let first = item % p.groups * p.each;
    let count = p.rows * p.each;
    let start = p.x + top * p.x_stride + first;
    var sum = 0.0;
    for (var i = lane; i < count; i += WG) {
        sum += x_at(start + i / p.each * p.x_stride + i % p.each);
    }
    let mean = total(sum, lane) / f32(count);
    sum = 0.0;
    for (var i = lane; i < count; i += WG) {
        let v = x_at(start + i / p.each * p.x_stride + i % p.each) - mean;
        sum += v * v;
    }
    let scale = inverseSqrt(total(sum, lane) / f32(count) + p.eps);
    let to = p.out + top * p.out_stride + first;
    for (var i = lane; i < count; i += WG) {
        let row = i / p.each;
        let col = i % p.each;
        let v = (x_at(start + row * p.x_stride + col) - mean) * scale;
        let shifted = v * weight_at(p.weight + first + col) + bias_at(p.bias + first + col);
        ${OUT_TO}_set(to + row * p.out_stride + col, activate(shifted));
    }
}
