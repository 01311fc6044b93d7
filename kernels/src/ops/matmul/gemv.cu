// out = act(x w^T + bias) + residual for a few rows of x, in exact f32: bound by the weights, which are read once. See
// `epilogue.cuh`.
//
// x: [m, k], m at most M   w: [n, k], floats of type W or codes in groups (CODE)   out: [m, n], or [m, n / 2] if GATED
//
// LANES neighbouring lanes make one or two columns (COLUMNS): of a gated product the gate and what it scales, else neighbours, so that
// x is read once for both. A lane takes 16 bytes of a row at a time, E weights; its neighbour takes the next ones. DEPTH such
// loads a row are under way before the first is used, and each is followed by that of the next stretch as soon as it has been
// used. The first ones do not wait for the launch before: nobody writes weights.
//
// NORM: rows of x are normalized first: x / sqrt(mean(x^2) + eps) * (offset + weight). Each block sums the squares of all rows while
// its first weights are on their way; the root is left to the sums, so that what is staged is x (offset + weight).
//
// x goes through shared memory a stretch of DEPTH * LANES * E elements at a time, widened to f32 and ordered such that
// neighbouring lanes read neighbouring 16 bytes.
//
// Codes become floats without conversions, see their folders; x is brought to what that leaves of their places when it is staged. The
// scale, times what they are divided by, multiplies the sum over a lane's 16 bytes, or over each of SUBS equal parts of them, which lie in one group. FRACTIONS: zero points are
// floats, or offsets.
//
// SASS: LDG*.128 LDS.128 FFMA
// SASS sm_90a: LDG*.128<ACQBULK
#include "ops/matmul/epilogue.cuh"
#include "ops/matmul/weights.cuh"
#include "quant/codes.cuh"

struct Params {
    const void* x;
    i64 x_stride;
    WeightRows w;
    WeightRows up; // what the gates `w` scale
    Epilogue e;
    const void* norm_weight;
    u32 norm_type;
    u32 norm_aligned; // whether it begins at a multiple of 16 bytes
    f32 norm_offset;
    f32 norm_eps;
    i32 k;
    i32 group_shift; // weights along k that share a scale, as a power of two
    u32 x_type;
    u32 x_aligned; // whether each row of x begins at a multiple of 16 bytes
};

constexpr i32 THREADS = 128;
constexpr i32 E = BITS == 4 ? 32 : BITS == 8 ? 16 : 16 / static_cast<i32>(sizeof(W));
constexpr i32 QUADS = E / 4;
constexpr i32 PASS = LANES * E;
constexpr i32 STRETCH = DEPTH * PASS;
constexpr i32 GROUPS = THREADS / LANES;
constexpr i32 SUB = QUADS / SUBS; // quads of a lane's 16 bytes that share a scale
constexpr i32 OUT_COLUMNS = GATED ? 1 : COLUMNS;

// What a lane has on its way: 16 bytes of weights, the bits of their scales and the words, or bits, of their zero points.
struct Load {
    uint4 weights;
    u32 scale[SUBS];
    u32 zero[SUBS];
};

// A row of weights: its first bytes in each plane.
struct Row {
    const uint4* data;
    const void* scales;
    const void* zeros; // null without zero points
    i32 field;         // of the row in a word of zero points
    f32 factor;        // of the scales
    i32 end;           // elements; 0 where there is no such row
};

DEVICE Row row_of(const WeightRows& w, i32 at, i32 cols, i32 k) {
    const i64 row = w.first + (at < cols ? at : 0);
    // Strides are in elements of the plane: floats, or words of fields.
    constexpr i64 SIZE = BITS == 0 ? static_cast<i64>(sizeof(W)) : 4;
    Row r;
    r.data = reinterpret_cast<const uint4*>(static_cast<const u8*>(w.data) + row * w.stride * SIZE);
    r.scales = static_cast<const u8*>(w.scales) + row * w.scale_stride * scale_size(w.type);
    r.zeros = nullptr;
    r.field = static_cast<i32>(row);
    r.factor = w.factor;
    r.end = at < cols ? k : 0;
    if constexpr (FRACTIONS) {
        r.zeros = static_cast<const u8*>(w.zeros) + row * w.zero_stride * scale_size(w.type);
    } else if constexpr (BITS != 0) {
        if (w.zeros != nullptr) r.zeros = static_cast<const u32*>(w.zeros) + row / (32 / BITS) * w.zero_stride;
    }
    return r;
}

