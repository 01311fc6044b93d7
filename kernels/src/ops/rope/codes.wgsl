// Heads of keys or values into pages of 8-bit codes: of each head a code for each element, then the scale,
//
//   scale = max |x| / 127,   code = round(x / scale),
//
// four bytes a word. Heads without a magnitude above LEAST are zeros. The scale of a head with a value that is no number, or infinite, is no number.
//
// x: [tokens, heads, head_dim] of type X   slots: i32 [tokens]   pages: i8 [pages, PAGE, heads, head_dim + 4]
//
// LANES invocations share a head, 128 / LANES heads a workgroup. A head is read twice, the second time from caches.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/input.wgsl" NAME=x BINDING=0 TYPE=${X} ACCESS=read_write
@group(0) @binding(1) var<storage, read_write> slots: array<i32>;
@group(0) @binding(2) var<storage, read_write> pages: array<u32>;

struct Params {
    tokens: u32,
    heads: u32,
    head_dim: u32,
    limit: u32,
    x: u32,
    x_token: u32,
    x_head: u32,
    slots: u32,
    pages: u32,
    page: u32,
    slot: u32,
    page_head: u32,
}
${PARAMS} p: Params;

const WG: u32 = 128u;
const LANES: u32 = 16u;
const PAGE: u32 = ${PAGE}u;
// The bits of 2^-120.
const LEAST: u32 = 0x03800000u;

var<workgroup> most: array<u32, WG>;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let lane = index % LANES;
    let number = linear_workgroup(group, groups) * (WG / LANES) + index / LANES;
    let token = number / p.heads;
    let head = number % p.heads;
    var slot = -1;
    if token < p.tokens {
        slot = slots[p.slots + token];
    }
    let written = slot >= 0 && u32(slot) < p.limit;
    let from_first = p.x + token * p.x_token + head * p.x_head;

    // Magnitudes compare as their bits do; those of infinity and of what is no number are the largest.
    var share = 0u;
    if written {
        for (var d = lane; d < p.head_dim; d += LANES) {
            share = max(share, bitcast<u32>(x_at(from_first + d)) & 0x7fffffffu);
        }
    }
    most[index] = share;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            most[index] = max(most[index], most[index + half]);
        }
    }
    workgroupBarrier();
    let largest = most[index - lane];
    let bits = select(0u, largest, largest > LEAST);
    if !written {
        return;
    }
    let first = (p.pages + u32(slot) / PAGE * p.page + u32(slot) % PAGE * p.slot + head * p.page_head) >> 2u;
    let real = bits < 0x7f800000u;
    let factor = select(0.0, 127.0 / bitcast<f32>(bits), real && bits > 0u);
    for (var word = lane; 4u * word < p.head_dim; word += LANES) {
        var codes = 0u;
        for (var i = 0u; i < 4u && real; i++) {
            let code = clamp(round(x_at(from_first + 4u * word + i) * factor), -127.0, 127.0);
            codes |= (bitcast<u32>(i32(code)) & 0xffu) << (8u * i);
        }
        pages[first + word] = codes;
    }
    if lane == 0u {
        pages[first + p.head_dim / 4u] = select(0x7fc00000u, bitcast<u32>(bitcast<f32>(bits) / 127.0), real);
    }
}
