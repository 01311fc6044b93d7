// First step of sampling: logits to keys, and the best token of each chunk.
//
// logits: [rows, vocab] of type X   settings: f32 [rows, 7]   history: i32 [rows, width]
// mask: bits [masks, vocab / 32], of which rows name one
// -> keys: u32 [rows, pitch], pitch = vocab rounded up to 4   best: (key, token) [rows, chunks]
//
// A workgroup takes CHUNK neighbouring tokens of a row, four at a time an invocation. With a repetition penalty it first
// goes through the row's history and marks the tokens of its chunk in a bit mask, so that a token seen twice is penalized
// once. Keys order as logits do, see order.wgsl; those beyond the vocabulary are 0. Greedy rows need no keys and do not
// get any. Of the tokens with the largest key the lowest is the best.
//
// VEC: rows of logits begin at multiples of four elements and have a multiple of four. HISTORY, MASK: there is one. Logits of tokens that a
// row's mask leaves out become minus infinity, but NaN stays.
#include "ops/sample/order.wgsl"
#if VEC
#include "wgpu/include/input4.wgsl" NAME=logits BINDING=0 TYPE=${X} ACCESS=read_write
#else
#include "wgpu/include/input.wgsl" NAME=logits BINDING=0 TYPE=${X} ACCESS=read_write
#endif
@group(0) @binding(1) var<storage, read_write> settings: array<f32>;
#if HISTORY
@group(0) @binding(2) var<storage, read_write> history: array<i32>;
#endif
@group(0) @binding(3) var<storage, read_write> keys: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> best: array<vec2<u32>>;
#if MASK
@group(0) @binding(5) var<storage, read_write> mask: array<u32>;
#endif

struct Params {
    vocab: u32,
    logits: u32,
    logits_stride: u32,
    settings: u32,
    settings_stride: u32,
    history: u32,
    history_stride: u32,
    width: u32,
    mask: u32,
    mask_stride: u32,
    masks: u32,
}
${PARAMS} p: Params;

const WG: u32 = 256u;
const CHUNK: u32 = ${CHUNK}u;

var<workgroup> best_key: atomic<u32>;
var<workgroup> best_token: atomic<u32>;

#if HISTORY
var<workgroup> seen: array<atomic<u32>, CHUNK / 32u>;

// Marks the tokens of the chunk from `first` on that are in the row's history.
fn mark_seen(row: u32, first: u32, lane: u32) {
    for (var i = lane; i < CHUNK / 32u; i += WG) {
        atomicStore(&seen[i], 0u);
    }
    workgroupBarrier();
    for (var i = lane; i < p.width; i += WG) {
        // Padding is negative: a number beyond every chunk.
        let token = bitcast<u32>(history[p.history + row * p.history_stride + i]);
        if token >= first && token - first < CHUNK {
            atomicOr(&seen[(token - first) >> 5u], 1u << (token & 31u));
        }
    }
    workgroupBarrier();
}

fn penalized(logit: f32, place: u32, penalty: f32) -> f32 {
    let finite = (bitcast<u32>(logit) & 0x7f800000u) != 0x7f800000u;
    if penalty == 1.0 || !finite || (atomicLoad(&seen[place >> 5u]) & (1u << (place & 31u))) == 0u {
        return logit;
    }
    return select(logit * penalty, logit / penalty, logit > 0.0);
}
#endif

// Logits `token..token + 4`; those beyond the vocabulary are not to be used.
fn logits4(row: u32, token: u32) -> vec4<f32> {
    let first = p.logits + row * p.logits_stride;
#if VEC
    return logits_at4(first + token);
#else
    let last = p.vocab - 1u;
    return vec4<f32>(
        logits_at(first + token),
        logits_at(first + min(token + 1u, last)),
        logits_at(first + min(token + 2u, last)),
        logits_at(first + min(token + 3u, last)),
    );
#endif
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y;
    let first = group.x * CHUNK;
    let own_settings = p.settings + row * p.settings_stride;
    let greedy = settings[own_settings + ${TEMPERATURE}u] <= 0.0;
    if lane == 0u {
        atomicStore(&best_key, 0u);
        atomicStore(&best_token, 0xffffffffu);
    }
#if HISTORY
    let penalty = settings[own_settings + ${REPETITION_PENALTY}u];
    mark_seen(row, first, lane);
#else
    workgroupBarrier();
#endif

#if MASK
    let mask_number = u32(max(settings[own_settings + ${MASK_COLUMN}u], 0.0));
    let masked = mask_number > 0u && mask_number <= p.masks;
    let own_mask = p.mask + select(0u, (mask_number - 1u) * p.mask_stride, masked);
#endif
    var own = vec2<u32>(0u, 0u);
    for (var place = 4u * lane; place < CHUNK; place += 4u * WG) {
        let token = first + place;
        if token >= p.vocab {
            break;
        }
        let four = logits4(row, token);
        var words = vec4<u32>(0u);
#if MASK
        var allowed = 0xfu;
        if masked {
            allowed = mask[own_mask + (token >> 5u)] >> (token & 31u);
        }
#endif
        for (var i = 0u; i < min(4u, p.vocab - token); i++) {
#if HISTORY
            words[i] = key_of(penalized(four[i], place + i, penalty));
#else
            words[i] = key_of(four[i]);
#endif
#if MASK
            if ((allowed >> i) & 1u) == 0u && words[i] <= INFINITE_KEY {
                words[i] = LEAST_KEY;
            }
#endif
            if words[i] > own.x {
                own = vec2<u32>(words[i], token + i);
            }
        }
        if !greedy {
            keys[row * ((p.vocab + 3u) / 4u) + token / 4u] = words;
        }
    }
    atomicMax(&best_key, own.x);
    workgroupBarrier();
    if own.x > 0u && own.x == atomicLoad(&best_key) {
        atomicMin(&best_token, own.y);
    }
    workgroupBarrier();
    if lane == 0u {
        let chunks = (p.vocab + CHUNK - 1u) / CHUNK;
        best[row * chunks + group.x] = vec2<u32>(atomicLoad(&best_key), atomicLoad(&best_token));
    }
}