DEVICE Load load(const Row& row, i32 at, const Params& p) {
    Load v;
    v.weights = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (i32 sub = 0; sub < SUBS; ++sub) v.scale[sub] = v.zero[sub] = 0;
    if (at >= row.end) return v;
    v.weights = load_stream(row.data + at / E);
    if constexpr (BITS != 0) {
#pragma unroll
        for (i32 sub = 0; sub < SUBS; ++sub) {
            const i32 group = (at + sub * 4 * SUB) >> p.group_shift;
            v.scale[sub] = scale_bits(row.scales, p.w.type, group);
            if constexpr (FRACTIONS) {
                v.zero[sub] = scale_bits(row.zeros, p.w.type, group);
            } else if (row.zeros != nullptr) {
                v.zero[sub] = static_cast<const u32*>(row.zeros)[group];
            }
        }
    }
    return v;
}

// Scale and zero point of part of a load: weights are (u - zero) scale.
struct Notes {
    f32 scale;
    f32 zero;
};

DEVICE Notes notes_of(const Load& v, i32 sub, const Row& row, const Params& p) {
    Notes n;
    n.scale = scale_value(v.scale[sub], p.w.type) * row.factor;
    n.zero = static_cast<f32>(CODE::CENTRE);
    if constexpr (FRACTIONS) {
        n.zero = scale_value(v.zero[sub], p.w.type);
        if (p.w.zero == ZERO_OFFSET) {
            // Beside 2^40 every field vanishes.
            if (n.scale == 0.0f) n.scale = n.zero * 0x1p-40f;
            n.zero = n.scale == 0.0f ? 0.0f : -n.zero / n.scale;
        }
    } else if constexpr (BITS != 0) {
        if (row.zeros != nullptr) n.zero = CODE::value(v.zero[sub], row.field);
    }
    n.scale *= CODE::UNIT;
    return n;
}

