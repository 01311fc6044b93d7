// Rotary position embedding: each pair (a, b) of a head is turned by its angle,
//
//   (a, b) -> (a cos - b sin, b cos + a sin) * scaling,   angle = f32(position) * inv_freq[pair],
//
// after an optional RMS normalization of the head. Queries are turned in place, keys in place or on their way into pages of
// the KV cache, to which values are copied.
//
// q: [tokens, heads_q, head_dim]   k, v: [tokens, heads_kv, head_dim]   type X
// positions: i32 [axes, tokens]   inv_freq: f32 [pairs]   pair_axis: i32 [pairs]   slots: i32 [tokens]
// k_pages, v_pages: [pages, PAGE, heads_kv, head_dim] of type KV; without SLOTS token i of the keys goes to page i
//
// WITH_Q, WITH_K and WITH_V say which tensors a launch works on: all of them where the device binds that many buffers, else
// one a launch.
//
// LANES invocations share a head, 128 / LANES heads a workgroup. A head is read where it lies, so that any size works; what
// bounds the kernel is its memory traffic, and the sine and cosine of each pair cost less than reading a table of them.
#default WITH_Q 0
#default WITH_K 0
#default WITH_V 0
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/math.wgsl"
#if WITH_Q
#include "wgpu/include/output.wgsl" NAME=q BINDING=0 TYPE=${X}
#endif
#if WITH_K && PAGED
#include "wgpu/include/input.wgsl" NAME=k BINDING=1 TYPE=${X} ACCESS=read_write
#include "wgpu/include/output.wgsl" NAME=k_pages BINDING=2 TYPE=${KV}
#elif WITH_K
#include "wgpu/include/output.wgsl" NAME=k BINDING=1 TYPE=${X}
#endif
#if WITH_V
#include "wgpu/include/input.wgsl" NAME=v BINDING=3 TYPE=${X} ACCESS=read_write
#include "wgpu/include/output.wgsl" NAME=v_pages BINDING=4 TYPE=${KV}
#endif
#if SLOTS
@group(0) @binding(5) var<storage, read_write> slots: array<i32>;
#endif
#if WITH_Q || WITH_K
@group(0) @binding(6) var<storage, read_write> positions: array<i32>;
@group(0) @binding(7) var<storage, read_write> inv_freq: array<f32>;
#if PAIR_AXIS
@group(0) @binding(8) var<storage, read_write> pair_axis: array<i32>;
#endif
#if NORM && WITH_Q
#include "wgpu/include/input.wgsl" NAME=q_norm BINDING=9 TYPE=${Q_NORM} ACCESS=read
#endif
#if NORM && WITH_K
#include "wgpu/include/input.wgsl" NAME=k_norm BINDING=10 TYPE=${K_NORM} ACCESS=read
#endif
#endif

struct Params {
    tokens: u32,
    // Query heads, and key heads from bit 16 on.
    heads: u32,
    // Elements of a head, and pairs from bit 16 on.
    head_pairs: u32,
    limit: u32,
    q: u32,
    q_token: u32,
    q_head: u32,
    k: u32,
    k_token: u32,
    k_head: u32,
    v: u32,
    v_token: u32,
    v_head: u32,
    positions: u32,
    axis: u32,
    axes: u32,
    inv_freq: u32,
    pair_axis: u32,
    q_norm: u32,
    k_norm: u32,
    slots: u32,
    k_pages: u32,
    k_page: u32,
    k_slot: u32,
    k_page_head: u32,
    v_pages: u32,
    v_page: u32,
    v_slot: u32,
    v_page_head: u32,
    scaling: f32,
    weight_offset: f32,
    eps: f32,
}
${PARAMS} p: Params;

fn head_dim() -> u32 {
    return p.head_pairs & 0xffffu;
}

const WG: u32 = 128u;
const LANES: u32 = 16u;
const PAGE: u32 = ${PAGE}u;

