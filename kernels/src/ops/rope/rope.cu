// Rotary position embedding: each pair (a, b) of a head is turned by its angle,
//
//   (a, b) -> (a cos - b sin, b cos + a sin) * scaling,   angle = f32(position) * inv_freq[pair],
//
// after an optional RMS normalization of the head. Queries are turned in place, keys in place or on their way into pages of
// the KV cache, to which values are copied.
//
// q: [tokens, heads_q, head_dim]   k, v: [tokens, heads_kv, head_dim]   type X
// positions: i32 [axes, tokens]   inv_freq: f32 [pairs]   pair_axis: i32 [pairs] or null   slots: i32 [tokens]
// q_norm, k_norm: [head_dim] of types Q_NORM and K_NORM, or null where heads are not normalized
// k_pages, v_pages: [pages, page_size, heads_kv, head_dim] of type KV or null, where keys stay in place; of i8 with four bytes more a head
//
// A block has one token, so that sine and cosine of each pair are computed once, in shared memory, for all heads of the block;
// its warps are as many as the heads need. A team of TEAM lanes has one head: of queries, then keys, then values. Its unit is
// VEC pairs, in two vectors of VEC elements; the UNITS units of a lane stay in registers, and elements that are not turned
// follow as units of 2 VEC. With VEC = 8 vectors are 16 bytes or more: all heads begin at 16 bytes, and there are whole units
// of pairs and of the rest. VEC = 1 takes any size and place. The loads of a head are under way while angles are computed.
//
// Pages of i8 hold codes: round(x / scale), scale = max |x| / 127 of a head, which follows its codes as an f32. Heads without a magnitude
// above LEAST are zeros; the scale of one with a value that is no number, or infinite, is no number.
//
// The kernel is a dependent launch. Tokens with a negative slot, and heads beyond the last, only help with the angles.
#include "cuda/include/vec.cuh"
#include "ops/rope/angle.cuh"

struct Heads {
    u64 token;
    u64 head;
};
struct Pages {
    u64 page;
    u64 slot;
    u64 head;
};
struct Params {
    X* q;
    X* k;
    const X* v;
    KV* k_pages;
    KV* v_pages;
    const i32* slots;
    const i32* positions;
    const f32* inv_freq;
    const i32* pair_axis;
    const Q_NORM* q_norm;
    const K_NORM* k_norm;
    // Strides.
    Heads of_q;
    Heads of_k;
    Heads of_v;
    Pages of_k_pages;
    Pages of_v_pages;
    u64 axis;
    u32 axes;
    u32 heads_q;
    u32 heads_kv;
    u32 head_dim;
    u32 pairs;
    // Whether pair p is elements 2 p and 2 p + 1, not p and p + pairs; whether keys and values go to pages.
    u32 interleaved;
    u32 paged;
    u32 page_size;
    // Slots of all pages.
    u32 limit;
    f32 scaling;
    // 1 / head_dim.
    f32 share;
    f32 weight_offset;
    f32 eps;
    u32 padding;
};

// Where a head comes from and goes to.
struct Head {
    const X* from;
    // Its page, or its own place if it is not paged.
    KV* page;
    X* place;
    bool paged;
    // Whether it is there, and whether it is to be stored.
    bool real;
    bool kept;
};

DEVICE Head head_of(const Params& p, u32 token, u32 item) {
    X* q = p.q + token * p.of_q.token + item * p.of_q.head;
    if (item < p.heads_q) return {q, p.k_pages, q, false, true, true};
    const bool is_value = item >= p.heads_q + p.heads_kv;
    const u32 head = item - p.heads_q - (is_value ? p.heads_kv : 0);
    const bool real = head < p.heads_kv && (p.paged || !is_value);
    X* k = p.k + token * p.of_k.token + head * p.of_k.head;
    if (!p.paged) return {k, p.k_pages, k, false, real, real};
    const i32 slot = p.slots[token];
    const bool kept = real && slot >= 0 && static_cast<u32>(slot) < p.limit;
    const u64 page = static_cast<u32>(slot) / p.page_size;
    const u64 place = static_cast<u32>(slot) % p.page_size;
    const Pages& of = is_value ? p.of_v_pages : p.of_k_pages;
    KV* to = (is_value ? p.v_pages : p.k_pages) + page * of.page + place * of.slot + head * of.head;
    const X* from = is_value ? p.v + token * p.of_v.token + head * p.of_v.head : k;
    return {from, to, k, true, real, kept};
}

