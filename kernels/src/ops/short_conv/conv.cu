// u = x, or before * x; out = sum of taps of u, then + bias, then SiLU or times after; the last inputs go to the state.
//
// x: [rows, channels] of type X, gated [rows, 3 channels]: before, after, x   weight: f32 [TAPS, channels]
// bias: f32 [channels] or null   state: f32 [slots, TAPS - 1, channels]   starts: i32 [seqs + 1]   lens, slots: i32 [seqs]
// out: [rows, channels] of type OUT
//
// A thread makes one channel of some rows of one sequence, with the last inputs in registers. Where sequences are long their
// rows are shared among blocks, which read the inputs before theirs again; the state is then a launch of its own, as those who
// make the first rows read it.
#include "cuda/include/math.cuh"
#include "cuda/include/ptx.cuh"

enum Form : u32 { PLAIN, SILU, GATED };
enum Part : u32 { BOTH, RESULTS, STATE };

struct Params {
    const X* x;
    const f32* weight;
    const f32* bias;
    f32* state;
    const i32* starts;
    const i32* lens;
    const i32* slots;
    OUT* out;
    u64 x_stride;
    u64 out_stride;
    u32 rows;
    u32 seqs;
    u32 channels;
    u32 slots_count;
    u32 weight_stride;
    u32 after;
    u32 input;
    // Rows of a block, and blocks that share the rows of a sequence.
    u32 each;
    u32 blocks;
    Form form;
    Part part;
    u32 padding;
};

struct Sequence {
    u32 first;
    u32 rows;
    f32* state;
    bool goes_on;
};

// The input of row `i - (TAPS - 1)` of the sequence.
DEVICE f32 input(const Params& p, const Sequence& s, u32 i, u32 col) {
    if (i >= TAPS - 1) {
        const X* row = p.x + (s.first + i - (TAPS - 1)) * p.x_stride + col;
        const f32 x = to_f32(row[p.input]);
        return p.form == GATED ? x * to_f32(*row) : x;
    }
    return s.goes_on ? s.state[i * p.channels + col] : 0.0f;
}

KERNEL(128, 8)(const __grid_constant__ Params p) {
    grid_wait();
    const u32 chunks = (p.channels + 127) / 128;
    const u32 number = blockIdx.x / chunks / p.blocks;
    const u32 col = blockIdx.x % chunks * 128 + threadIdx.x;
    if (col >= p.channels) return;
    const i32 first = min_of(max_of(p.starts[number], 0), static_cast<i32>(p.rows));
    const i32 after = min_of(max_of(p.starts[number + 1], first), static_cast<i32>(p.rows));
    const i32 slot = p.slots[number];
    const bool kept = slot >= 0 && static_cast<u32>(slot) < p.slots_count;
    const Sequence s = {
        static_cast<u32>(first),
        static_cast<u32>(after - first),
        p.state + static_cast<u64>(kept ? slot : 0) * ((TAPS - 1) * p.channels),
        kept && p.lens[number] > after - first,
    };
    const u32 from = p.part == STATE ? s.rows : blockIdx.x / chunks % p.blocks * p.each;
    if (from > s.rows) return;

    f32 weight[TAPS];
    f32 window[TAPS];
#pragma unroll
    for (u32 tap = 0; tap < TAPS; ++tap) {
        weight[tap] = p.weight[tap * p.weight_stride + col];
        if (tap + 1 < TAPS) window[tap] = input(p, s, from + tap, col);
    }
    const f32 bias = p.bias ? p.bias[col] : 0.0f;
    const u32 end = min_of(from + p.each, s.rows);
    for (u32 row = from; row < end; ++row) {
        window[TAPS - 1] = input(p, s, row + TAPS - 1, col);
        f32 sum = bias;
#pragma unroll
        for (u32 tap = 0; tap < TAPS; ++tap) sum = fmaf(weight[tap], window[tap], sum);
        if (p.form == SILU) sum /= 1.0f + exp_f32(-sum);
        if (p.form == GATED) sum *= to_f32(p.x[(s.first + row) * p.x_stride + p.after + col]);
        p.out[(s.first + row) * p.out_stride + col] = from_f32<OUT>(sum);
#pragma unroll
        for (u32 tap = 0; tap + 1 < TAPS; ++tap) window[tap] = window[tap + 1];
    }
    if (p.part == RESULTS || !kept) return;
#pragma unroll
    for (u32 tap = 0; tap + 1 < TAPS; ++tap) s.state[tap * p.channels + col] = window[tap];
}
