// u = x, or before * x; out = sum of taps of u, then + bias, then SiLU or times after; the last inputs go to the state.
//
// x: [rows, channels] of type X, GATED [rows, 3 channels]: before, after, x   weight: f32 [TAPS, channels]   bias: f32 [channels]
// state: f32 [slots, TAPS - 1, channels]   starts: i32 [seqs + 1]   lens, slots: i32 [seqs]   out: [rows, channels] of type OUT
//
// An invocation makes two neighbouring channels of some rows of one sequence, with the last inputs in registers. Where
// sequences are long their rows are shared among workgroups, which read the inputs before theirs again; the state is then a
// launch of its own, as those who make the first rows read it.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/math.wgsl"
#include "wgpu/include/input.wgsl" NAME=x BINDING=0 TYPE=${X} ACCESS=read_write
#include "wgpu/include/output.wgsl" NAME=out BINDING=6 TYPE=${OUT}

@group(0) @binding(1) var<storage, read_write> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> state: array<f32>;
@group(0) @binding(3) var<storage, read_write> starts: array<i32>;
@group(0) @binding(4) var<storage, read_write> lens: array<i32>;
@group(0) @binding(5) var<storage, read_write> slots: array<i32>;
#if BIAS
@group(0) @binding(7) var<storage, read_write> bias: array<f32>;
#endif

struct Params {
    rows: u32,
    seqs: u32,
    channels: u32,
    slots_count: u32,
    // Rows of a workgroup, and workgroups that share the rows of a sequence.
    each: u32,
    blocks: u32,
    // 0: results and state; 1: results alone; 2: the state alone.
    part: u32,
    x: u32,
    x_stride: u32,
    after: u32,
    input: u32,
    weight: u32,
    weight_stride: u32,
    bias: u32,
    state: u32,
    starts: u32,
    lens: u32,
    slots: u32,
    out: u32,
    out_stride: u32,
}
${PARAMS} p: Params;

const WG: u32 = 64u;
const TAPS: u32 = ${TAPS}u;

struct Sequence {
    first: u32,
    rows: u32,
    // First element of its state, where there is one.
    state: u32,
    kept: bool,
    goes_on: bool,
}

fn pair_of_x(at: u32, last: u32, col: u32) -> vec2<f32> {
    return vec2<f32>(x_at(at + col), x_at(at + last));
}

// The inputs of row `i - (TAPS - 1)` of the sequence.
fn inputs(s: Sequence, i: u32, col: u32, last: u32) -> vec2<f32> {
    if i >= TAPS - 1u {
        let row = p.x + (s.first + i - (TAPS - 1u)) * p.x_stride;
#if FORM == gated
        return pair_of_x(row, last, col) * pair_of_x(row + p.input, last, col);
#else
        return pair_of_x(row, last, col);
#endif
    }
    if s.goes_on {
        let at = s.state + i * p.channels;
        return vec2<f32>(state[at + col], state[at + last]);
    }
    return vec2<f32>(0.0);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let chunks = (p.channels + 2u * WG - 1u) / (2u * WG);
    let item = linear_workgroup(group, groups);
    let number = item / chunks / p.blocks;
    let col = 2u * (item % chunks * WG + lane);
    if number >= p.seqs || col >= p.channels {
        return;
    }
    let last = min(col + 1u, p.channels - 1u);
    var s: Sequence;
    let first = clamp(starts[p.starts + number], 0, i32(p.rows));
    s.first = u32(first);
    s.rows = u32(clamp(starts[p.starts + number + 1u], first, i32(p.rows)) - first);
    let slot = slots[p.slots + number];
    s.kept = slot >= 0 && u32(slot) < p.slots_count;
    s.goes_on = s.kept && lens[p.lens + number] > i32(s.rows);
    s.state = p.state + u32(max(slot, 0)) * (TAPS - 1u) * p.channels;

    var begin = item / chunks % p.blocks * p.each;
    if p.part == 2u {
        begin = s.rows;
    }
    if begin > s.rows {
        return;
    }
    var window: array<vec2<f32>, TAPS>;
    for (var tap = 0u; tap + 1u < TAPS; tap++) {
        window[tap] = inputs(s, begin + tap, col, last);
    }
    let end = min(begin + p.each, s.rows);
    for (var row = begin; row < end; row++) {
        window[TAPS - 1u] = inputs(s, row + TAPS - 1u, col, last);
        var sum = vec2<f32>(0.0);
#if BIAS
        sum = vec2<f32>(bias[p.bias + col], bias[p.bias + last]);
#endif
        for (var tap = 0u; tap < TAPS; tap++) {
            let at = p.weight + tap * p.weight_stride;
            sum += vec2<f32>(weight[at + col], weight[at + last]) * window[tap];
        }
#if FORM == silu
        sum *= vec2<f32>(sigmoid(sum.x), sigmoid(sum.y));
#elif FORM == gated
        sum *= pair_of_x(p.x + (s.first + row) * p.x_stride + p.after, last, col);
#endif
        let to = p.out + (s.first + row) * p.out_stride + col;
        if last > col {
            out_set2(to, sum);
        } else {
            out_set(to, sum.x);
        }
        for (var tap = 0u; tap + 1u < TAPS; tap++) {
            window[tap] = window[tap + 1u];
        }
    }
    if p.part == 1u || !s.kept {
        return;
    }
    for (var tap = 0u; tap + 1u < TAPS; tap++) {
        let at = s.state + tap * p.channels;
        state[at + col] = window[tap].x;
        state[at + last] = select(window[tap].x, window[tap].y, last > col);
    }
}
