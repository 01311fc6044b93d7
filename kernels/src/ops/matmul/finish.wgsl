// Ends products whose sums lie in working memory: sums of slices of k, or the gate and what it scales from different
// launches.
//
// sums: f32 [slices, m, n], the bias included   out: [m, n_out], see `epilogue.wgsl`
//
// An invocation adds the slices of two neighbouring columns in the order of k, whatever the order they were made in:
// the result is the same each time. Lanes read neighbouring words.
#include "wgpu/include/grid.wgsl"

struct Params {
    m: u32,
    n: u32,
    n_out: u32,
    slices: u32,
    sums: u32,
    residual: u32,
    residual_stride: u32,
    out: u32,
    out_stride: u32,
}
${PARAMS} p: Params;

#include "ops/matmul/epilogue.wgsl"

@group(0) @binding(0) var<storage, read_write> sums: array<f32>;

const WG: u32 = 64u;

fn sum2(row: u32, col: u32) -> vec2<f32> {
    var at = p.sums + row * p.n + col;
    var total = vec2<f32>();
    for (var slice = 0u; slice < p.slices; slice++) {
        total.x += sums[at];
        if col + 1u < p.n {
            total.y += sums[at + 1u];
        }
        at += p.m * p.n;
    }
    return total;
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pairs = (p.n_out + 1u) / 2u;
    let unit = linear_workgroup(group, groups) * WG + lane;
    let row = unit / pairs;
    let col = unit % pairs * 2u;
    if row >= p.m {
        return;
    }
#if GATED
    emit2(row, col, sum2(row, col), sum2(row, p.n_out + col));
#else
    emit2(row, col, sum2(row, col), vec2<f32>());
#endif
}
