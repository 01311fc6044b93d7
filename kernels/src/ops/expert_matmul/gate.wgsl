// out[i, j] = act(sums[i, j]) * sums[i, n_out + j]
//
// sums: f32 [m, 2 n_out]   out: [m, n_out] of type OUT
#include "wgpu/include/grid.wgsl"
#include "ops/matmul/epilogue.wgsl"

@group(0) @binding(0) var<storage, read_write> sums: array<f32>;

struct Params {
    m: u32,
    n_out: u32,
    sums: u32,
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
    let i = linear_workgroup(group, groups) * WG + lane;
    if i >= p.m * p.n_out {
        return;
    }
    let row = i / p.n_out;
    let col = i % p.n_out;
    let at = p.sums + row * 2u * p.n_out + col;
    out_set(p.out + row * p.out_stride + col, activate(sums[at]) * sums[at + p.n_out]);
}
