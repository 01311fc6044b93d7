// Attention of many queries: out[i] = sum_j softmax_j(score(q[i] . k[j])) v[j], without ever storing the scores.
//
// q, out: [tokens, heads_q, HEAD_DIM] of type X   k, v: packed or paged, of type KV, see keys.wgsl   masks: see mask.wgsl
//
// A workgroup takes TILE_Q query rows of one key head of one sequence. The GROUP query heads that share a key head are
// packed: row r is query r / group, head r % group of the group; so a short sequence still fills a tile, and keys are read
// once for the group. It walks over tiles of TILE_K keys with the online softmax (Milakov and Gimelshein 2018; Dao 2022):
//
//   S = q k^T;   most' = max(most, max_j S);   P = 2^(S - most');   fade = 2^(most - most')
//   sum = sum fade + sum_j P;   o = o fade + P v;   in the end out = o / sum
//
// Tiles of keys that are hidden from all rows are not read: those above the diagonal and those left of the window. Values of such
// keys in other tiles are zeros, because a power of 0 times whatever memory holds there may be NaN.
// The last rows of a sequence, which see most, come first, so that the device does not end on long ones.
//
// Both products are register tiles. With TX x TY invocations, invocation (tx, ty) has the rows ty, ty + TY, ... (ROWS of
// them) of both; of S the keys 4 tx .. 4 tx + 4, of o the columns (four elements each) tx, tx + TX, ... The host picks TX so that
// the columns of a head divide evenly. Workgroup memory holds, one after the other in the same place,
//
//   for S: CHUNK columns of q [TILE_Q, CHUNK] and of k [TILE_K, CHUNK] at a time,
//   for o: P [TILE_Q, TILE_K / 4] and V_ROWS rows of v at a time,
//
// all in f32 and vec4, so that one load feeds four products. Row strides are odd, in vec4: neighbours hit different banks.
// Keys lie in the tile in the order 0, 4, 8, ..., 1, 5, 9, ...: neighbours in tx read neighbouring rows, and yet each has
// four keys in a row, whose P is one vec4. A maximum goes through workgroup memory, since subgroups may be absent; sums are kept
// apart by each invocation until the end.
const HEAD_DIM: u32 = ${HEAD_DIM}u;
#include "ops/attention/mask.wgsl"
#include "ops/attention/rows4.wgsl" NAME=q BINDING=0 TYPE=${X}
#include "ops/attention/rows4.wgsl" NAME=k BINDING=1 TYPE=${KV}
#include "ops/attention/rows4.wgsl" NAME=v BINDING=2 TYPE=${KV}
#include "ops/attention/result.wgsl" TYPE=${X}

const TX: u32 = ${TX}u;
const TY: u32 = ${TY}u;
const ROWS: u32 = ${ROWS}u;
const CHUNK: u32 = ${CHUNK}u;
const V_ROWS: u32 = ${V_ROWS}u;
const WG: u32 = TX * TY;
const TILE_Q: u32 = ROWS * TY;
const TILE_K: u32 = 4u * TX;
const COLUMNS: u32 = (HEAD_DIM + 3u) / 4u;
// Columns of an invocation.
const OWN: u32 = (COLUMNS + TX - 1u) / TX;
const QK_STRIDE: u32 = CHUNK | 1u;
const P_STRIDE: u32 = TX | 1u;
const K_FIRST: u32 = TILE_Q * QK_STRIDE;
const V_FIRST: u32 = TILE_Q * P_STRIDE;
const TILE: u32 = max(K_FIRST + TILE_K * QK_STRIDE, V_FIRST + V_ROWS * COLUMNS);

var<workgroup> sequence: Sequence;
var<workgroup> tile: array<vec4<f32>, TILE>;
// First elements of the tile's keys and values.
var<workgroup> key_rows: array<vec2<u32>, TILE_K>;
// Of each row the largest score so far, and the factor of what was summed before the present tile.
var<workgroup> most: array<f32, TILE_Q>;
var<workgroup> fade: array<f32, TILE_Q>;

// Columns `first..` of the rows of q, and of the tile's keys.
fn stage_qk(s: Sequence, head_kv: u32, row0: u32, rows: u32, keys: u32, first: u32, index: u32) {
    for (var i = index; i < TILE_Q * CHUNK; i += WG) {
        let row = row0 + i / CHUNK;
        let column = first + i % CHUNK;
        var x = vec4<f32>(0.0);
        if row < rows && column < COLUMNS {
            let head = head_kv * p.group + row % p.group;
            x = q_row4(p.q + (s.q_first + row / p.group) * p.q_token + head * p.q_head, column);
        }
        tile[i / CHUNK * QK_STRIDE + i % CHUNK] = x;
    }
    for (var i = index; i < TILE_K * CHUNK; i += WG) {
        let place = i / CHUNK;
        let key = 4u * (place % TX) + place / TX;
        let column = first + i % CHUNK;
        var x = vec4<f32>(0.0);
        if key < keys && column < COLUMNS {
            x = k_row4(key_rows[key].x + head_kv * p.k_head, column);
        }
        tile[K_FIRST + place * QK_STRIDE + i % CHUNK] = x;
    }
}

