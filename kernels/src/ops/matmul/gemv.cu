// out = act(x w^T + bias) + residual for a few rows of x, in exact f32: bound by the weights, which are read once. See
// `epilogue.cuh`.
//
// x: [m, k], m at most M   w: [n, k], floats of type W or codes in groups (BITS, FP8)   out: [m, n], or [m, n / 2] if GATED
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
// Integers become floats without conversions: a field is put into the mantissa of 2^23, where 4-bit fields stay at their place p in
// the word, which multiplies them by 16^p. x is divided by that when it is staged, exactly. The zero point leaves with the 2^23
// in one subtraction, also exactly. Floats of 8 bits become f16 by moving bits, which divides them by 2^8. The scale, times that,
// multiplies the sum over a lane's 16 bytes, which lie in one group.
//
// SASS: LDG*.128 LDS.128 FFMA
#include "ops/matmul/epilogue.cuh"
#include "ops/matmul/weights.cuh"

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
constexpr i32 OUT_COLUMNS = GATED ? 1 : COLUMNS;
constexpr f32 TWO_23 = 8388608.0f;

// What a lane has on its way: 16 bytes of weights, the bits of their scale and the word of their zero point.
struct Load {
    uint4 weights;
    u32 scale;
    u32 zero;
};

// A row of weights: its first bytes in each plane.
struct Row {
    const uint4* data;
    const void* scales;
    const u32* zeros; // null without zero points
    i32 field;        // of the row in a word of zero points
    i32 end;          // elements; 0 where there is no such row
};

DEVICE Row row_of(const WeightRows& w, i32 at, i32 cols, i32 k) {
    const i64 row = w.first + (at < cols ? at : 0);
    // Strides are in elements of the plane: floats, or words of fields.
    constexpr i64 SIZE = BITS == 0 ? static_cast<i64>(sizeof(W)) : 4;
    Row r;
    r.data = reinterpret_cast<const uint4*>(static_cast<const u8*>(w.data) + row * w.stride * SIZE);
    r.scales = static_cast<const u8*>(w.scales) + row * w.scale_stride * (w.type == VALUE_F32 ? 4 : 2);
    r.zeros = nullptr;
    r.field = static_cast<i32>(row);
    r.end = at < cols ? k : 0;
    if constexpr (BITS != 0)
        if (w.zeros != nullptr) r.zeros = static_cast<const u32*>(w.zeros) + row / (32 / BITS) * w.zero_stride;
    return r;
}

DEVICE Load load(const Row& row, i32 at, const Params& p) {
    Load v;
    v.weights = make_uint4(0, 0, 0, 0);
    v.scale = v.zero = 0;
    if (at >= row.end) return v;
    v.weights = load_stream(row.data + at / E);
    if constexpr (BITS != 0) {
        const i32 group = at >> p.group_shift;
        v.scale = p.w.type == VALUE_F32 ? static_cast<const u32*>(row.scales)[group] : static_cast<const u16*>(row.scales)[group];
        if (row.zeros != nullptr) v.zero = row.zeros[group];
    }
    return v;
}

DEVICE f32 scale_of(const Load& v, u32 type) {
    constexpr f32 UNIT = FP8 ? 256.0f : 1.0f; // what `widen` divides weights by
    if (type == VALUE_F32) return UNIT * __uint_as_float(v.scale);
    return UNIT * (type == VALUE_BF16 ? to_f32(bf16{static_cast<u16>(v.scale)}) : to_f32(f16{static_cast<u16>(v.scale)}));
}

DEVICE u32 word_of(const uint4& v, i32 i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Weights 4 quad .. 4 quad + 3 of 16 bytes; those of 4 bits times 16^p, see `place_of`. `zero` is the zero point of integers.
template <typename T> DEVICE void widen(f32 (&w)[4], const uint4& v, i32 quad, f32 zero) {
    if constexpr (BITS == 4) {
        const u32 word = word_of(v, quad / 2);
#pragma unroll
        for (i32 i = 0; i < 4; ++i) {
            const i32 field = quad % 2 * 4 + i, place = field < 5 ? field : field - 5;
            const u32 bits = lop3<0xEA>(field < 5 ? word : word >> 20, 15u << (4 * place), 0x4B000000u);
            w[i] = __uint_as_float(bits) - fmaf(zero, static_cast<f32>(1 << (4 * place)), TWO_23);
        }
    } else if constexpr (FP8) {
        const u32 word = word_of(v, quad);
        const float2 a = unpack2<f16>(e4m3_halves(word << 8)), b = unpack2<f16>(e4m3_halves(word));
        w[0] = a.x, w[1] = b.x, w[2] = a.y, w[3] = b.y;
    } else if constexpr (BITS == 8) {
#pragma unroll
        for (i32 i = 0; i < 4; ++i)
            w[i] = __uint_as_float(byte_perm(word_of(v, quad), 0x4B000000u, 0x7650 + i)) - (TWO_23 + zero);
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (i32 i = 0; i < 4; ++i) w[i] = __uint_as_float(word_of(v, i));
    } else {
        const float2 a = unpack2<T>(word_of(v, 2 * quad)), b = unpack2<T>(word_of(v, 2 * quad + 1));
        w[0] = a.x, w[1] = a.y, w[2] = b.x, w[3] = b.y;
    }
}

// 16^-p for the field of 4 bits that element k is.
DEVICE f32 unplaced(f32 x, i32 k) {
    if constexpr (BITS != 4) return x;
    const i32 field = k % 8, place = field < 5 ? field : field - 5;
    return x * __uint_as_float((127u - 4 * place) << 23);
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
        for (i32 j = 0; j < 4; ++j) v[j] = unplaced(v[j], k + j);
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
            f32 part[COLUMNS][M] = {}, zero[COLUMNS];
#pragma unroll
            for (i32 c = 0; c < COLUMNS; ++c) {
                now[c] = loads[c][d];
                loads[c][d] = load(rows[c], first + STRETCH + d * PASS + lane * E, p);
                zero[c] = static_cast<f32>(1 << (BITS > 0 ? BITS - 1 : 0));
                if constexpr (BITS != 0)
                    if (rows[c].zeros != nullptr)
                        zero[c] = static_cast<f32>(int_group_field<BITS>(now[c].zero, rows[c].field));
            }
#pragma unroll
            for (i32 quad = 0; quad < QUADS; ++quad) {
                f32 w[COLUMNS][4];
#pragma unroll
                for (i32 c = 0; c < COLUMNS; ++c) widen<W>(w[c], now[c].weights, quad, zero[c]);
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
                const f32 scale = BITS == 0 ? 1.0f : scale_of(now[c], p.w.type);
#pragma unroll
                for (i32 m = 0; m < M; ++m) sum[c][m] = fmaf(part[c][m], scale, sum[c][m]);
            }
        }
    }
    grid_release();

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
