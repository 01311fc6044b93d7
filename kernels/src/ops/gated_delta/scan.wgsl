// S = decay * S; S += k (x) beta * (v - k S); out = q S, for the rows of each sequence one after another
//
// qkv: [rows, 2 heads_k d_k + heads_v d_v] of type X   gates: [rows, 2 heads_v] of type X: b, a   decay: f32 [2, heads_v]
// state: f32 [slots, heads_v d_k, d_v]   starts: i32 [seqs + 1]   lens, slots: i32 [seqs]   out: [rows, heads_v d_v] of type OUT
//
// A workgroup takes COLUMNS columns of one head's state through all rows of a sequence. Each of its SLICES slices of
// invocations keeps EACH rows of the state in registers, and joins its sums with the others' in workgroup memory. Queries and
// keys are read once a row; their lengths are factors of the sums.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/math.wgsl"
#include "wgpu/include/input.wgsl" NAME=qkv BINDING=0 TYPE=${X} ACCESS=read_write
#include "wgpu/include/input.wgsl" NAME=gates BINDING=1 TYPE=${X} ACCESS=read_write
#include "wgpu/include/output.wgsl" NAME=out BINDING=7 TYPE=${OUT}

@group(0) @binding(2) var<storage, read_write> decay: array<f32>;
@group(0) @binding(3) var<storage, read_write> state: array<f32>;
@group(0) @binding(4) var<storage, read_write> starts: array<i32>;
@group(0) @binding(5) var<storage, read_write> lens: array<i32>;
@group(0) @binding(6) var<storage, read_write> slots: array<i32>;

struct Params {
    rows: u32,
    seqs: u32,
    heads_k: u32,
    heads_v: u32,
    d_k: u32,
    d_v: u32,
    slots_count: u32,
    qkv: u32,
    qkv_stride: u32,
    gates: u32,
    gates_stride: u32,
    decay: u32,
    decay_stride: u32,
    state: u32,
    starts: u32,
    lens: u32,
    slots: u32,
    out: u32,
    out_stride: u32,
    scale: f32,
}
${PARAMS} p: Params;

const COLUMNS: u32 = 32u;
const SLICES: u32 = 8u;
const EACH: u32 = ${EACH}u;
const KEYS: u32 = EACH * SLICES;
const EPS: f32 = 1e-6;

struct Sequence {
    first: u32,
    rows: u32,
    kept: u32,
    goes_on: u32,
    slot: u32,
}

var<workgroup> sequence: Sequence;
var<workgroup> q: array<f32, KEYS>;
var<workgroup> k: array<f32, KEYS>;
// Sums of each slice: what the key finds; squares of key and query; the result.
var<workgroup> known: array<f32, 256>;
var<workgroup> squares: array<vec2<f32>, SLICES>;
var<workgroup> sums: array<f32, 256>;

// ln(1 + x) of x from 0 to 1, by the series of the inverse hyperbolic tangent.
fn log_1p(x: f32) -> f32 {
    let z = x / (2.0 + x);
    let s = z * z;
    var series = 1.0 / 17.0;
    series = fma(series, s, 1.0 / 15.0);
    series = fma(series, s, 1.0 / 13.0);
    series = fma(series, s, 1.0 / 11.0);
    series = fma(series, s, 1.0 / 9.0);
    series = fma(series, s, 1.0 / 7.0);
    series = fma(series, s, 1.0 / 5.0);
    series = fma(series, s, 1.0 / 3.0);
    series = fma(series, s, 1.0);
    return 2.0 * z * series;
}

