// out[i] = sum_t weights[i, t] * src[ids[i, t]], added to out[i] if ADD
//
// src: [limit, d] of type X   ids: i32 [rows, taps], or IDS false: in order   weights: f32 [rows, taps]   out: [rows, d] of type OUT
//
// A workgroup makes COLUMNS elements of one row, two neighbours an invocation at a time, so that 16-bit outputs are written as
// whole words where a row begins at one. Ids that are negative or beyond `src` add nothing.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/input.wgsl" NAME=src BINDING=0 TYPE=${X} ACCESS=${ACCESS}
#include "wgpu/include/output.wgsl" NAME=out BINDING=3 TYPE=${OUT}

#if IDS
@group(0) @binding(1) var<storage, read_write> ids: array<i32>;
#endif
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;

struct Params {
    rows: u32,
    taps: u32,
    d: u32,
    limit: u32,
    src: u32,
    src_stride: u32,
    ids: u32,
    weights: u32,
    out: u32,
    out_stride: u32,
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
    if i >= p.rows {
        return;
    }
    let first_column = (item % chunks) * COLUMNS;
    let end = min(first_column + COLUMNS, p.d);
    let to = p.out + i * p.out_stride;
    for (var col = first_column + 2u * lane; col < end; col += 2u * WG) {
        let pair = col + 1u < end;
        var sum = vec2<f32>();
#if ADD
        sum.x = out_at(to + col);
        if pair {
            sum.y = out_at(to + col + 1u);
        }
#endif
        for (var tap = 0u; tap < p.taps; tap += 1u) {
#if IDS
            // Negative ids become numbers beyond every row.
            let id = bitcast<u32>(ids[p.ids + i * p.taps + tap]);
#else
            let id = i * p.taps + tap;
#endif
            if id >= p.limit {
                continue;
            }
            let factor = weights[p.weights + i * p.taps + tap];
            let at = p.src + id * p.src_stride + col;
            sum.x += factor * src_at(at);
            if pair {
                sum.y += factor * src_at(at + 1u);
            }
        }
        if pair {
            out_set2(to + col, sum);
        } else {
            out_set(to + col, sum.x);
        }
    }
}
