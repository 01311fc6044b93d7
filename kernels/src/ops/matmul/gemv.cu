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
// The grid is as many blocks as run at once. A block makes its columns, then those that lie as many further as all blocks make: the first
// loads of these are under way before the sums of those before are ended.
//
// x goes through shared memory, widened to f32 and ordered such that neighbouring lanes read neighbouring 16 bytes: `span` elements
// of a row at a time, a multiple of the STRETCH = DEPTH * LANES * E elements that the loads of a lane cover. Where a span holds the whole
// row, x stays for all columns of the block, whose warps then go on without waiting for each other.
//
// NORM: rows of x are normalized first: x / sqrt(mean(x^2) + eps) * (offset + weight). What is staged is x (offset + weight); squares are
// summed as x comes by, and the root is left to the ends of the sums.
//
// Codes become floats without conversions, see their folders; x is brought to what that leaves of their places when it is staged. The
// scale, times what they are divided by, multiplies the sum over a lane's 16 bytes, or over each of SUBS equal parts of them, which lie
// in one group. ZEROS: whether there are zero
// points; FRACTIONS: they are floats, or offsets.
//
// Products are of f32, never of pairs of 16-bit floats, S being the sum of |x w|: a sum may be off by 6 sqrt(k + 4) 2^-24 S, and where x
// may be rounded to bf16 by 2 2^-8 S more (`spec/tolerance.rs`). A product in f16 alone is off by up to 2^-11 of itself, hundreds of
// times the first for k of 64. Of the second, a chain of L multiply-adds in bf16 takes up to L 2^-8 S: two of them where x is bf16, nothing
// beyond the rounding of x and one where it is f32, and each pair then has to be opened and added, which is what the pair had saved:
// of int4, 2.5 instructions a weight against 3, for an answer 2^16 times as far off. Chains in f16 could have L = 16, but f16 does not hold
// the range of x: what lies 2^18 below the largest, brought to 2^4 so that no chain overflows, is off by 2^-25 whatever its size, for
// which S is no bound where the weight of the largest is 0.
//
// HEADS: the columns are heads, and what ends them is `heads.cuh`. The two columns of a group of lanes are those that are turned together.
//
// SASS: LDG*.128 LDS.128 FFMA
// SASS sm_90a: LDG*.128<ACQBULK
#include "ops/matmul/epilogue.cuh"
#include "ops/matmul/heads.cuh"
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
    i32 span; // elements of a row of x in shared memory, a multiple of STRETCH
    i32 group_shift; // weights along k that share a scale, as a power of two
    u32 x_type;
    u32 x_aligned; // whether each row of x begins at a multiple of 16 bytes
    u32 reserved;
#if HEADS
    Heads heads;
#endif
};

constexpr i32 THREADS = 128;
constexpr i32 E = BITS == 4 ? 32 : BITS == 8 ? 16 : 16 / static_cast<i32>(sizeof(W));
constexpr i32 QUADS = E / 4;
constexpr i32 PASS = LANES * E;
constexpr i32 STRETCH = DEPTH * PASS;
constexpr i32 GROUPS = THREADS / LANES;
constexpr i32 SUB = QUADS / SUBS; // quads of a lane's 16 bytes that share a scale
constexpr i32 OUT_COLUMNS = GATED ? 1 : COLUMNS;
constexpr i32 BLOCK_COLUMNS = GROUPS * OUT_COLUMNS;
constexpr i32 WARPS = THREADS / 32;

// What a lane has on its way: 16 bytes of weights, the bits of their scales and the words, or bits, of their zero points.
struct Load {
    uint4 weights;
    u32 scale[SUBS];
    u32 zero[ZEROS ? SUBS : 1];
};

// A row of weights: its first bytes in each plane.
struct Row {
    const uint4* data;
    const void* scales;
    const void* zeros; // null without zero points
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
    r.end = at < cols ? k : 0;
    if constexpr (FRACTIONS) {
        r.zeros = static_cast<const u8*>(w.zeros) + row * w.zero_stride * scale_size(w.type);
    } else if constexpr (ZEROS) {
        r.zeros = static_cast<const u32*>(w.zeros) + row / (BITS == 0 ? 1 : 32 / BITS) * w.zero_stride;
    }
    return r;
}