fn read_sequence(number: u32) -> Sequence {
    let first = clamp(starts[p.starts + number], 0, i32(p.rows));
    let rows = clamp(starts[p.starts + number + 1u], first, i32(p.rows)) - first;
    let slot = slots[p.slots + number];
    let kept = slot >= 0 && u32(slot) < p.slots_count;
    let goes_on = kept && lens[p.lens + number] > rows;
    return Sequence(u32(first), u32(rows), u32(kept), u32(goes_on), u32(max(slot, 0)));
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let chunks = (p.d_v + COLUMNS - 1u) / COLUMNS;
    let item = linear_workgroup(group, groups);
    let number = item / chunks / p.heads_v;
    if number >= p.seqs {
        return;
    }
    let head = item / chunks % p.heads_v;
    if index == 0u {
        sequence = read_sequence(number);
    }
    let s = workgroupUniformLoad(&sequence);
    let slice = index / COLUMNS;
    let lane = index % COLUMNS;
    let col = item % chunks * COLUMNS + lane;
    let inside = col < p.d_v;
    let key_head = head / (p.heads_v / p.heads_k);
    let at_q = p.qkv + key_head * p.d_k;
    let at_k = at_q + p.heads_k * p.d_k;
    let at_v = p.qkv + 2u * p.heads_k * p.d_k + head * p.d_v + col;
    let at_state = p.state + (s.slot * p.heads_v + head) * p.d_k * p.d_v + col;
    let rate = decay[p.decay + head];
    let bias = decay[p.decay + p.decay_stride + head];

    // Rows `slice * EACH ..` of the state, in column `col`.
    var own: array<f32, EACH>;
    for (var i = 0u; i < EACH; i++) {
        let row = slice * EACH + i;
        own[i] = 0.0;
        if s.goes_on == 1u && inside && row < p.d_k {
            own[i] = state[at_state + row * p.d_v];
        }
    }
    for (var row = s.first; row < s.first + s.rows; row++) {
        let begin = row * p.qkv_stride;
        for (var i = index; i < KEYS; i += 256u) {
            q[i] = 0.0;
            k[i] = 0.0;
            if i < p.d_k {
                q[i] = qkv_at(at_q + begin + i);
                k[i] = qkv_at(at_k + begin + i);
            }
        }
        workgroupBarrier();
        var found = 0.0;
        var square = vec2<f32>(0.0);
        for (var i = 0u; i < EACH; i++) {
            let pair = vec2<f32>(k[slice * EACH + i], q[slice * EACH + i]);
            found = fma(pair.x, own[i], found);
            square = fma(pair, pair, square);
        }
        known[index] = found;
        if lane == 0u {
            squares[slice] = square;
        }
        workgroupBarrier();
        found = 0.0;
        square = vec2<f32>(0.0);
        for (var i = 0u; i < SLICES; i++) {
            found += known[i * COLUMNS + lane];
            square += squares[i];
        }
        let lengths = 1.0 / sqrt(square + EPS);
        let gate = p.gates + row * p.gates_stride + head;
        let x = gates_at(gate + p.heads_v) + bias;
        let forget = exp_f32(-rate * (max(x, 0.0) + log_1p(exp_f32(-abs(x)))));
        var value = 0.0;
        if inside {
            value = qkv_at(at_v + begin);
        }
        let change = sigmoid(gates_at(gate)) * (value - forget * (found * lengths.x)) * lengths.x;
        var sum = 0.0;
        for (var i = 0u; i < EACH; i++) {
            own[i] = fma(k[slice * EACH + i], change, forget * own[i]);
            sum = fma(q[slice * EACH + i], own[i], sum);
        }
        sums[index] = sum;
        workgroupBarrier();
        if slice == 0u && inside {
            for (var i = 1u; i < SLICES; i++) {
                sum += sums[i * COLUMNS + lane];
            }
            out_set(p.out + row * p.out_stride + head * p.d_v + col, sum * lengths.y * p.scale);
        }
    }
    if s.kept == 0u || s.rows == 0u || !inside {
        return;
    }
    for (var i = 0u; i < EACH; i++) {
        let row = slice * EACH + i;
        if row < p.d_k {
            state[at_state + row * p.d_v] = own[i];
        }
    }
}
