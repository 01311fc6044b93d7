// How many multiply-adds of type TYPE (f32 or f16) the device does: chains of them on registers.
//
// out: a word for each invocation
//
// Four independent vectors of four hide the latency; factor and summand come as parameters, so that nothing can be known
// beforehand. A turn of the loop is 8 x 16 multiply-adds.
#if TYPE == f16
enable f16;
#endif
#include "wgpu/include/grid.wgsl"

@group(0) @binding(0) var<storage, read_write> out: array<u32>;

struct Params {
    turns: u32,
    out: u32,
    factor: f32,
    summand: f32,
}
${PARAMS} p: Params;

const WG: u32 = 256u;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = linear_workgroup(group, groups) * WG + lane;
    let factor = vec4<${TYPE}>(${TYPE}(p.factor));
    let summand = vec4<${TYPE}>(${TYPE}(p.summand));
    var a = vec4<${TYPE}>(${TYPE}(f32(lane) * 0.001));
    var b = a + summand;
    var c = b + summand;
    var d = c + summand;
    for (var turn = 0u; turn < p.turns; turn++) {
        for (var i = 0u; i < 8u; i++) {
            a = fma(a, factor, summand);
            b = fma(b, factor, summand);
            c = fma(c, factor, summand);
            d = fma(d, factor, summand);
        }
    }
    let all = vec4<f32>(a + b + c + d);
    out[p.out + id] = bitcast<u32>(all.x + all.y + all.z + all.w);
}
