// The heads of one tensor: how they are read, normalized, turned and written.
//
// FROM: the tensor that is read, with its scale FROM_norm and its operand `p.FROM_norm`; TO: the one that is written, which
// may be the same.
// Gives `FROM_squares`: a lane's share of the sum of squares; and `FROM_turn`: a lane's share of the turned head. A lane
// reads all elements that it writes first and no other lane reads or writes them, so that a head may be turned in place.

fn ${FROM}_squares(first: u32, lane: u32) -> f32 {
    var sum = 0.0;
    for (var d = lane; d < head_dim(); d += LANES) {
        let x = ${FROM}_at(first + d);
        sum = fma(x, x, sum);
    }
    return sum;
}

// Element `d` of a head, normalized.
fn ${FROM}_normed(first: u32, d: u32, scale: f32) -> f32 {
#if NORM
    return ${FROM}_at(first + d) * (scale * (${FROM}_norm_at(p.${FROM}_norm + d) + p.weight_offset));
#else
    return ${FROM}_at(first + d);
#endif
}

// Elements `d` and `d + 1`, normalized.
fn ${FROM}_normed2(first: u32, d: u32, scale: f32) -> vec2<f32> {
    let i = first + d;
    var x: vec2<f32>;
    if (i & 1u) == 0u {
        x = ${FROM}_at2(i);
    } else {
        x = vec2<f32>(${FROM}_at(i), ${FROM}_at(i + 1u));
    }
#if NORM
    let weight = vec2<f32>(${FROM}_norm_at(p.${FROM}_norm + d), ${FROM}_norm_at(p.${FROM}_norm + d + 1u));
    return x * (scale * (weight + p.weight_offset));
#else
    return x;
#endif
}

fn ${FROM}_turn(from_first: u32, to_first: u32, token: u32, scale: f32, lane: u32) {
    let pairs = p.head_pairs >> 16u;
#if STYLE == half
    // Two neighbouring pairs at once: their elements are neighbours too.
    for (var pair = 2u * lane; pair + 1u < pairs; pair += 2u * LANES) {
        let a = ${FROM}_normed2(from_first, pair, scale);
        let b = ${FROM}_normed2(from_first, pair + pairs, scale);
        let first = angle(token, pair);
        let second = angle(token, pair + 1u);
        let s = vec2<f32>(first.x, second.x);
        let c = vec2<f32>(first.y, second.y);
        ${TO}_set2(to_first + pair, a * c - b * s);
        ${TO}_set2(to_first + pair + pairs, b * c + a * s);
    }
    if pairs % 2u == 1u && lane == 0u {
        let a = ${FROM}_normed(from_first, pairs - 1u, scale);
        let b = ${FROM}_normed(from_first, 2u * pairs - 1u, scale);
        let t = angle(token, pairs - 1u);
        ${TO}_set(to_first + pairs - 1u, a * t.y - b * t.x);
        ${TO}_set(to_first + 2u * pairs - 1u, b * t.y + a * t.x);
    }
#else
    for (var pair = lane; pair < pairs; pair += LANES) {
        let x = ${FROM}_normed2(from_first, 2u * pair, scale);
        let t = angle(token, pair);
        ${TO}_set2(to_first + 2u * pair, vec2<f32>(x.x * t.y - x.y * t.x, x.y * t.y + x.x * t.x));
    }
#endif
    for (var d = 2u * pairs + lane; d < head_dim(); d += LANES) {
        ${TO}_set(to_first + d, ${FROM}_normed(from_first, d, scale));
    }
}
