// out[rows[i]] = src[i]
//
// src: [count, d] of type X   rows: i32 [count]   out: [limit, d] of type OUT, written in part
//
// A workgroup copies one row, two neighbouring elements an invocation, so that 16-bit outputs are written as whole words
// where a row begins at one. Rows whose number is negative or beyond `out` are left out.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/input.wgsl" NAME=src BINDING=0 TYPE=${X} ACCESS=read_write
#include "wgpu/include/output.wgsl" NAME=out BINDING=2 TYPE=${OUT}

@group(0) @binding(1) var<storage, read_write> rows: array<i32>;

struct Params {
    count: u32,
    d: u32,
    limit: u32,
    src: u32,
    src_stride: u32,
    rows: u32,
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
    let i = linear_workgroup(group, groups);
    if i >= p.count {
        return;
    }
    let row = rows[p.rows + i];
    if row < 0 || u32(row) >= p.limit {
        return;
    }
    let first = p.src + i * p.src_stride;
    let target_row = p.out + u32(row) * p.out_stride;
    for (var col = 2u * lane; col < p.d; col += 2u * WG) {
        if col + 1u < p.d {
            out_set2(target_row + col, vec2<f32>(src_at(first + col), src_at(first + col + 1u)));
        } else {
            out_set(target_row + col, src_at(first + col));
        }
    }
}
