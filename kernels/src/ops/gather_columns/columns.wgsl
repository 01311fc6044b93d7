// out[i, j] = x[i, columns[j]]
//
// x: [rows, k] of type X   columns: i32 [n]   out: [rows, n] of type X
//
// A workgroup copies one row, two neighbouring results an invocation, so that 16-bit ones are written as whole words where a row
// begins at one. Columns that are not there become the last.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/input.wgsl" NAME=x BINDING=0 TYPE=${X} ACCESS=read_write
#include "wgpu/include/output.wgsl" NAME=out BINDING=2 TYPE=${X}

@group(0) @binding(1) var<storage, read_write> columns: array<u32>;

struct Params {
    rows: u32,
    k: u32,
    n: u32,
    x: u32,
    x_stride: u32,
    columns: u32,
    out: u32,
    out_stride: u32,
}
${PARAMS} p: Params;

const WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = linear_workgroup(group, groups);
    if row >= p.rows {
        return;
    }
    let first = p.x + row * p.x_stride;
    let target_row = p.out + row * p.out_stride;
    for (var j = 2u * lane; j < p.n; j += 2u * WG) {
        let a = x_at(first + min(columns[p.columns + j], p.k - 1u));
        if j + 1u < p.n {
            let b = x_at(first + min(columns[p.columns + j + 1u], p.k - 1u));
            out_set2(target_row + j, vec2<f32>(a, b));
        } else {
            out_set(target_row + j, a);
        }
    }
}
