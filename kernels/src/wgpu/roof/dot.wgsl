// How many multiply-adds of packed bytes the device does: chains of dot products of four on registers.
//
// out: a word for each invocation
//
// Each of eight independent sums is also the left operand of its next product, so that no product can be taken out of the
// loop. A turn is 4 x 8 products of four bytes.
#include "wgpu/include/grid.wgsl"

@group(0) @binding(0) var<storage, read_write> out: array<u32>;

struct Params {
    turns: u32,
    out: u32,
    bytes: u32,
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
    let bytes = p.bytes;
    var a = i32(id);
    var b = a + 1;
    var c = a + 2;
    var d = a + 3;
    var e = a + 4;
    var f = a + 5;
    var g = a + 6;
    var h = a + 7;
    for (var turn = 0u; turn < p.turns; turn++) {
        for (var i = 0u; i < 4u; i++) {
            a += dot4I8Packed(u32(a), bytes);
            b += dot4I8Packed(u32(b), bytes);
            c += dot4I8Packed(u32(c), bytes);
            d += dot4I8Packed(u32(d), bytes);
            e += dot4I8Packed(u32(e), bytes);
            f += dot4I8Packed(u32(f), bytes);
            g += dot4I8Packed(u32(g), bytes);
            h += dot4I8Packed(u32(h), bytes);
        }
    }
    out[p.out + id] = u32(a + b + c + d + e + f + g + h);
}
