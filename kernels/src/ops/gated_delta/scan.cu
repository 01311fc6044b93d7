// S = decay * S; S += k (x) beta * (v - k S); out = q S, for the rows of each sequence one after another
//
// qkv: [rows, 2 heads_k d_k + heads_v d_v] of type X   gates: [rows, 2 heads_v] of type X: b, a   decay: f32 [2, heads_v]
// state: f32 [slots, heads_v d_k, d_v]   starts: i32 [seqs + 1]   lens, slots: i32 [seqs]   out: [rows, heads_v d_v] of type OUT
//
// A block takes 32 columns of one head's state, one for each lane, through all rows of a sequence. Each of its 8 warps keeps
// EACH rows of the state in registers, and joins its sums with the others' in shared memory. Queries and keys are read once a
// row; their lengths are factors of the sums.
#include "cuda/include/math.cuh"
#include "cuda/include/ptx.cuh"

struct Params {
    const X* qkv;
    const X* gates;
    const f32* decay;
    f32* state;
    const i32* starts;
    const i32* lens;
    const i32* slots;
    OUT* out;
    u64 qkv_stride;
    u64 gates_stride;
    u64 out_stride;
    u32 rows;
    u32 heads_k;
    u32 heads_v;
    u32 d_k;
    u32 d_v;
    u32 slots_count;
    u32 decay_stride;
    f32 scale;
};

constexpr u32 SLICES = 8;
constexpr u32 KEYS = EACH * SLICES;
constexpr f32 EPS = 1e-6f;

// ln(1 + x) of x from 0 to 1, by the series of the inverse hyperbolic tangent.
DEVICE f32 log_1p(f32 x) {
    const f32 z = x / (2.0f + x);
    const f32 s = z * z;
    f32 series = 1.0f / 17.0f;
    series = fmaf(series, s, 1.0f / 15.0f);
    series = fmaf(series, s, 1.0f / 13.0f);
    series = fmaf(series, s, 1.0f / 11.0f);
    series = fmaf(series, s, 1.0f / 9.0f);
    series = fmaf(series, s, 1.0f / 7.0f);
    series = fmaf(series, s, 1.0f / 5.0f);
    series = fmaf(series, s, 1.0f / 3.0f);
    series = fmaf(series, s, 1.0f);
    return 2.0f * z * series;
}

KERNEL(256, 2)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    f32* q = reinterpret_cast<f32*>(smem);
    f32* k = q + KEYS;
    // Sums of each slice: what the key finds, the result, squares of key and query.
    f32* known = k + KEYS;
    f32* sums = known + 256;
    f32* squares = sums + 256;
    grid_wait();
    const u32 chunks = (p.d_v + 31) / 32;
    const u32 number = blockIdx.x / chunks / p.heads_v;
    const u32 head = blockIdx.x / chunks % p.heads_v;
    const u32 slice = threadIdx.x / 32;
    const u32 lane = lane_id();
    const u32 col = blockIdx.x % chunks * 32 + lane;
    const bool inside = col < p.d_v;
    const i32 first = min_of(max_of(p.starts[number], 0), static_cast<i32>(p.rows));
    const i32 end = min_of(max_of(p.starts[number + 1], first), static_cast<i32>(p.rows));
    const i32 slot = p.slots[number];
    const bool kept = slot >= 0 && static_cast<u32>(slot) < p.slots_count;
    const bool goes_on = kept && p.lens[number] > end - first;
    const u32 key_head = head / (p.heads_v / p.heads_k);
    const X* at_q = p.qkv + key_head * p.d_k;
    const X* at_k = at_q + p.heads_k * p.d_k;
    const X* at_v = p.qkv + 2 * p.heads_k * p.d_k + head * p.d_v + col;
    f32* state = p.state + (static_cast<u64>(kept ? slot : 0) * p.heads_v + head) * p.d_k * p.d_v + col;
    const f32 rate = p.decay[head];
    const f32 bias = p.decay[p.decay_stride + head];

    // Rows `slice * EACH ..` of the state, in column `col`.
    f32 own[EACH];
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
        const u32 row = slice * EACH + i;
        own[i] = goes_on && inside && row < p.d_k ? state[row * p.d_v] : 0.0f;
    }
    for (i32 row = first; row < end; ++row) {
        const u64 from = row * p.qkv_stride;
        for (u32 i = threadIdx.x; i < KEYS; i += 256) {
            q[i] = i < p.d_k ? to_f32(at_q[from + i]) : 0.0f;
            k[i] = i < p.d_k ? to_f32(at_k[from + i]) : 0.0f;
        }
        __syncthreads();
        f32 found = 0.0f;
        f32 square_k = 0.0f;
        f32 square_q = 0.0f;
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
            const f32 key = k[slice * EACH + i];
            const f32 query = q[slice * EACH + i];
            found = fmaf(key, own[i], found);
            square_k = fmaf(key, key, square_k);
            square_q = fmaf(query, query, square_q);
        }
        known[threadIdx.x] = found;
        if (lane == 0) squares[2 * slice] = square_k, squares[2 * slice + 1] = square_q;
        __syncthreads();
        found = square_k = square_q = 0.0f;
#pragma unroll
        for (u32 i = 0; i < SLICES; ++i) {
            found += known[i * 32 + lane];
            square_k += squares[2 * i];
            square_q += squares[2 * i + 1];
        }
        const f32 length_k = 1.0f / sqrtf(square_k + EPS);
        const X* gate = p.gates + row * p.gates_stride + head;
        const f32 x = to_f32(gate[p.heads_v]) + bias;
        const f32 forget = exp_f32(-rate * (fmaxf(x, 0.0f) + log_1p(exp_f32(-fabsf(x)))));
        const f32 beta = 1.0f / (1.0f + exp_f32(-to_f32(*gate)));
        const f32 value = inside ? to_f32(at_v[from]) : 0.0f;
        const f32 change = beta * (value - forget * (found * length_k)) * length_k;
        f32 sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
            own[i] = fmaf(k[slice * EACH + i], change, forget * own[i]);
            sum = fmaf(q[slice * EACH + i], own[i], sum);
        }
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (slice == 0 && inside) {
#pragma unroll
            for (u32 i = 1; i < SLICES; ++i) sum += sums[i * 32 + lane];
            p.out[row * p.out_stride + head * p.d_v + col] = from_f32<OUT>(sum / sqrtf(square_q + EPS) * p.scale);
        }
    }
    if (!kept || first == end || !inside) return;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
        const u32 row = slice * EACH + i;
        if (row < p.d_k) state[row * p.d_v] = own[i];
    }
}
