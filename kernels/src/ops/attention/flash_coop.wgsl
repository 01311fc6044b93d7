enable f16;
enable wgpu_cooperative_matrix;
// naga takes every variable for one that differs between invocations; those that control flow here are the same for all.
diagnostic(off, derivative_uniformity);
// Attention of many queries as in flash.wgsl, by cooperative matrices: products of f16, sums of f32, one instruction of a
// subgroup for SIDE x SIDE x SIDE multiply-adds. Matrices of side 8 are run on a software
// driver; expansions of both sides are validated by `tests/wgpu/sources_attention.rs`. No GPU has run it.
//
// q, out: [tokens, heads_q, HEAD_DIM] of f16   k, v: packed or paged, of f16, see keys.wgsl   masks: see mask.wgsl
// SIDE: 8 or 16; WG: invocations, four times the widest subgroup, 128 at least; BLOCKS: matrices of rows of a subgroup.
//
// A workgroup takes TILE_Q rows of one key head (query r / group, head r % group of the group). Four subgroups have
// BLOCKS x SIDE rows each, with their q and o as matrices in registers; keys and values pass through workgroup memory, TILE_K at
// a time, in one place: values replace keys while the softmax is computed. For a tile of keys
//
//   S = q k^T    matrices of sums, to workgroup memory
//   P = 2^(S - most)    LANES invocations a row; to workgroup memory as f16
//   o = o + P v  matrices of sums
//
// Matrices cannot be scaled row by row, so o is not brought to each new maximum. `most` stays as it is as long as no score
// exceeds it by more than HEADROOM, so that P stays within f16; only then o goes through workgroup memory and is faded: in
// the first tiles of a sequence, and seldom later. The result does not depend on it, as `sum` is scaled alike.
//
// Where subgroups turn out narrower than the widest, those beyond four repeat the work of the first and store nothing, as
// all must reach every instruction. Rows in workgroup memory are 16 bytes longer than their data: eight of them lie in
// different banks, and matrices begin at multiples of 16 bytes.
const HEAD_DIM: u32 = ${HEAD_DIM}u;
#include "ops/attention/mask.wgsl"
#include "ops/attention/rows4.wgsl" NAME=q BINDING=0 TYPE=f16
#include "ops/attention/rows4.wgsl" NAME=k BINDING=1 TYPE=f16
#include "ops/attention/rows4.wgsl" NAME=v BINDING=2 TYPE=f16
#include "ops/attention/result.wgsl" TYPE=f16

const WG: u32 = ${WG}u;
const SIDE: u32 = ${SIDE}u;
const BLOCKS: u32 = ${BLOCKS}u;
const TILE_Q: u32 = 4u * BLOCKS * SIDE;
const TILE_K: u32 = 32u;
const LANES: u32 = WG / TILE_Q;
// Keys of an invocation in the softmax.
const OWN: u32 = TILE_K / LANES;
// Matrices across a head, and elements of them.
const ACROSS: u32 = (HEAD_DIM + SIDE - 1u) / SIDE;
const WIDTH: u32 = ACROSS * SIDE;
const KV_PITCH: u32 = WIDTH + 8u;
const S_PITCH: u32 = TILE_K + 4u;
const P_PITCH: u32 = TILE_K + 8u;
const HEADROOM: f32 = 8.0;

alias MatrixA = coop_mat${SIDE}x${SIDE}<f16, A>;
alias MatrixB = coop_mat${SIDE}x${SIDE}<f16, B>;
alias MatrixC = coop_mat${SIDE}x${SIDE}<f32, C>;

var<workgroup> sequence: Sequence;
// Keys, then values.
var<workgroup> kv_tile: array<f16, TILE_K * KV_PITCH>;
// Scores; matrices of o where they are taken apart.
var<workgroup> scores: array<f32, TILE_Q * S_PITCH>;
// Powers; queries before the first tile.
var<workgroup> powers: array<f16, TILE_Q * P_PITCH>;
var<workgroup> key_rows: array<vec2<u32>, TILE_K>;
// What the invocations of each row found.
var<workgroup> shares: array<f32, WG>;
// Whether o of any row is to be faded.
var<workgroup> fades: atomic<u32>;

fn stage_k(head_kv: u32, keys: u32, index: u32) {
    for (var i = index; i < TILE_K * (WIDTH / 4u); i += WG) {
        let key = i / (WIDTH / 4u);
        let column = i % (WIDTH / 4u);
        var x = vec4<f32>(0.0);
        if key < keys && 4u * column < HEAD_DIM {
            x = k_row4(key_rows[key].x + head_kv * p.k_head, column);
        }
        set_kv(key * KV_PITCH + 4u * column, x);
    }
}