// That of a pair of a token.
DEVICE float2 turn_of(const Params& p, u32 token, u32 pair, f32 freq) {
    const u32 axis = p.pair_axis ? min_of(static_cast<u32>(p.pair_axis[pair]), p.axes - 1) : 0;
    return turn_of(p.positions[axis * p.axis + token], freq, p.scaling);
}

// A unit's first elements of its two vectors, and whether it is turned.
struct Unit {
    u32 a;
    u32 b;
    bool turned;

    DEVICE Unit(const Params& p, u32 unit) {
        turned = unit * VEC < p.pairs;
        const bool apart = !p.interleaved && turned;
        a = apart ? unit * VEC : unit * 2 * VEC;
        b = apart ? a + p.pairs : a + VEC;
    }
};

template <typename W> DEVICE void scale_by(f32 (&x)[VEC], f32 scale, const W* weight, f32 offset) {
    f32 w[VEC];
    load_vec(w, weight);
#pragma unroll
    for (int i = 0; i < VEC; ++i) x[i] *= scale * (w[i] + offset);
}

DEVICE void turn_unit(f32 (&a)[VEC], f32 (&b)[VEC], const float2* turns, bool interleaved) {
    // A vector of one holds no pair: the two vectors do.
    if (VEC > 1 && interleaved) {
#pragma unroll
        for (int i = 0; i < VEC / 2; ++i) {
            turn(a[2 * i], a[2 * i + 1], turns[i]);
            turn(b[2 * i], b[2 * i + 1], turns[VEC / 2 + i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < VEC; ++i) turn(a[i], b[i], turns[i]);
    }
}

constexpr bool CODES = same_type<KV, i8>::value;
// The bits of 2^-120.
constexpr u32 LEAST = 0x03800000u;
constexpr u32 INFINITE = 0x7f800000u;

DEVICE void store(const Head& head, u32 at, const f32 (&x)[VEC]) {
    if (CODES || !head.paged) {
        store_vec(in_global(head.place) + at, x);
    } else if constexpr (!CODES) {
        store_vec(in_global(head.page) + at, x);
    }
}

// The bits of the largest magnitude of a team's elements. Magnitudes compare as their bits do; those of infinity and of what is no
// number are the largest.
DEVICE u32 largest(const f32 (&a)[UNITS][VEC], const f32 (&b)[UNITS][VEC]) {
    u32 most = 0;
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) {
            most = max_of(most, __float_as_uint(a[i][j]) & 0x7fffffffu);
            most = max_of(most, __float_as_uint(b[i][j]) & 0x7fffffffu);
        }
    }
#pragma unroll
    for (int mask = TEAM / 2; mask > 0; mask /= 2) most = max_of(most, shfl_xor(most, mask));
    return most;
}

// What a head is multiplied by to become codes, and its scale.
struct Coding {
    f32 factor;
    f32 scale;

    DEVICE Coding(u32 most) {
        const u32 bits = most > LEAST ? most : 0;
        const bool real = bits < INFINITE;
        factor = real && bits > 0 ? 127.0f / __uint_as_float(bits) : 0.0f;
        scale = real ? __uint_as_float(bits) / 127.0f : __uint_as_float(0x7fc00000u);
    }
    DEVICE u32 code(f32 x) const {
        const f32 rounded = factor > 0.0f ? fminf(fmaxf(rintf(x * factor), -127.0f), 127.0f) : 0.0f;
        return static_cast<u32>(static_cast<i32>(rounded)) & 0xffu;
    }
    DEVICE void store(u8* to, const f32 (&x)[VEC]) const {
        if constexpr (VEC == 1) {
            *to = static_cast<u8>(code(x[0]));
        } else {
#pragma unroll
            for (int i = 0; i < VEC; i += 4) {
                const u32 word = code(x[i]) | code(x[i + 1]) << 8 | code(x[i + 2]) << 16 | code(x[i + 3]) << 24;
                *reinterpret_cast<u32*>(to + i) = word;
            }
        }
    }
};

