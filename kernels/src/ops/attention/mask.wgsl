// Which keys a query sees, and what becomes of its scores.
//
// A query at `position` of its sequence sees key j if `j < prefix` or `first_seen <= j < end_seen`. Scores carry a factor of
// log2 e, so that the softmax takes powers of two.
#include "ops/attention/keys.wgsl"
#include "wgpu/include/math.wgsl"

// The score of a key that is not seen: far below LEAST, so that its power is 0 whatever was seen before.
const HIDDEN: f32 = -3.0e38;
// The largest score before any key was seen.
const LEAST: f32 = -1.0e30;
const LOG2_E: f32 = 1.44269504;

// The position of query `i`: the queries of a sequence are its last ones.
fn position_of(s: Sequence, i: u32) -> i32 {
    return i32(s.kv_len + i) - i32(s.q_len);
}

fn first_seen(position: i32) -> u32 {
    return select(0u, u32(max(position - i32(p.window) + 1, 0)), p.window > 0u);
}

fn end_seen(s: Sequence, position: i32) -> u32 {
    return select(s.kv_len, u32(clamp(position + 1, 0, i32(s.kv_len))), p.causal == 1u);
}

// Scores of the keys `j .. j + 4`, those that are not seen hidden.
fn hide(s: Sequence, position: i32, j: u32, scores: vec4<f32>) -> vec4<f32> {
    let keys = vec4<u32>(j, j + 1u, j + 2u, j + 3u);
    let first = vec4<u32>(first_seen(position));
    let end = vec4<u32>(end_seen(s, position));
    let seen = (keys < vec4<u32>(s.prefix)) | ((keys >= first) & (keys < end));
    return select(vec4<f32>(HIDDEN), scores, seen);
}

// The first key that any query from `position` on sees.
fn first_of_all(s: Sequence, position: i32) -> u32 {
    return select(first_seen(position), 0u, s.prefix > 0u);
}

// The end of the keys that any query up to `position` sees.
fn end_of_all(s: Sequence, position: i32) -> u32 {
    return max(end_seen(s, position), s.prefix);
}

// The scores of products q . k.
fn scores_of(products: vec4<f32>) -> vec4<f32> {
    var x = products * p.scale;
    if p.softcap > 0.0 {
        x = x / p.softcap;
        x = p.softcap * vec4<f32>(tanh_f32(x.x), tanh_f32(x.y), tanh_f32(x.z), tanh_f32(x.w));
    }
    return x * LOG2_E;
}