DEVICE u32 word_of(const uint4& v, i32 i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Weights 4 quad .. 4 quad + 3 of 16 bytes, as `quad` of their code gives them.
template <typename T> DEVICE void widen(f32 (&w)[4], const uint4& v, i32 quad, f32 zero) {
    if constexpr (BITS != 0) {
        CODE::quad<FRACTIONS>(w, word_of(v, quad * BITS / 8), BITS == 4 ? quad % 2 : 0, zero);
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (i32 i = 0; i < 4; ++i) w[i] = __uint_as_float(word_of(v, i));
    } else {
        const float2 a = unpack2<T>(word_of(v, 2 * quad)), b = unpack2<T>(word_of(v, 2 * quad + 1));
        w[0] = a.x, w[1] = a.y, w[2] = b.x, w[3] = b.y;
    }
}

// Brings x of elements first .. first + STRETCH to shared memory; zeros where there are none.
DEVICE void stage(f32* to, const Params& p, i32 first) {
    for (i32 i = static_cast<i32>(threadIdx.x); i < M * STRETCH / 4; i += THREADS) {
        const i32 row = i / (STRETCH / 4), quad = i % (STRETCH / 4), k = first + 4 * quad;
        f32 v[4] = {};
        if (row < p.e.rows && k < p.k) {
            const i64 at = row * p.x_stride + k;
            if (p.x_aligned) {
                load_group(v, p.x, p.x_type, at);
            } else {
                load_some(v, p.x, p.x_type, at, 4);
            }
        }
        if constexpr (NORM) {
            f32 weight[4];
            load_columns(weight, p.norm_weight, p.norm_type, p.norm_aligned != 0, 0, k, p.k);
#pragma unroll
            for (i32 j = 0; j < 4; ++j) v[j] *= p.norm_offset + weight[j];
        }
#pragma unroll
        for (i32 j = 0; j < 4; ++j) v[j] = CODE::unplaced(v[j], k + j);
        // Pass, quad of a lane's 16 bytes, lane.
        const i32 chunk = quad / QUADS;
        const i32 place = (chunk / LANES * QUADS + quad % QUADS) * LANES + chunk % LANES;
        reinterpret_cast<float4*>(to)[row * (STRETCH / 4) + place] = make_float4(v[0], v[1], v[2], v[3]);
    }
}

// 1 / sqrt(mean(x^2) + eps) of each row.
DEVICE void norm_factors(f32* to, const Params& p) {
    const i32 lane = static_cast<i32>(threadIdx.x) % 32;
    for (i32 row = static_cast<i32>(threadIdx.x) / 32; row < M; row += THREADS / 32) {
        f32 squares = 0.0f;
        const i32 end = row < p.e.rows ? p.k : 0;
        for (i32 col = 8 * lane; col < end; col += 256) {
            f32 v[8];
            load_columns(v, p.x, p.x_type, p.x_aligned != 0, row * p.x_stride, col, end);
#pragma unroll
            for (i32 i = 0; i < 8; ++i) squares = fmaf(v[i], v[i], squares);
        }
        squares = warp_sum(squares);
        if (lane == 0) to[row] = rsqrtf(squares / static_cast<f32>(p.k) + p.norm_eps);
    }
}

KERNEL(THREADS, M > 4 ? 2 : 4)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    f32* const x = reinterpret_cast<f32*>(smem);
    const float4* const x4 = reinterpret_cast<const float4*>(smem);
    const i32 lane = static_cast<i32>(threadIdx.x) % LANES;
    const i32 col = (static_cast<i32>(blockIdx.x) * GROUPS + static_cast<i32>(threadIdx.x) / LANES) * OUT_COLUMNS;

    Row rows[COLUMNS];
#pragma unroll
    for (i32 c = 0; c < COLUMNS; ++c) rows[c] = row_of(GATED && c == 1 ? p.up : p.w, GATED ? col : col + c, p.e.cols, p.k);

    Load loads[COLUMNS][DEPTH];
#pragma unroll
    for (i32 d = 0; d < DEPTH; ++d)
#pragma unroll
        for (i32 c = 0; c < COLUMNS; ++c) loads[c][d] = load(rows[c], d * PASS + lane * E, p);

    grid_wait();
    f32* const factors = x + M * STRETCH;
    if constexpr (NORM) norm_factors(factors, p); // others see them after the barriers of the loop
    f32 sum[COLUMNS][M] = {};
    for (i32 first = 0; first < p.k; first += STRETCH) {
        __syncthreads();
        stage(x, p, first);
        __syncthreads();
#pragma unroll
        for (i32 d = 0; d < DEPTH; ++d) {
            Load now[COLUMNS];
#pragma unroll
            for (i32 c = 0; c < COLUMNS; ++c) {
                now[c] = loads[c][d];
                loads[c][d] = load(rows[c], first + STRETCH + d * PASS + lane * E, p);
            }
#pragma unroll
            for (i32 sub = 0; sub < SUBS; ++sub) {
                Notes notes[COLUMNS];
                f32 part[COLUMNS][M] = {};
#pragma unroll
                for (i32 c = 0; c < COLUMNS; ++c) notes[c] = notes_of(now[c], sub, rows[c], p);
#pragma unroll
                for (i32 quad = sub * SUB; quad < (sub + 1) * SUB; ++quad) {
                    f32 w[COLUMNS][4];
#pragma unroll
                    for (i32 c = 0; c < COLUMNS; ++c) widen<W>(w[c], now[c].weights, quad, notes[c].zero);
#pragma unroll
                    for (i32 m = 0; m < M; ++m) {
                        const float4 v = x4[m * (STRETCH / 4) + (d * QUADS + quad) * LANES + lane];
#pragma unroll
                        for (i32 c = 0; c < COLUMNS; ++c) {
                            part[c][m] = fmaf(w[c][0], v.x, part[c][m]);
                            part[c][m] = fmaf(w[c][1], v.y, part[c][m]);
                            part[c][m] = fmaf(w[c][2], v.z, part[c][m]);
                            part[c][m] = fmaf(w[c][3], v.w, part[c][m]);
                        }
                    }
                }
#pragma unroll
                for (i32 c = 0; c < COLUMNS; ++c) {
                    const f32 scale = BITS == 0 ? 1.0f : notes[c].scale;
#pragma unroll
                    for (i32 m = 0; m < M; ++m) sum[c][m] = fmaf(part[c][m], scale, sum[c][m]);
                }
            }
        }
    }

#pragma unroll
    for (i32 m = 0; m < M; ++m) {
#pragma unroll
        for (i32 c = 0; c < COLUMNS; ++c) {
            sum[c][m] = warp_sum<LANES>(sum[c][m]);
            if constexpr (NORM) sum[c][m] *= factors[m];
        }
        // One lane ends each product.
        if constexpr (GATED) {
            const f32 gate[1] = {sum[0][m]}, up[1] = {sum[1][m]};
            if (lane == m % LANES) emit<1, true>(p.e, m, col, gate, up);
        } else {
#pragma unroll
            for (i32 c = 0; c < COLUMNS; ++c) {
                const f32 product[1] = {sum[c][m]};
                if (lane == (m * COLUMNS + c) % LANES) emit<1>(p.e, m, col + c, product);
            }
        }
    }
}
