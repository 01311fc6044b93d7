// out[i, j] = epilogue(sum_k x[i, k] w[j, k]) for at most eight rows of x, weights in any format.
//
// x: [m, k] of type X   w: [n, k]   out: [m, n_out], see `operands.wgsl` and `epilogue.wgsl`
// M: rows of x, at least p.m; R: rows of w of a workgroup; WG: its invocations; STEPS: eights of a row of w that an
// invocation loads at once; SUBGROUP: whether lanes add up by subgroups.
//
// Reading the weights is what takes time, so each is read once, for all rows of x. The invocations of a workgroup lie
// along k, neighbours on neighbouring eights, so that a row streams in whole cache lines: 4 bytes a lane of 4-bit
// weights, 8 of 8-bit, 16 of 16-bit ones. R STEPS loads, about 64 bytes an invocation, are on their way before the
// first is used. Longer runs of one row a lane would spread the lanes' x over more cache lines than a load can take at
// once: x is small and comes from the cache, but it is read M times as often as a row of w, and serves R rows each
// time.
//
// Sums stay in registers; `lanes.wgsl` adds those of the invocations at the end.
#include "wgpu/include/grid.wgsl"
#include "ops/matmul/operands.wgsl"
#include "ops/matmul/epilogue.wgsl"
#include "ops/matmul/lanes.wgsl"

const STEPS: u32 = ${STEPS}u;

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
    let last = (p.k - 1u) / 8u * 8u;
    for (var col = lane * 8u; col < p.k; col += STEPS * WG * 8u) {
        var spans: array<Span, STEPS * R>;
        for (var i = 0u; i < STEPS; i++) {
            for (var r = 0u; r < R; r++) {
                spans[i * R + r] = w_span(weight_row(first, r), min(col + i * WG * 8u, last));
            }
        }
        for (var i = 0u; i < STEPS; i++) {
            let at = col + i * WG * 8u;
            if at < p.k {
                var w: array<Eight, R>;
                var factors: array<f32, R>;
                for (var r = 0u; r < R; r++) {
                    let row = weight_row(first, r);
                    let notes = w_notes(row, at);
                    w[r] = w_eight(spans[i * R + r], row, at, notes);
                    factors[r] = notes.x;
                }
                for (var j = 0u; j < M; j++) {
                    let x = x_eight_at(p.x + min(j, p.m - 1u) * p.x_stride, at);
                    for (var r = 0u; r < R; r++) {
                        let sum = dot(w[r].a, x.a) + dot(w[r].b, x.b);
                        acc[j * R + r] = fma(factors[r], sum, acc[j * R + r]);
                    }
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
