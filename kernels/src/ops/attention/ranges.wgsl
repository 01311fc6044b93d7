// Both bounds of ranges in one buffer: attention kernels have a single binding left for them.
//
// ends, firsts: i32 [tokens]   both: i32 [2, tokens], the ends before the firsts
#include "wgpu/include/grid.wgsl"

@group(0) @binding(0) var<storage, read_write> ends: array<i32>;
@group(0) @binding(1) var<storage, read_write> firsts: array<i32>;
@group(0) @binding(2) var<storage, read_write> both: array<i32>;

struct Params {
    tokens: u32,
    ends: u32,
    firsts: u32,
    both: u32,
}
${PARAMS} p: Params;

const WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let i = linear_workgroup(group, groups) * WG + index;
    if i < p.tokens {
        both[p.both + i] = ends[p.ends + i];
        both[p.both + p.tokens + i] = firsts[p.firsts + i];
    }
}
