// Attention of few queries: the keys of a sequence are split among workgroups, see combine.wgsl for the sum of their parts.
//
// q, out: [tokens, heads_q, HEAD_DIM] of type X   k, v: packed or paged, of type KV, see keys.wgsl   masks: see mask.wgsl
// partial: f32 [tokens, heads_q, splits, COLUMNS + 1, 4]: sums of a split, and in the last four its largest score and the sum
// of its powers. With DIRECT there is one split, and the result is written at once.
//
// While a sequence is decoded, every key and value is read once and used for the few rows that share its head: memory is
// what bounds this kernel. So a workgroup takes up to ROWS of the rows (query r / group, head r % group of the group) of one key
// head together, one of `splits` equal parts of the keys that any of them sees, and reads each key and value once, straight
// from memory into registers. The number of splits comes from bounds that the host knows; their length from the sequence.
//
// A tile of 64 keys goes through three steps, the online softmax of flash.wgsl:
//
//   q . k     four lanes a key: neighbours read neighbouring columns (four elements), 32 keys of the workgroup at once
//   softmax   eight lanes a row, eight keys a lane
//   P v       a lane a column, neighbours again, as many keys at once as the workgroup holds heads
//
// Values are asked for before the products: of a lane the first HELD ones are on their way while the softmax is computed.
//
// SUBGROUPS: the four lanes of a key add up by shuffles, which any width of subgroups allows; else through workgroup memory.

const HEAD_DIM: u32 = ${HEAD_DIM}u;
#include "ops/attention/mask.wgsl"
#include "ops/attention/rows4.wgsl" NAME=q BINDING=0 TYPE=${X}
#include "ops/attention/rows4.wgsl" NAME=k BINDING=1 TYPE=${KV}
#include "ops/attention/rows4.wgsl" NAME=v BINDING=2 TYPE=${KV}
#if DIRECT
#include "ops/attention/result.wgsl" TYPE=${X}
#else
@group(0) @binding(3) var<storage, read_write> partial: array<vec4<f32>>;
#endif

const ROWS: u32 = ${ROWS}u;
const WG: u32 = 128u;
const TILE_K: u32 = 64u;
const COLUMNS: u32 = (HEAD_DIM + 3u) / 4u;
// Keys whose values are read at once.
const V_LANES: u32 = WG / COLUMNS;
// Keys of a lane in P v, and how many of their values it asks for ahead.
const V_KEYS: u32 = (TILE_K + V_LANES - 1u) / V_LANES;
const HELD: u32 = min(V_KEYS, 16u);
// Lanes of a row in the softmax, and keys of each.
const S_LANES: u32 = 8u;
const S_KEYS: u32 = TILE_K / S_LANES;

var<workgroup> sequence: Sequence;
// The rows of q; in the end what invocations with the same column add up.
var<workgroup> queries: array<vec4<f32>, max(ROWS * COLUMNS, WG)>;
#if SUBGROUPS
var<workgroup> products: array<f32, ROWS * TILE_K>;
#else
// Of each product the shares of its four lanes.
var<workgroup> products: array<vec4<f32>, ROWS * TILE_K>;
#endif
// Powers of the tile, the rows of a key together.
var<workgroup> powers: array<f32, TILE_K * ROWS>;
// What the lanes of a row found.
var<workgroup> shares: array<f32, ROWS * S_LANES>;
var<workgroup> fade: array<f32, ROWS>;

fn stage_q(s: Sequence, head_kv: u32, row0: u32, rows: u32, index: u32) {
    for (var i = index; i < ROWS * COLUMNS; i += WG) {
        let row = row0 + i / COLUMNS;
        var x = vec4<f32>(0.0);
        if row < rows {
            let head = head_kv * p.group + row % p.group;
            x = q_row4(p.q + (s.q_first + row / p.group) * p.q_token + head * p.q_head, i % COLUMNS);
        }
        queries[i] = x;
    }
}

// Products of all rows with the keys `key0..` below `end`.
fn multiply_qk(s: Sequence, head_kv: u32, key0: u32, end: u32, index: u32) {
    let lane = index % 4u;
    for (var local = index / 4u; local < TILE_K; local += WG / 4u) {
        var sum: array<f32, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            sum[r] = 0.0;
        }
        if key0 + local < end {
            let first = key_row(s, key0 + local).x + head_kv * p.k_head;
            for (var c = lane; c < COLUMNS; c += 4u) {
                let x = k_row4(first, c);
                for (var r = 0u; r < ROWS; r++) {
                    sum[r] += dot(x, queries[r * COLUMNS + c]);
                }
            }
        }
        for (var r = 0u; r < ROWS; r++) {
#if SUBGROUPS
            let pair = sum[r] + subgroupShuffleXor(sum[r], 1u);
            let all = pair + subgroupShuffleXor(pair, 2u);
            if lane == 0u {
                products[r * TILE_K + local] = all;
            }
#else
            products[r * TILE_K + local][lane] = sum[r];
#endif
        }
    }
}

fn product_at(i: u32) -> f32 {
#if SUBGROUPS
    return products[i];
#else
    let x = products[i];
    return (x.x + x.y) + (x.z + x.w);
#endif
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
#if SUBGROUPS
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) width: u32,
    @builtin(subgroup_invocation_id) invocation: u32,
#else
    @builtin(local_invocation_index) index: u32,
