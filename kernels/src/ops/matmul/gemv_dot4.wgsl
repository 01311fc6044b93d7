// out[i, j] = epilogue(sum_k x[i, k] w[j, k]) for at most eight rows of x rounded to bytes, weights of grouped
// integers.
//
// x: [m, blocks] as `round.wgsl` leaves it   w: [n, k]   out: [m, n_out], see `operands.wgsl` and `epilogue.wgsl`
// M, R, WG, SUBGROUP: as of `gemv.wgsl`, whose cut this is.
//
// With w = (u - z) s and x ~ q t, the 32 products of a block are s t (sum u q - z sum q): four of them an instruction,
// sums exact in integers, and so is what is taken off for the zero. A weight costs a quarter of an instruction a row of
// x instead of three or four.
#include "wgpu/include/grid.wgsl"
#define X bytes
#define BYTES 1
#include "ops/matmul/operands.wgsl"
#include "ops/matmul/epilogue.wgsl"
#include "ops/matmul/lanes.wgsl"

fn dot_block(w: Block, first: vec4<u32>, second: vec4<u32>) -> f32 {
    var sum = dot4I8Packed(w.first.x, first.x) + dot4I8Packed(w.first.y, first.y);
    sum += dot4I8Packed(w.first.z, first.z) + dot4I8Packed(w.first.w, first.w);
    sum += dot4I8Packed(w.second.x, second.x) + dot4I8Packed(w.second.y, second.y);
    sum += dot4I8Packed(w.second.z, second.z) + dot4I8Packed(w.second.w, second.w);
    return f32(sum);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
#if SUBGROUP
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
#endif
) {
    let first = linear_workgroup(group, groups) * (R / PER_COLUMN);
    if first >= p.n_out {
        return;
    }
    var acc: array<f32, SUMS>;
    for (var block = lane; block * 32u < p.k; block += WG) {
        var w: array<Block, R>;
        var notes: array<vec2<f32>, R>;
        for (var r = 0u; r < R; r++) {
            let row = weight_row(first, r);
            w[r] = w_block(row, block * 32u);
            notes[r] = w_notes(row, block * 32u);
        }
        for (var j = 0u; j < M; j++) {
            let row = min(j, p.m - 1u);
            let at = p.x + row * p.x_stride + 2u * block;
            let low = x[at];
            let high = x[at + 1u];
            let note = x_notes[p.notes + row * p.notes_stride + block];
            for (var r = 0u; r < R; r++) {
                let sum = fma(BYTE_ZERO - notes[r].y, note.y, dot_block(w[r], low, high));
                acc[j * R + r] = fma(notes[r].x * note.x, sum, acc[j * R + r]);
            }
        }
    }
#if SUBGROUP
    emit_lanes(first, lane, subgroup, subgroups, subgroup_lane, &acc);
#else
    emit_lanes(first, lane, &acc);
#endif
}