DEVICE Load load(const Row& row, i32 at, const Params& p) {
    Load v;
    v.weights = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (i32 sub = 0; sub < SUBS; ++sub) v.scale[sub] = v.zero[ZEROS ? sub : 0] = 0;
    if (at >= row.end) return v;
    v.weights = load_stream(row.data + at / E);
    if constexpr (BITS != 0) {
#pragma unroll
        for (i32 sub = 0; sub < SUBS; ++sub) {
            const i32 group = (at + sub * 4 * SUB) >> p.group_shift;
            v.scale[sub] = scale_bits(row.scales, p.w.type, group);
            if constexpr (FRACTIONS) {
                v.zero[sub] = scale_bits(row.zeros, p.w.type, group);
            } else if constexpr (ZEROS) {
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

DEVICE Notes notes_of(const Load& v, i32 sub, const WeightRows& w, i32 col, const Params& p) {
    Notes n;
    n.scale = scale_value(v.scale[sub], p.w.type) * w.factor;
    n.zero = static_cast<f32>(CODE::CENTRE);
    if constexpr (FRACTIONS) {
        n.zero = scale_value(v.zero[sub], p.w.type);
        if (p.w.zero == ZERO_OFFSET) {
            // Beside 2^40 every field vanishes.
            if (n.scale == 0.0f) n.scale = n.zero * 0x1p-40f;
            n.zero = n.scale == 0.0f ? 0.0f : -n.zero / n.scale;
        }
    } else if constexpr (ZEROS) {
        n.zero = CODE::value(v.zero[sub], w.first + col);
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

// Brings x of the span that begins at element `first` to shared memory, zeros up to the end of a stretch; `sums`: adds the squares of
// what each warp brings to its sums in `parts`, of span after span.
DEVICE void stage(f32* to, f32* parts, bool sums, const Params& p, i32 first) {
    // Loads of a thread that are under way at once.
    constexpr i32 BATCH = 4;
    const i32 quads = min_of(p.span, ceil_div(p.k - first, STRETCH) * STRETCH) / 4;
#pragma unroll
    for (i32 row = 0; row < M; ++row) {
        const i32 end = row < p.e.rows ? p.k : 0;
        f32 squares = 0.0f;
#pragma unroll 1
        for (i32 begin = static_cast<i32>(threadIdx.x); begin < quads; begin += BATCH * THREADS) {
            Four x[BATCH], weight[BATCH];
#pragma unroll
            for (i32 i = 0; i < BATCH; ++i) {
                const i32 quad = begin + i * THREADS, k = first + 4 * quad;
                const bool there = quad < quads && k < end;
                x[i] = fetch_four(p.x, p.x_type, p.x_aligned != 0, row * p.x_stride + k, there);
                if constexpr (NORM) weight[i] = fetch_four(p.norm_weight, p.norm_type, p.norm_aligned != 0, k, there);
            }
#pragma unroll
            for (i32 i = 0; i < BATCH; ++i) {
                const i32 quad = begin + i * THREADS;
                if (quad >= quads) break;
                f32 v[4];
                open_four(v, x[i], p.x_type);
                if constexpr (NORM) {
                    f32 by[4];
                    open_four(by, weight[i], p.norm_type);
#pragma unroll
                    for (i32 j = 0; j < 4; ++j) {
                        squares = fmaf(v[j], v[j], squares);
                        v[j] *= p.norm_offset + by[j];
                    }
                }
#pragma unroll
                for (i32 j = 0; j < 4; ++j) v[j] = CODE::unplaced(v[j], first + 4 * quad + j);
                // Pass, quad of a lane's 16 bytes, lane.
                const i32 chunk = quad / QUADS;
                const i32 place = (chunk / LANES * QUADS + quad % QUADS) * LANES + chunk % LANES;
                reinterpret_cast<float4*>(to)[row * (p.span / 4) + place] = make_float4(v[0], v[1], v[2], v[3]);
            }
        }
        if (NORM && sums) {
            f32& part = parts[threadIdx.x / 32 * M + row];
            squares = warp_sum(squares);
            if (lane_id() == 0) part = first == 0 ? squares : part + squares;
        }
    }
}

DEVICE const WeightRows& weights_of(const Params& p, i32 c) { return GATED && c == 1 ? p.up : p.w; }

// The row of weights that makes column `c` of the group of lanes whose first column is `col`.
DEVICE i32 row_in(const Params& p, i32 col, i32 c) {
#if HEADS
    // Beyond the last column is beyond the last row.
    return col < p.e.cols ? Duo(p.heads, col).column(p.heads, c) : col;
#else
    return GATED ? col : col + c;
#endif
}

DEVICE void find_rows(Row (&rows)[COLUMNS], const Params& p, i32 col) {
#pragma unroll
    for (i32 c = 0; c < COLUMNS; ++c) rows[c] = row_of(weights_of(p, c), row_in(p, col, c), p.e.cols, p.k);
}

#if HEADS
DEVICE void end_duo(const Params& p, const Duo& duo, const Ending& ending, i32 row, const f32 (&sums)[2]) {
    f32 v[2];
#pragma unroll
    for (i32 c = 0; c < 2; ++c) {
        const i32 col = duo.column(p.heads, c);
        v[c] = sums[c] + (p.e.bias_type == VALUE_NONE ? 0.0f : load_value(p.e.bias, p.e.bias_type, col));
    }
    emit_duo(p.heads, duo, ending, p.e.out, p.e.out_type, p.e.out_stride, row, v[0], v[1]);
}
#endif

// Blocks that share the registers of a multiprocessor; those of two rows with a table of codes need a few more than a quarter of them.
constexpr bool TABLE = same_type<CODE, code_nf4>::value || same_type<CODE, code_bnb_fp4>::value;
constexpr i32 BLOCKS = M > 4 ? 2 : TABLE && M == 2 ? 3 : 4;

KERNEL(THREADS, BLOCKS)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    f32* const x = reinterpret_cast<f32*>(smem);
    f32* const parts = x + M * p.span; // NORM: squares of each row, of each warp
    const i32 lane = static_cast<i32>(threadIdx.x) % LANES;
    const i32 own = static_cast<i32>(threadIdx.x) / LANES * OUT_COLUMNS; // of the columns of a block
    const i32 first_col = static_cast<i32>(blockIdx.x) * BLOCK_COLUMNS;
    const i32 all_cols = static_cast<i32>(gridDim.x) * BLOCK_COLUMNS;

    // Those that are loaded: from the last stretch of a row on, the next ones.
    Row rows[COLUMNS];
    find_rows(rows, p, first_col + own);
    Load loads[COLUMNS][DEPTH];
#pragma unroll
    for (i32 d = 0; d < DEPTH; ++d)
#pragma unroll
        for (i32 c = 0; c < COLUMNS; ++c) loads[c][d] = load(rows[c], d * PASS + lane * E, p);

    grid_wait();
#pragma unroll 1
    for (i32 block_col = first_col; block_col < p.e.cols; block_col += all_cols) {
        const i32 col = block_col + own;
        const bool begins = block_col == first_col;
        i32 made[COLUMNS]; // their rows of weights
#pragma unroll
        for (i32 c = 0; c < COLUMNS; ++c) made[c] = row_in(p, col, c);
        f32 sum[COLUMNS][M] = {};
        i32 place = 0; // of the stretch in the span
#if HEADS
        // Each row of x is ended by a lane of its own.
        const Duo duo(p.heads, col);
        const Ending ending(p.heads, duo, lane, lane < p.e.rows && col < p.e.cols);
#endif
#pragma unroll 1
        for (i32 first = 0; first < p.k; first += STRETCH, place += STRETCH) {
            if (place == p.span) place = 0;
            if (place == 0 && (begins || p.span < p.k)) {
                __syncthreads();
                stage(x, parts, begins, p, first);
                __syncthreads();
            }
            i32 next = first + STRETCH;
            if (next >= p.k) {
                next = 0;
                find_rows(rows, p, col + all_cols);
            }
            const float4* const x4 = reinterpret_cast<const float4*>(x + place) + lane;
#pragma unroll
            for (i32 d = 0; d < DEPTH; ++d) {
                Load now[COLUMNS];
#pragma unroll
                for (i32 c = 0; c < COLUMNS; ++c) {
                    now[c] = loads[c][d];
                    loads[c][d] = load(rows[c], next + d * PASS + lane * E, p);
                }
#pragma unroll
                for (i32 sub = 0; sub < SUBS; ++sub) {
                    Notes notes[COLUMNS];
                    f32 part[COLUMNS][M] = {};
#pragma unroll
                    for (i32 c = 0; c < COLUMNS; ++c)
                        notes[c] = notes_of(now[c], sub, weights_of(p, c), made[c], p);
#pragma unroll
                    for (i32 quad = sub * SUB; quad < (sub + 1) * SUB; ++quad) {
                        f32 w[COLUMNS][4];
#pragma unroll
                        for (i32 c = 0; c < COLUMNS; ++c) widen<W>(w[c], now[c].weights, quad, notes[c].zero);
#pragma unroll
                        for (i32 m = 0; m < M; ++m) {
                            const float4 v = x4[m * (p.span / 4) + (d * QUADS + quad) * LANES];
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

#if HEADS
        f32 ends[2] = {};
#endif
#pragma unroll
        for (i32 m = 0; m < M; ++m) {
            f32 factor = 1.0f;
            if constexpr (NORM) {
                f32 all = 0.0f;
#pragma unroll
                for (i32 warp = 0; warp < WARPS; ++warp) all += parts[warp * M + m];
                factor = rsqrtf(all / static_cast<f32>(p.k) + p.norm_eps);
            }
#pragma unroll
            for (i32 c = 0; c < COLUMNS; ++c) sum[c][m] = warp_sum<LANES>(sum[c][m]) * factor;
            // One lane ends each product.
#if HEADS
            if (lane == m) ends[0] = sum[0][m], ends[1] = sum[1][m];
#else
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
#endif
        }
#if HEADS
        if (lane < p.e.rows && col < p.e.cols) end_duo(p, duo, ending, lane, ends);
#endif
    }
}
