// Rounds x to 8-bit integers, one scale for each 32 neighbours of a row: x ~ q t, t = max |x| / 127.
//
// x: [m, k] of type X   bytes: [m, blocks] of 8 words   notes: [m, blocks] of (t, sum of q)
//
// The words of a block hold its integers in the order in which `quant/grouped/decode.wgsl` has weights of BITS bits
// as bytes; past k they are zero. The sum serves the zeros of the weights: sum (u - z) q = sum u q - z sum q.
// An invocation rounds one block: x is small beside the weights.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/convert.wgsl"

struct Params {
    m: u32,
    k: u32,
    x: u32,
    x_stride: u32,
    bytes: u32,
    notes: u32,
}
${PARAMS} p: Params;

// Eight neighbours along k.
struct Eight {
    a: vec4<f32>,
    b: vec4<f32>,
}

#include "ops/matmul/eight.wgsl" NAME=x BINDING=0 TYPE=${X} ACCESS=read_write VEC=${XVEC}
@group(0) @binding(1) var<storage, read_write> bytes: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> notes: array<vec2<f32>>;

const WG: u32 = 64u;

fn largest(v: vec4<f32>) -> f32 {
    let a = abs(v);
    return max(max(a.x, a.y), max(a.z, a.w));
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (p.k + 31u) / 32u;
    let unit = linear_workgroup(group, groups) * WG + lane;
    let row = unit / blocks;
    let col = unit % blocks * 32u;
    if row >= p.m {
        return;
    }
    var all: array<Eight, 4>;
    var most = 0.0;
    for (var i = 0u; i < 4u; i++) {
        all[i] = Eight();
        if col + 8u * i < p.k {
            all[i] = x_eight_at(p.x + row * p.x_stride, col + 8u * i);
        }
        most = max(most, max(largest(all[i].a), largest(all[i].b)));
    }
    // Below this the inverse would not be finite; such blocks round to zero.
    let inverse = select(0.0, 127.0 / max(most, 1e-36), most > 1e-36);
    var first: vec4<u32>;
    var second: vec4<u32>;
    var sum = vec4<i32>();
    for (var i = 0u; i < 4u; i++) {
        let a = vec4<i32>(round(all[i].a * inverse));
        let b = vec4<i32>(round(all[i].b * inverse));
        sum += a + b;
#if BITS == 4
        first[i] = pack4xI8(vec4<i32>(a.x, a.z, b.x, b.z));
        second[i] = pack4xI8(vec4<i32>(a.y, a.w, b.y, b.w));
#else
        let words = vec2<u32>(pack4xI8(a), pack4xI8(b));
        if i < 2u {
            first[2u * i] = words.x;
            first[2u * i + 1u] = words.y;
        } else {
            second[2u * i - 4u] = words.x;
            second[2u * i - 3u] = words.y;
        }
#endif
    }
    bytes[p.bytes + 2u * unit] = first;
    bytes[p.bytes + 2u * unit + 1u] = second;
    notes[p.notes + unit] = vec2<f32>(most / 127.0, f32(sum.x + sum.y + sum.z + sum.w));
}