// Values of keys that no row sees are zeros, see flash.wgsl.
fn stage_v(head_kv: u32, hidden: u32, keys: u32, index: u32) {
    for (var i = index; i < TILE_K * (WIDTH / 4u); i += WG) {
        let key = i / (WIDTH / 4u);
        let column = i % (WIDTH / 4u);
        var x = vec4<f32>(0.0);
        if key >= hidden && key < keys && 4u * column < HEAD_DIM {
            x = v_row4(key_rows[key].y + head_kv * p.v_head, column);
        }
        set_kv(key * KV_PITCH + 4u * column, x);
    }
}

fn set_kv(at: u32, x: vec4<f32>) {
    for (var e = 0u; e < 4u; e++) {
        kv_tile[at + e] = f16(x[e]);
    }
}

// Elements `first .. first + TILE_K` of the rows of q.
fn stage_q(s: Sequence, head_kv: u32, row0: u32, rows: u32, first: u32, index: u32) {
    for (var i = index; i < TILE_Q * (TILE_K / 4u); i += WG) {
        let row = row0 + i / (TILE_K / 4u);
        let column = first / 4u + i % (TILE_K / 4u);
        var x = vec4<f32>(0.0);
        if row < rows && 4u * column < HEAD_DIM {
            let head = head_kv * p.group + row % p.group;
            x = q_row4(p.q + (s.q_first + row / p.group) * p.q_token + head * p.q_head, column);
        }
        let at = i / (TILE_K / 4u) * P_PITCH + i % (TILE_K / 4u) * 4u;
        for (var e = 0u; e < 4u; e++) {
            powers[at + e] = f16(x[e]);
        }
    }
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let head_kv = group.y;
    if index == 0u {
        sequence = read_sequence(group.z);
    }
    let s = workgroupUniformLoad(&sequence);
    let rows = s.q_len * p.group;
    let tiles = (rows + TILE_Q - 1u) / TILE_Q;
    if group.x >= tiles {
        return;
    }
    let row0 = (tiles - 1u - group.x) * TILE_Q;
    let seen = seen_by_tile(s, row0 / p.group, (min(row0 + TILE_Q, rows) - 1u) / p.group, index);
    let end = seen.w;

    // Rows of this subgroup's matrices in the tile; the row of this invocation in the softmax, and its keys' first.
    let block0 = (subgroup & 3u) * BLOCKS * SIDE;
    let stores = subgroup < 4u;
    let row = index / LANES;
    let lane = index % LANES;
    let seen_by_row = seen_by(s, (row0 + row) / p.group);

    for (var i = index; i < TILE_Q * S_PITCH; i += WG) {
        scores[i] = 0.0;
    }
    workgroupBarrier();
    let zero = coopLoadT<MatrixC>(&scores[0], S_PITCH);
    var o: array<MatrixC, BLOCKS * ACROSS>;
    for (var i = 0u; i < BLOCKS * ACROSS; i++) {
        o[i] = zero;
    }
    var queries: array<MatrixA, BLOCKS * ACROSS>;
    for (var first = 0u; first < WIDTH; first += TILE_K) {
        workgroupBarrier();
        stage_q(s, head_kv, row0, rows, first, index);
        workgroupBarrier();
        for (var c = 0u; c < TILE_K / SIDE; c++) {
            if first / SIDE + c < ACROSS {
                for (var b = 0u; b < BLOCKS; b++) {
                    let at = (block0 + b * SIDE) * P_PITCH + c * SIDE;
                    queries[b * ACROSS + first / SIDE + c] = coopLoadT<MatrixA>(&powers[at], P_PITCH);
                }
            }
        }
    }

    var most = LEAST;
    var sum = 0.0;
    for (var key0 = seen.x / TILE_K * TILE_K; key0 < end; key0 += TILE_K) {
        let keys = min(TILE_K, end - key0);
        let hidden = max(seen.x, key0) - key0;
        workgroupBarrier();
        if index < keys {
            key_rows[index] = key_row(s, key0 + index);
        }
        if index == 0u {
            atomicStore(&fades, 0u);
        }
        workgroupBarrier();
        stage_k(head_kv, keys, index);
        workgroupBarrier();

        for (var n = 0u; n < TILE_K / SIDE; n++) {
            var x: array<MatrixC, BLOCKS>;
            for (var b = 0u; b < BLOCKS; b++) {
                x[b] = zero;
            }
            for (var c = 0u; c < ACROSS; c++) {
                // The tile is [key][element]: the matrix of elements by keys is its column-major reading.
                let k = coopLoad<MatrixB>(&kv_tile[n * SIDE * KV_PITCH + c * SIDE], KV_PITCH);
                for (var b = 0u; b < BLOCKS; b++) {
                    x[b] = coopMultiplyAdd(queries[b * ACROSS + c], k, x[b]);
                }
            }
            if stores {
                for (var b = 0u; b < BLOCKS; b++) {
                    coopStoreT(x[b], &scores[(block0 + b * SIDE) * S_PITCH + n * SIDE], S_PITCH);
                }
            }
        }
        workgroupBarrier();

        stage_v(head_kv, hidden, keys, index);
        let masked = key0 < seen.z || key0 + TILE_K > seen.y;
        var x: array<vec4<f32>, OWN / 4u>;
        var largest = vec4<f32>(HIDDEN);
        for (var i = 0u; i < OWN / 4u; i++) {
            let key = 4u * (i * LANES + lane);
            let at = row * S_PITCH + key;
            x[i] = scores_of(vec4<f32>(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]));
            if masked {
                x[i] = hide(seen_by_row, key0 + key, x[i]);
            }
            largest = max(largest, x[i]);
        }
        let pair = max(largest.xy, largest.zw);
        shares[index] = max(pair.x, pair.y);
        workgroupBarrier();
        var highest = most;
        for (var i = 0u; i < LANES; i++) {
            highest = max(highest, shares[row * LANES + i]);
        }
        var factor = 1.0;
        if highest > most + HEADROOM {
            // Before anything was seen there is nothing to fade.
            if most > LEAST {
                factor = exp2_f32(most - highest);
                atomicStore(&fades, 1u);
            }
            most = highest;
        }
        sum *= factor;
        for (var i = 0u; i < OWN / 4u; i++) {
            let power = exp2x4_f32(x[i] - most);
            sum += (power.x + power.y) + (power.z + power.w);
            let at = row * P_PITCH + 4u * (i * LANES + lane);
            for (var e = 0u; e < 4u; e++) {
                powers[at + e] = f16(power[e]);
            }
        }

        if workgroupUniformLoad(&fades) == 1u {
            for (var c = 0u; c < ACROSS; c++) {
                workgroupBarrier();
                if stores {
                    for (var b = 0u; b < BLOCKS; b++) {
                        coopStoreT(o[b * ACROSS + c], &scores[(block0 + b * SIDE) * S_PITCH], S_PITCH);
                    }
                }
                workgroupBarrier();
                for (var i = lane; i < SIDE; i += LANES) {
                    scores[row * S_PITCH + i] *= factor;
                }
                workgroupBarrier();
                for (var b = 0u; b < BLOCKS; b++) {
                    o[b * ACROSS + c] = coopLoadT<MatrixC>(&scores[(block0 + b * SIDE) * S_PITCH], S_PITCH);
                }
            }
        }

        for (var n = 0u; n < TILE_K / SIDE; n++) {
            var power: array<MatrixA, BLOCKS>;
            for (var b = 0u; b < BLOCKS; b++) {
                power[b] = coopLoadT<MatrixA>(&powers[(block0 + b * SIDE) * P_PITCH + n * SIDE], P_PITCH);
            }
            for (var c = 0u; c < ACROSS; c++) {
                let v = coopLoadT<MatrixB>(&kv_tile[n * SIDE * KV_PITCH + c * SIDE], KV_PITCH);
                for (var b = 0u; b < BLOCKS; b++) {
                    o[b * ACROSS + c] = coopMultiplyAdd(power[b], v, o[b * ACROSS + c]);
                }
            }
        }
    }

    workgroupBarrier();
    shares[index] = sum;
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < LANES; i++) {
        total += shares[row * LANES + i];
    }
    // A row that sees no key is zero.
    let scale = select(0.0, 1.0 / total, total > 0.0);
    let number = row0 + row;
    let head = head_kv * p.group + number % p.group;
    let first = p.out + (s.q_first + number / p.group) * p.out_token + head * p.out_head;
    for (var c = 0u; c < ACROSS; c++) {
        workgroupBarrier();
        if stores {
            for (var b = 0u; b < BLOCKS; b++) {
                coopStoreT(o[b * ACROSS + c], &scores[(block0 + b * SIDE) * S_PITCH], S_PITCH);
            }
        }
        workgroupBarrier();
        for (var i = lane; i < SIDE / 4u; i += LANES) {
            let column = c * (SIDE / 4u) + i;
            let at = row * S_PITCH + 4u * i;
            if number < rows && 4u * column < HEAD_DIM {
                let x = vec4<f32>(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);
                store_row4(first, column, x * scale);
            }
        }
    }
}
