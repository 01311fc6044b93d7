// out[i] = scale * table[ids[i]]
//
// table: [rows, d] of any format   ids: i32 [tokens]   out: [tokens, d] of type OUT
//
// A launch serves one part of the table, rows `first..first + rows` of the whole: it writes the rows of `out` whose ids
// fall into the part, and no others. A workgroup decodes COLUMNS elements of one row, two neighbours an invocation at a
// time, so that 16-bit outputs are written as whole words where a row begins at one. Few tokens of long rows, as in
// decoding, still make several workgroups.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/weight.wgsl"
#include "wgpu/include/output.wgsl" NAME=out BINDING=4 TYPE=${OUT}

@group(0) @binding(3) var<storage, read_write> ids: array<i32>;

struct Params {
    tokens: u32,
    d: u32,
    first: u32,
    rows: u32,
    ids: u32,
    out: u32,
    out_stride: u32,
    scale: f32,
    w: u32,
    w_stride: u32,
    scales: u32,
    scale_stride: u32,
    zeros: u32,
    zero_stride: u32,
    group: u32,
    factor: f32,
}
${PARAMS} p: Params;

const WG: u32 = 64u;
const COLUMNS: u32 = ${COLUMNS}u;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let chunks = (p.d + COLUMNS - 1u) / COLUMNS;
    let item = linear_workgroup(group, groups);
    let i = item / chunks;
    if i >= p.tokens {
        return;
    }
    // Negative ids become numbers beyond every part.
    let id = bitcast<u32>(ids[p.ids + i]);
    if id < p.first || id - p.first >= p.rows {
        return;
    }
    let row = id - p.first;
    let first_column = (item % chunks) * COLUMNS;
    let end = min(first_column + COLUMNS, p.d);
    let to = p.out + i * p.out_stride;
    for (var col = first_column + 2u * lane; col < end; col += 2u * WG) {
        if col + 1u < end {
            out_set2(to + col, p.scale * vec2<f32>(weight_at(row, col), weight_at(row, col + 1u)));
        } else {
            out_set(to + col, p.scale * weight_at(row, col));
        }
    }
}