KERNEL(128, 4)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    float2* turns = reinterpret_cast<float2*>(smem);
    const u32 token = blockIdx.x;
    const u32 item = blockIdx.y * (blockDim.x / TEAM) + threadIdx.x / TEAM;
    const u32 lane = threadIdx.x % TEAM;
    grid_wait();

    const Head head = head_of(p, token, item);
    Fetched<X, VEC> from_a[UNITS] = {}, from_b[UNITS] = {};
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {
        const Unit unit(p, lane + i * TEAM);
        if (head.real && unit.a < p.head_dim) from_a[i].fetch(in_global(head.from) + unit.a);
        if (head.real && unit.b < p.head_dim) from_b[i].fetch(in_global(head.from) + unit.b);
    }
    for (u32 pair = threadIdx.x; pair < p.pairs; pair += blockDim.x) {
        turns[pair] = turn_of(p, token, pair, p.inv_freq[pair]);
    }
    __syncthreads();
    f32 a[UNITS][VEC];
    f32 b[UNITS][VEC];
    f32 squares = 0.0f;
#pragma unroll
    for (int i = 0; i < UNITS; ++i) from_a[i].open(a[i]), from_b[i].open(b[i]);

    const bool is_value = item >= p.heads_q + p.heads_kv;
    if (p.q_norm) {
#pragma unroll
        for (int i = 0; i < UNITS; ++i) {
#pragma unroll
            for (int j = 0; j < VEC; ++j) squares = fmaf(a[i][j], a[i][j], fmaf(b[i][j], b[i][j], squares));
        }
        const f32 scale = rsqrtf(warp_sum<TEAM>(squares) * p.share + p.eps);
        if (!is_value) {
#pragma unroll
            for (int i = 0; i < UNITS; ++i) {
                const Unit unit(p, lane + i * TEAM);
                if (item < p.heads_q) {
                    if (unit.a < p.head_dim) scale_by(a[i], scale, p.q_norm + unit.a, p.weight_offset);
                    if (unit.b < p.head_dim) scale_by(b[i], scale, p.q_norm + unit.b, p.weight_offset);
                } else {
                    if (unit.a < p.head_dim) scale_by(a[i], scale, p.k_norm + unit.a, p.weight_offset);
                    if (unit.b < p.head_dim) scale_by(b[i], scale, p.k_norm + unit.b, p.weight_offset);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {
        const Unit unit(p, lane + i * TEAM);
        if (unit.turned && !is_value) turn_unit(a[i], b[i], turns + (lane + i * TEAM) * VEC, p.interleaved);
    }
    if constexpr (CODES) {
        const Coding coding(largest(a, b));
        if (head.paged) {
            if (!head.kept) return;
            u8* const to = reinterpret_cast<u8*>(in_global(head.page));
#pragma unroll
            for (int i = 0; i < UNITS; ++i) {
                const Unit unit(p, lane + i * TEAM);
                if (unit.a < p.head_dim) coding.store(to + unit.a, a[i]);
                if (unit.b < p.head_dim) coding.store(to + unit.b, b[i]);
            }
            if (lane == 0) *reinterpret_cast<f32*>(to + p.head_dim) = coding.scale;
            return;
        }
    }
    if (!head.kept) return;
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {
        const Unit unit(p, lane + i * TEAM);
        if (unit.a < p.head_dim) store(head, unit.a, a[i]);
        if (unit.b < p.head_dim) store(head, unit.b, b[i]);
    }
}