// Rows `first..` of the tile's values, of the keys `hidden .. keys`.
fn stage_v(head_kv: u32, hidden: u32, keys: u32, first: u32, index: u32) {
    for (var i = index; i < V_ROWS * COLUMNS; i += WG) {
        let key = first + i / COLUMNS;
        var x = vec4<f32>(0.0);
        if key >= hidden && key < keys {
            x = v_row4(key_rows[key].y + head_kv * p.v_head, i % COLUMNS);
        }
        tile[V_FIRST + i] = x;
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
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
    let tx = index % TX;
    let ty = index / TX;

    var o: array<vec4<f32>, ROWS * OWN>;
    var sum: array<f32, ROWS>;
    for (var i = 0u; i < ROWS * OWN; i++) {
        o[i] = vec4<f32>(0.0);
    }
    for (var m = 0u; m < ROWS; m++) {
        sum[m] = 0.0;
    }
    if index < TILE_Q {
        most[index] = LEAST;
    }

    for (var key0 = seen.x / TILE_K * TILE_K; key0 < end; key0 += TILE_K) {
        let keys = min(TILE_K, end - key0);
        let hidden = max(seen.x, key0) - key0;
        workgroupBarrier();
        if index < keys {
            key_rows[index] = key_row(s, key0 + index);
        }

        var x: array<vec4<f32>, ROWS>;
        for (var m = 0u; m < ROWS; m++) {
            x[m] = vec4<f32>(0.0);
        }
        for (var first = 0u; first < COLUMNS; first += CHUNK) {
            workgroupBarrier();
            stage_qk(s, head_kv, row0, rows, keys, first, index);
            workgroupBarrier();
            for (var c = 0u; c < CHUNK; c++) {
                let k0 = tile[K_FIRST + tx * QK_STRIDE + c];
                let k1 = tile[K_FIRST + (tx + TX) * QK_STRIDE + c];
                let k2 = tile[K_FIRST + (tx + 2u * TX) * QK_STRIDE + c];
                let k3 = tile[K_FIRST + (tx + 3u * TX) * QK_STRIDE + c];
                for (var m = 0u; m < ROWS; m++) {
                    let a = tile[(m * TY + ty) * QK_STRIDE + c];
                    x[m] += vec4<f32>(dot(a, k0), dot(a, k1), dot(a, k2), dot(a, k3));
                }
            }
        }
        workgroupBarrier();

        // Scores, and the largest of each row: the row's place in P serves for the maxima of its invocations.
        let masked = key0 < seen.z || key0 + TILE_K > seen.y;
        for (var m = 0u; m < ROWS; m++) {
            x[m] = scores_of(x[m]);
            if masked {
                x[m] = hide(seen_by(s, (row0 + m * TY + ty) / p.group), key0 + 4u * tx, x[m]);
            }
            let pair = max(x[m].xy, x[m].zw);
            tile[(m * TY + ty) * P_STRIDE + tx / 4u][tx % 4u] = max(pair.x, pair.y);
        }
        workgroupBarrier();
        if index < TILE_Q {
            let before = most[index];
            var largest = before;
            for (var t = 0u; t < TX; t++) {
                largest = max(largest, tile[index * P_STRIDE + t / 4u][t % 4u]);
            }
            most[index] = largest;
            fade[index] = exp2_f32(before - largest);
        }
        workgroupBarrier();
        for (var m = 0u; m < ROWS; m++) {
            let row = m * TY + ty;
            let power = exp2x4_f32(x[m] - most[row]);
            let factor = fade[row];
            sum[m] = sum[m] * factor + (power.x + power.y + power.z + power.w);
            tile[row * P_STRIDE + tx] = power;
            for (var i = 0u; i < OWN; i++) {
                o[m * OWN + i] *= factor;
            }
        }

        for (var first = 0u; first < TILE_K; first += V_ROWS) {
            if first > 0u {
                workgroupBarrier();
            }
            stage_v(head_kv, hidden, keys, first, index);
            workgroupBarrier();
            for (var j = 0u; j < V_ROWS / 4u; j++) {
                for (var i = 0u; i < OWN; i++) {
                    // Beyond the last column the sums are of no use, but must be read within the tile.
                    let at = V_FIRST + 4u * j * COLUMNS + min(tx + i * TX, COLUMNS - 1u);
                    let v0 = tile[at];
                    let v1 = tile[at + COLUMNS];
                    let v2 = tile[at + 2u * COLUMNS];
                    let v3 = tile[at + 3u * COLUMNS];
                    for (var m = 0u; m < ROWS; m++) {
                        let power = tile[(m * TY + ty) * P_STRIDE + first / 4u + j];
                        o[m * OWN + i] += power.x * v0 + power.y * v1 + power.z * v2 + power.w * v3;
                    }
                }
            }
        }
    }

    workgroupBarrier();
    for (var m = 0u; m < ROWS; m++) {
        tile[(m * TY + ty) * P_STRIDE + tx / 4u][tx % 4u] = sum[m];
    }
    workgroupBarrier();
    for (var m = 0u; m < ROWS; m++) {
        var total = 0.0;
        for (var t = 0u; t < TX; t++) {
            total += tile[(m * TY + ty) * P_STRIDE + t / 4u][t % 4u];
        }
        let row = row0 + m * TY + ty;
        if row >= rows {
            continue;
        }
        // A row that sees no key is zero.
        let factor = select(0.0, 1.0 / total, total > 0.0);
        let head = head_kv * p.group + row % p.group;
        let first = p.out + (s.q_first + row / p.group) * p.out_token + head * p.out_head;
        for (var i = 0u; i < OWN; i++) {
            if tx + i * TX < COLUMNS {
                store_row4(first, tx + i * TX, o[m * OWN + i] * factor);
            }
        }
    }
}
