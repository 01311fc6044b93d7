// How fast the device reads memory: the sum of a buffer that no cache holds.
//
// data: `count` groups of four words   out: a word for each invocation
//
// Each workgroup reads a run of `run` groups of its own, neighbouring invocations neighbouring groups, and each invocation
// eight before it needs the first: enough in flight to hide the latency of memory. The sums are written, so that nothing
// can be left out; a word that is written stands for 64 groups or more that are read.
#include "wgpu/include/grid.wgsl"

@group(0) @binding(0) var<storage, read> data: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

struct Params {
    count: u32,
    run: u32,
    data: u32,
    out: u32,
}
${PARAMS} p: Params;

const WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = linear_workgroup(group, groups);
    let begin = number * p.run;
    if begin >= p.count {
        return;
    }
    let end = min(begin + p.run, p.count);
    var sum = vec4<u32>();
    var at = begin + lane;
    while at + 7u * WG < end {
        let first = p.data + at;
        let a = data[first];
        let b = data[first + WG];
        let c = data[first + 2u * WG];
        let d = data[first + 3u * WG];
        let e = data[first + 4u * WG];
        let f = data[first + 5u * WG];
        let g = data[first + 6u * WG];
        let h = data[first + 7u * WG];
        sum += ((a + b) + (c + d)) + ((e + f) + (g + h));
        at += 8u * WG;
    }
    while at < end {
        sum += data[p.data + at];
        at += WG;
    }
    out[p.out + number * WG + lane] = sum.x + sum.y + sum.z + sum.w;
}
