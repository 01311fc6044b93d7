// The `top` experts of each row by its logits, and their weights.
//
// logits: [rows, experts] of type X   bias, factors: f32 [experts] if BIAS, FACTORS   ids: i32, weights: f32 [rows, top]
//
// A workgroup takes a row, whose scores and keys lie in workgroup memory: 1024 experts at most. Each round of `top` finds the
// largest key, of equals the one of the lowest number, and takes it out. Without a bias keys are the logits themselves: scores
// ascend with them, and rounding does not decide.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/input.wgsl" NAME=logits BINDING=0 TYPE=${X} ACCESS=read_write
#if BIAS
#include "wgpu/include/input.wgsl" NAME=bias BINDING=1 TYPE=f32 ACCESS=${BIAS_ACCESS}
#endif
#if FACTORS
#include "wgpu/include/input.wgsl" NAME=factors BINDING=2 TYPE=f32 ACCESS=${FACTORS_ACCESS}
#endif

@group(0) @binding(3) var<storage, read_write> ids: array<i32>;
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;

struct Params {
    rows: u32,
    experts: u32,
    top: u32,
    logits: u32,
    logits_stride: u32,
    bias: u32,
    factors: u32,
    ids: u32,
    weights: u32,
    normalize: u32,
    scale: f32,
}
${PARAMS} p: Params;

const WG: u32 = 64u;
const MOST: u32 = 1024u;
const NONE: u32 = 0xffffffffu;
const LEAST: f32 = -3.4028234e38;

var<workgroup> scores: array<f32, MOST>;
var<workgroup> keys: array<f32, MOST>;
var<workgroup> taken: array<u32, MOST>;
var<workgroup> best: array<f32, WG>;
var<workgroup> place: array<u32, WG>;

// The larger of two keys comes first, of equals the one of the lower number; NONE comes last.
fn before(a: f32, a_at: u32, b: f32, b_at: u32) -> bool {
    if a_at == NONE || b_at == NONE {
        return a_at != NONE;
    }
    return a > b || (a == b && a_at < b_at);
}

fn largest_of_lanes(lane: u32) {
    for (var step = WG / 2u; step > 0u; step >>= 1u) {
        workgroupBarrier();
        if lane < step && before(best[lane + step], place[lane + step], best[lane], place[lane]) {
            best[lane] = best[lane + step];
            place[lane] = place[lane + step];
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = linear_workgroup(group, groups);
    if row >= p.rows {
        return;
    }
    let first = p.logits + row * p.logits_stride;
    best[lane] = LEAST;
    place[lane] = NONE;
    for (var i = lane; i < p.experts; i += WG) {
        let logit = logits_at(first + i);
        keys[i] = logit;
        taken[i] = 0u;
        if before(logit, i, best[lane], place[lane]) {
            best[lane] = logit;
            place[lane] = i;
        }
    }
    largest_of_lanes(lane);
    let most = best[0];
    workgroupBarrier();
    var part = 0.0;
    for (var i = lane; i < p.experts; i += WG) {
#if SOFTMAX
        scores[i] = exp(keys[i] - most);
#else
        scores[i] = 1.0 / (1.0 + exp(-keys[i]));
#endif
        part += scores[i];
    }
    best[lane] = part;
    for (var step = WG / 2u; step > 0u; step >>= 1u) {
        workgroupBarrier();
        if lane < step {
            best[lane] += best[lane + step];
        }
    }
    workgroupBarrier();
    let total = best[0];
    workgroupBarrier();
    for (var i = lane; i < p.experts; i += WG) {
#if SOFTMAX
        scores[i] /= total;
#endif
#if BIAS
        keys[i] = scores[i] + bias_at(p.bias + i);
#endif
    }
    var sum = 0.0;
    for (var round = 0u; round < p.top; round += 1u) {
        best[lane] = LEAST;
        place[lane] = NONE;
        for (var i = lane; i < p.experts; i += WG) {
            if taken[i] == 0u && before(keys[i], i, best[lane], place[lane]) {
                best[lane] = keys[i];
                place[lane] = i;
            }
        }
        largest_of_lanes(lane);
        // Where logits are no numbers, any expert serves: the result is none either.
        let id = min(place[0], p.experts - 1u);
        workgroupBarrier();
        if lane == id % WG {
            taken[id] = 1u;
        }
        sum += scores[id];
        if lane == 0u {
            ids[p.ids + row * p.top + round] = i32(id);
        }
    }
    // The places of this row were written by invocation 0 alone.
    if lane == 0u {
        var share = p.scale;
        if p.normalize == 1u {
            share /= sum;
        }
        for (var round = 0u; round < p.top; round += 1u) {
            let at = row * p.top + round;
            let id = u32(ids[p.ids + at]);
            var weight = scores[id] * share;
#if FACTORS
            weight *= factors_at(p.factors + id);
#endif
            weights[p.weights + at] = weight;
        }
    }
}
