// out[i, j] = epilogue(sum_k x[i, k] w[j, k]) for at most eight rows of x, weights in any format.
//
// x: [m, k] of type X   w: [n, k]   out: [m, n_out], see `operands.wgsl` and `epilogue.wgsl`
// M: rows of x, at least p.m; R: rows of w of a workgroup; WG: its invocations; SUBGROUP: whether lanes add up by subgroups.
//
// Reading the weights is what takes time, so each is read once, for all rows of x. The invocations of a workgroup lie along
// k: neighbours read neighbouring spans of a row of w, 16 bytes each where rows are aligned, so a row streams in whole
// cache lines; R rows at a time keep R loads in flight and use each value of x R times. x is small and the same for every
// workgroup: it comes from the cache. Sums stay in registers; `lanes.wgsl` adds those of the invocations at the end.
#include "wgpu/include/grid.wgsl"
#include "ops/matmul/operands.wgsl"
#include "ops/matmul/epilogue.wgsl"
#include "ops/matmul/lanes.wgsl"

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
    for (var col = lane * SPAN; col < p.k; col += WG * SPAN) {
        var spans: array<Span, R>;
        var notes: array<vec2<f32>, R>;
        for (var r = 0u; r < R; r++) {
            let row = weight_row(first, r);
            spans[r] = w_span(row, col);
            notes[r] = w_notes(row, col);
        }
        for (var i = 0u; i < SPAN / 8u; i++) {
            let at = col + 8u * i;
            if at >= p.k {
                break;
            }
            var w: array<Eight, R>;
            for (var r = 0u; r < R; r++) {
                let row = weight_row(first, r);
#if GROUPS == eight
                notes[r] = w_notes(row, at);
#endif
                w[r] = w_eight(spans[r], i, row, at, notes[r]);
            }
            for (var j = 0u; j < M; j++) {
                let x = x_eight_at(p.x + min(j, p.m - 1u) * p.x_stride, at);
                for (var r = 0u; r < R; r++) {
                    let sum = dot(w[r].a, x.a) + dot(w[r].b, x.b);
                    acc[j * R + r] = fma(notes[r].x, sum, acc[j * R + r]);
                }
            }
        }
    }
#if SUBGROUP
    emit_lanes(first, lane, subgroup, subgroups, subgroup_lane, &acc);
#else
    emit_lanes(first, lane, &acc);
#endif
}
