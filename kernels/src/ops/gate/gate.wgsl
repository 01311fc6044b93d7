// out = x * sigmoid(gate)
//
// x: [rows, heads, d] of type X   gate: [rows, heads, d] of type GATE   out: [rows, heads, d] of type OUT
//
// An invocation makes two neighbouring elements of a head. IN_PLACE: out is the very elements of x.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/math.wgsl"
#include "wgpu/include/output.wgsl" NAME=out BINDING=2 TYPE=${OUT}
#include "wgpu/include/input.wgsl" NAME=gate BINDING=1 TYPE=${GATE} ACCESS=read_write
#if !IN_PLACE
#include "wgpu/include/input.wgsl" NAME=x BINDING=0 TYPE=${X} ACCESS=read_write
#endif

struct Params {
    rows: u32,
    heads: u32,
    d: u32,
    x: u32,
    x_row: u32,
    x_head: u32,
    gate: u32,
    gate_row: u32,
    gate_head: u32,
    out: u32,
    out_row: u32,
    out_head: u32,
}
${PARAMS} p: Params;

const WG: u32 = 128u;

fn value(at: u32) -> f32 {
#if IN_PLACE
    return out_at(at);
#else
    return x_at(at);
#endif
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pairs = (p.d + 1u) / 2u;
    let item = linear_workgroup(group, groups) * WG + lane;
    let row = item / pairs / p.heads;
    if row >= p.rows {
        return;
    }
    let head = item / pairs % p.heads;
    let col = 2u * (item % pairs);
    let x_first = p.x + row * p.x_row + head * p.x_head + col;
    let gate_first = p.gate + row * p.gate_row + head * p.gate_head + col;
    let to = p.out + row * p.out_row + head * p.out_head + col;
    let first = value(x_first) * sigmoid(gate_at(gate_first));
    if col + 1u < p.d {
        out_set2(to, vec2<f32>(first, value(x_first + 1u) * sigmoid(gate_at(gate_first + 1u))));
    } else {
        out_set(to, first);
    }
}
