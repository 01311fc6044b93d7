// out[i] = exp(x[i]) / sum of exp(x[j])
//
// x: [rows, d] of type X   out: [rows, d] of type OUT
//
// A workgroup takes a row, each invocation two neighbouring columns at a time: first for the largest logit, then for the sum of the
// powers, then for the results; parts are joined by a tree in workgroup memory.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/math.wgsl"
#include "wgpu/include/input.wgsl" NAME=x BINDING=0 TYPE=${X} ACCESS=read_write
#include "wgpu/include/output.wgsl" NAME=out BINDING=1 TYPE=${OUT}

struct Params {
    rows: u32,
    d: u32,
    x: u32,
    x_stride: u32,
    out: u32,
    out_stride: u32,
}
${PARAMS} p: Params;

const WG: u32 = 128u;

var<workgroup> parts: array<f32, WG>;

// The largest, or else the sum, of the values of all invocations, for each of them.
fn joined(value: f32, number: u32, largest: bool) -> f32 {
    parts[number] = value;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half >>= 1u) {
        if number < half {
            let a = parts[number];
            let b = parts[number + half];
            parts[number] = select(a + b, max(a, b), largest);
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
    @builtin(local_invocation_index) number: u32,
) {
    let row = linear_workgroup(group, groups);
    if row >= p.rows {
        return;
    }
    let source = p.x + row * p.x_stride;
    let to = p.out + row * p.out_stride;
    var most = x_at(source);
    for (var col = number; col < p.d; col += WG) {
        most = max(most, x_at(source + col));
    }
    most = joined(most, number, true);
    var sum = 0.0;
    for (var col = number; col < p.d; col += WG) {
        sum += exp_f32(x_at(source + col) - most);
    }
    let share = 1.0 / joined(sum, number, false);
    for (var col = 2u * number; col < p.d; col += 2u * WG) {
        let first = exp_f32(x_at(source + col) - most) * share;
        if col + 1u < p.d {
            out_set2(to + col, vec2<f32>(first, exp_f32(x_at(source + col + 1u) - most) * share));
        } else {
            out_set(to + col, first);
        }
    }
}
