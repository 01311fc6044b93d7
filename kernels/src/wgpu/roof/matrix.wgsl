// How many multiply-adds the device's cooperative matrices do: products of f16 matrices of side SIDE with f32 sums.
//
// data: f16, two matrices   out: f32, four matrices for each workgroup
//
// Four independent sums hide the latency. Every subgroup of a workgroup does the same, the last to write wins; a turn is
// four products of SIDE^3 multiply-adds for each subgroup.
enable f16;
enable wgpu_cooperative_matrix;
#include "wgpu/include/grid.wgsl"

@group(0) @binding(0) var<storage, read> data: array<f16>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

struct Params {
    turns: u32,
    data: u32,
    out: u32,
}
${PARAMS} p: Params;

const WG: u32 = 256u;
const SIZE: u32 = ${SIDE}u * ${SIDE}u;
alias Left = coop_mat${SIDE}x${SIDE}<f16, A>;
alias Right = coop_mat${SIDE}x${SIDE}<f16, B>;
alias Sum = coop_mat${SIDE}x${SIDE}<f32, C>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let first = p.out + linear_workgroup(group, groups) * 4u * SIZE;
    let left = coopLoad<Left>(&data[p.data], ${SIDE}u);
    let right = coopLoad<Right>(&data[p.data + SIZE], ${SIDE}u);
    var a = coopLoad<Sum>(&out[first], ${SIDE}u);
    var b = coopLoad<Sum>(&out[first + SIZE], ${SIDE}u);
    var c = coopLoad<Sum>(&out[first + 2u * SIZE], ${SIDE}u);
    var d = coopLoad<Sum>(&out[first + 3u * SIZE], ${SIDE}u);
    for (var turn = 0u; turn < p.turns; turn++) {
        a = coopMultiplyAdd(left, right, a);
        b = coopMultiplyAdd(left, right, b);
        c = coopMultiplyAdd(left, right, c);
        d = coopMultiplyAdd(left, right, d);
    }
    coopStore(a, &out[first], ${SIDE}u);
    coopStore(b, &out[first + SIZE], ${SIDE}u);
    coopStore(c, &out[first + 2u * SIZE], ${SIDE}u);
    coopStore(d, &out[first + 3u * SIZE], ${SIDE}u);
}