#endif
) {
#if SUBGROUPS
    // Four neighbours by this number are in one subgroup.
    let index = subgroup * width + invocation;
#endif
    let split = group.x;
    let heads_kv = p.heads_q / p.group;
    let head_kv = group.y % heads_kv;
    let row0 = group.y / heads_kv * ROWS;
    if index == 0u {
        sequence = read_sequence(group.z);
    }
    let s = workgroupUniformLoad(&sequence);
    let rows = s.q_len * p.group;
    if row0 >= rows {
        return;
    }
    stage_q(s, head_kv, row0, rows, index);

    // The keys of this split: whole tiles of those that any row sees.
    let seen = seen_by_tile(s, row0 / p.group, (min(row0 + ROWS, rows) - 1u) / p.group, index);
    let begin = seen.x / TILE_K * TILE_K;
    let all_end = max(seen.w, begin);
    let tiles = (all_end - begin + TILE_K - 1u) / TILE_K;
    let length = (tiles + p.splits - 1u) / p.splits * TILE_K;
    let end = min(begin + (split + 1u) * length, all_end);

    // In the softmax: row and lane; in P v: column and the first of its keys.
    let s_row = index / S_LANES;
    let s_lane = index % S_LANES;
    let seen_by_row = seen_by(s, (row0 + s_row) / p.group);
    let column = index % COLUMNS;
    let v_lane = index / COLUMNS;
    var most = LEAST;
    var sum = 0.0;
    var o: array<vec4<f32>, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        o[r] = vec4<f32>(0.0);
    }
    for (var key0 = begin + split * length; key0 < end; key0 += TILE_K) {
        let keys = select(0u, min(TILE_K, end - key0), v_lane < V_LANES);
        // Values of keys that no row sees are zeros, see flash.wgsl.
        let hidden = max(seen.x, key0) - key0;
        var held: array<vec4<f32>, HELD>;
        for (var i = 0u; i < HELD; i++) {
            let local = v_lane + i * V_LANES;
            held[i] = vec4<f32>(0.0);
            if local >= hidden && local < keys {
                held[i] = v_row4(key_row(s, key0 + local).y + head_kv * p.v_head, column);
            }
        }
        workgroupBarrier();
        multiply_qk(s, head_kv, key0, end, index);
        workgroupBarrier();

        var x: array<vec4<f32>, S_KEYS / 4u>;
        if s_row < ROWS {
            var largest = vec4<f32>(HIDDEN);
            for (var i = 0u; i < S_KEYS / 4u; i++) {
                let local = s_lane * S_KEYS + 4u * i;
                let at = s_row * TILE_K + local;
                let found = vec4<f32>(product_at(at), product_at(at + 1u), product_at(at + 2u), product_at(at + 3u));
                x[i] = hide(seen_by_row, key0 + local, scores_of(found));
                largest = max(largest, x[i]);
            }
            let pair = max(largest.xy, largest.zw);
            shares[index] = max(pair.x, pair.y);
        }
        workgroupBarrier();
        if s_row < ROWS {
            let before = most;
            for (var i = 0u; i < S_LANES; i++) {
                most = max(most, shares[s_row * S_LANES + i]);
            }
            let factor = exp2_f32(before - most);
            sum *= factor;
            if s_lane == 0u {
                fade[s_row] = factor;
            }
            for (var i = 0u; i < S_KEYS / 4u; i++) {
                let power = exp2x4_f32(x[i] - most);
                sum += (power.x + power.y) + (power.z + power.w);
                let at = (s_lane * S_KEYS + 4u * i) * ROWS + s_row;
                powers[at] = power.x;
                powers[at + ROWS] = power.y;
                powers[at + 2u * ROWS] = power.z;
                powers[at + 3u * ROWS] = power.w;
            }
        }
        workgroupBarrier();

        for (var r = 0u; r < ROWS; r++) {
            o[r] *= fade[r];
        }
        for (var i = 0u; i < HELD; i++) {
            let local = v_lane + i * V_LANES;
            if local < keys {
                for (var r = 0u; r < ROWS; r++) {
                    o[r] += powers[local * ROWS + r] * held[i];
                }
            }
        }
        for (var local = v_lane + HELD * V_LANES; local < keys; local += V_LANES) {
            if local < hidden {
                continue;
            }
            let x = v_row4(key_row(s, key0 + local).y + head_kv * p.v_head, column);
            for (var r = 0u; r < ROWS; r++) {
                o[r] += powers[local * ROWS + r] * x;
            }
        }
    }

    workgroupBarrier();
    if s_row < ROWS {
        shares[index] = sum;
        if s_lane == 0u {
            fade[s_row] = most;
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        workgroupBarrier();
        queries[index] = o[r];
        workgroupBarrier();
        if index < COLUMNS && row0 + r < rows {
            var x = vec4<f32>(0.0);
            for (var i = 0u; i < V_LANES; i++) {
                x += queries[i * COLUMNS + index];
            }
            var total = 0.0;
            for (var i = 0u; i < S_LANES; i++) {
                total += shares[r * S_LANES + i];
            }
            let token = s.q_first + (row0 + r) / p.group;
            let head = head_kv * p.group + (row0 + r) % p.group;
#if DIRECT
            // A row that sees no key is zero.
            x *= select(0.0, 1.0 / total, total > 0.0);
            store_row4(p.out + token * p.out_token + head * p.out_head, index, x);
#else
            let first = p.partial / 4u + ((token * p.heads_q + head) * p.splits + split) * (COLUMNS + 1u);
            partial[first + index] = x;
            if index == 0u {
                partial[first + COLUMNS] = vec4<f32>(fade[r], total, 0.0, 0.0);
            }
#endif
        }
    }
}