#if WITH_Q || WITH_K
// Sine and cosine of the angle of a pair, times the scaling.
fn angle(token: u32, pair: u32) -> vec2<f32> {
    var axis = 0u;
#if PAIR_AXIS
    axis = u32(clamp(pair_axis[p.pair_axis + pair], 0, i32(p.axes) - 1));
#endif
    let position = positions[p.positions + axis * p.axis + token];
    return sin_cos(f32(position) * inv_freq[p.inv_freq + pair]) * p.scaling;
}

#if WITH_Q
#include "ops/rope/turn.wgsl" FROM=q TO=q
#endif
#if WITH_K && PAGED
#include "ops/rope/turn.wgsl" FROM=k TO=k_pages
#elif WITH_K
#include "ops/rope/turn.wgsl" FROM=k TO=k
#endif
#endif

#if WITH_V
fn copy_v(from_first: u32, to_first: u32, lane: u32) {
    for (var d = 2u * lane; d + 1u < head_dim(); d += 2u * LANES) {
        v_pages_set2(to_first + d, vec2<f32>(v_at(from_first + d), v_at(from_first + d + 1u)));
    }
    if head_dim() % 2u == 1u && lane == 0u {
        v_pages_set(to_first + head_dim() - 1u, v_at(from_first + head_dim() - 1u));
    }
}
#endif

#if NORM
var<workgroup> shares: array<f32, WG>;
#endif

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let lane = index % LANES;
    let heads_kv = p.heads >> 16u;
    // Heads of a token in a row: queries, keys, values, as far as this launch works on them.
    let end_q = ${WITH_Q}u * (p.heads & 0xffffu);
    let end_k = end_q + ${WITH_K}u * heads_kv;
    let heads = end_k + ${WITH_V}u * heads_kv;
    let head_number = linear_workgroup(group, groups) * (WG / LANES) + index / LANES;
    let token = head_number / heads;
    let head = head_number % heads;
    var is_q = token < p.tokens && head < end_q;
    var is_k = token < p.tokens && head >= end_q && head < end_k;
    var is_v = token < p.tokens && head >= end_k;

#if PAGED
    // Keys and values without a slot are not written.
    var page = token;
    var slot = 0u;
#if SLOTS
    if is_k || is_v {
        let number = slots[p.slots + token];
        let has_slot = number >= 0 && u32(number) < p.limit;
        is_k = is_k && has_slot;
        is_v = is_v && has_slot;
        page = u32(number) / PAGE;
        slot = u32(number) % PAGE;
    }
#endif
#endif
#if WITH_Q
    let q_first = p.q + token * p.q_token + head * p.q_head;
#endif
#if WITH_K
    let k_first = p.k + token * p.k_token + (head - end_q) * p.k_head;
#endif

    var scale = 1.0;
#if NORM
    var share = 0.0;
#if WITH_Q
    if is_q {
        share = q_squares(q_first, lane);
    }
#endif
#if WITH_K
    if is_k {
        share = k_squares(k_first, lane);
    }
#endif
    shares[index] = share;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            shares[index] += shares[index + half];
        }
    }
    // Nothing is written before all of the head was read.
    storageBarrier();
    workgroupBarrier();
    scale = 1.0 / sqrt(shares[index - lane] / f32(head_dim()) + p.eps);
#endif

#if WITH_Q
    if is_q {
        q_turn(q_first, q_first, token, scale, lane);
    }
#endif
#if WITH_K
    if is_k {
#if PAGED
        let to_first = p.k_pages + page * p.k_page + slot * p.k_slot + (head - end_q) * p.k_page_head;
        k_turn(k_first, to_first, token, scale, lane);
#else
        k_turn(k_first, k_first, token, scale, lane);
#endif
    }
#endif
#if WITH_V
    if is_v {
        let to_first = p.v_pages + page * p.v_page + slot * p.v_slot + (head - end_k) * p.v_page_head;
        copy_v(p.v + token * p.v_token + (head - end_k) * p.v_head, to_first, lane);
    }
#endif
}
