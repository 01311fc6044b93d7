// Which keys a query sees, and what becomes of its scores.
//
// A query sees the keys `x <= j < y` of a range, whose bounds ascend with the query. Scores carry a factor of log2 e, so that the
// softmax takes powers of two.
//
// RANGES: whether memory says the ranges for each row of q, or they follow from the query's position; FROM: whether memory says
// where they begin too.
#include "ops/attention/keys.wgsl"
#include "wgpu/include/math.wgsl"

#if RANGES
@group(0) @binding(7) var<storage, read_write> ranges: array<i32>;
var<workgroup> of_tile: vec4<u32>;
#endif

// The score of a key that is not seen: far below LEAST, so that its power is 0 whatever was seen before.
const HIDDEN: f32 = -3.0e38;
// The largest score before any key was seen.
const LEAST: f32 = -1.0e30;
const LOG2_E: f32 = 1.44269504;

// The keys that query `i` of a sequence sees.
fn seen_by(s: Sequence, i: u32) -> vec2<u32> {
#if RANGES
    // Queries beyond the last do what the last one does.
    let token = s.q_first + min(i, max(s.q_len, 1u) - 1u);
    let end = u32(clamp(ranges[p.ranges_to + token], 0, i32(s.kv_len)));
#if FROM
    return vec2<u32>(u32(clamp(ranges[p.ranges_from + token], 0, i32(s.kv_len))), end);
#else
    return vec2<u32>(0u, end);
#endif
#else
    // The queries of a sequence are its last ones.
    let position = i32(s.kv_len + i) - i32(s.q_len);
    let first = select(0u, u32(max(position - i32(p.window) + 1, 0)), p.window > 0u);
    return vec2<u32>(first, select(s.kv_len, u32(clamp(position + 1, 0, i32(s.kv_len))), p.causal == 1u));
#endif
}

// What the queries `first` and `last` see, the same for all invocations, which call it together. The queries between them see keys
// of `x .. w` only, and all of them those of `z .. y`.
fn seen_by_tile(s: Sequence, first: u32, last: u32, index: u32) -> vec4<u32> {
#if RANGES
    if index == 0u {
        of_tile = vec4<u32>(seen_by(s, first), seen_by(s, last));
    }
    return workgroupUniformLoad(&of_tile);
#else
    return vec4<u32>(seen_by(s, first), seen_by(s, last));
#endif
}

// Scores of the keys `j .. j + 4`, those that are not seen hidden.
fn hide(seen: vec2<u32>, j: u32, scores: vec4<f32>) -> vec4<f32> {
    let keys = vec4<u32>(j, j + 1u, j + 2u, j + 3u);
    return select(vec4<f32>(HIDDEN), scores, (keys >= vec4<u32>(seen.x)) & (keys < vec4<u32>(seen.y)));
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
