// out = act(x w^T + bias) + residual for weights that are codes in groups, on tensor cores; gated too. See `epilogue.cuh`.
//
// x: [m, k] as `quant_x.cu` lays it out, type T   w: [n, k], CODE   out: [m, n], or [m, n / 2] if gated
//
// Weights are the left operand: a warp multiplies 16 rows of w by the 8 * NT rows of x of a tile, so that words of packed fields become
// fragments in the registers of the lane that reads them (`pairs.cuh`), without a shuffle. The order of k is free as long as
// both operands have it: x was put into that of the words. Of a gated product the 16 rows are eight gates and the eight rows
// that they scale.
//
// A block has WARPS warps: ACROSS of them have rows of their own, the others take every other step along k of the same rows, and
// their sums meet in shared memory at the end. A ring of STAGES steps holds 64 bytes of each row of weights and x of the step;
// rows of weights in shared memory have their 16-byte parts swizzled, so that reads of 4, 8 and 16 bytes meet no bank twice.
//
// Products of fields and x are exact, with sums in f32: those of one group (GROUPS of them in a step) are kept apart until
// they are multiplied by their scale. Scales and zero points of a step come to registers one step ahead. What was
// launched before is waited for after the first weights and scales have been asked for: nobody writes weights.
//
// Groups of 16 (SIXTEENS) are halves of what the four lanes of a row read at once: products are made for each half, with zeros for the
// weights of the other. Zero points that are floats, and offsets (FRACTIONS), multiply the sums of x of a group, which come of
// products with ones. Values of codes that one 16-bit float does not hold are sums of SUMMANDS of them.
//
// SASS: HMMA LDGSTS LDS.128
// SASS sm_90a: LDGSTS<ACQBULK
#include "ops/matmul/epilogue.cuh"
#include "ops/matmul/quant.cuh"
#include "ops/matmul/quant_rows.cuh"

struct Params {
    const u8* x;
    WeightRows w;
    WeightRows up; // what the gates `w` scale, if gated
    Epilogue e;
    i32 k;
    i32 steps;
    i32 groups;
    u32 gated;
};

constexpr i32 WARPS = 8;
constexpr i32 DEEP = WARPS / ACROSS; // warps that share rows
constexpr i32 W_BYTES = 16 * ROW_BYTES;
constexpr i32 STAGE_BYTES = WARPS * W_BYTES + DEEP * X_BYTES;
constexpr i32 COLS = 8 * NT;            // of the products of a tile: rows of x
constexpr i32 PITCH = 16 * ACROSS + 4;  // of a column of sums

// Row `r` of the 16 of a tile that begins at column `col` of the result; beyond the last the last.
DEVICE Row row_of(const Params& p, i32 col, i32 r) {
    const bool up = p.gated != 0 && r >= 8;
    const WeightRows& w = up ? p.up : p.w;
    return row_at(w, min_of(col + (up ? r - 8 : r), p.e.cols - 1));
}

constexpr i32 NOTES = GROUPS * SIXTEENS;

// Scales and zero points of a step of one row, and what multiplies the sums of x.
struct Notes {
    f32 scale[NOTES];
    u32 zero[NOTES];
    f32 beside[FRACTIONS ? NOTES : 1];
};

// Those of row `which` of the two of a lane: of a gated tile the second is what the first scales.
DEVICE void load_notes(Notes& to, const Row& row, i32 which, const Params& p, i32 step) {
#pragma unroll
    for (i32 i = 0; i < NOTES; ++i) {
        const i32 group = group_of<SPAN>(p.w, p.groups, step, i);
        to.scale[i] = scale_value(scale_bits(row.scales, p.w.type, group), p.w.type) * CODE::pair_unit<T>();
        to.zero[i] = static_cast<u32>(FRACTIONS ? 0 : CODE::CENTRE);
        if constexpr (ZERO) to.zero[i] = static_cast<u32>(code_field<BITS>(static_cast<const u32*>(row.zeros)[group], row.field));
        if constexpr (FRACTIONS) {
            const f32 zero = scale_value(scale_bits(row.zeros, p.w.type, group), p.w.type);
            // Sums are multiplied by the factor of scales at last.
            const f32 factor = p.gated != 0 && which == 1 ? p.up.factor : p.w.factor;
            to.beside[i] = p.w.zero == ZERO_OFFSET ? zero / factor : -zero * to.scale[i];
        }
    }
}

// Where the 16 bytes `part` of row `r` of a warp's weights lie in a stage.
DEVICE constexpr i32 swizzled(i32 r, i32 part) { return r * ROW_BYTES + ((part ^ (r / 2 % 4)) * 16); }

// Starts to copy the weights of a step of a warp: lane i brings 16 bytes of rows i / 4 and i / 4 + 8. Zeros past a row's end.
DEVICE void bring_weights(u8* to, const u8* const (&from)[2], i32 step, i32 row_bytes, bool aligned, i32 lane) {
    const i32 part = lane % 4, offset = step * ROW_BYTES + part * 16;
    const i32 left = max_of(0, min_of(16, row_bytes - offset));
#pragma unroll
    for (i32 i = 0; i < 2; ++i) {
        u8* const place = to + swizzled(lane / 4 + 8 * i, part);
        const u8* const source = left > 0 ? from[i] + offset : from[i];
        if (aligned) {
            cp_async_16(place, source, static_cast<u32>(left));
        } else {
#pragma unroll
            for (i32 word = 0; word < 4; ++word) {
                const bool there = 4 * word < left;
                cp_async_small<4>(place + 4 * word, there ? source + 4 * word : from[i], there ? 4u : 0u);
            }
        }
    }
}

// Adds products of eights of two rows of weights, as pairs, with x, of which a lane's first summand is at `x`.
DEVICE void multiply(f32 (&part)[NT][4], const u32 (&a)[4], const u32 (&b)[4], const u8* x) {
    const u32 first[4] = {a[0], b[0], a[1], b[1]}, second[4] = {a[2], b[2], a[3], b[3]};
#pragma unroll
    for (i32 summand = 0; summand < PARTS; ++summand) {
#pragma unroll
        for (i32 nt = 0; nt < NT; ++nt) {
            const uint4 v = *reinterpret_cast<const uint4*>(x + (summand * STEP_EIGHTS * NT + nt) * 512);
            mma_16816<T>(part[nt], first, v.x, v.y);
            mma_16816<T>(part[nt], second, v.z, v.w);
        }
    }
}

template <i32 Bytes> DEVICE void read_words(u32 (&to)[Bytes / 4], const u8* from) { load_words(to, from); }

constexpr bool MORE = ZERO || FRACTIONS || SUMMANDS > 1;

// Scales, and zero points, of several groups want more registers than half a multiprocessor has.
KERNEL(256, NT * PARTS > 4 || ((MORE || NOTES > 2) && NT == 4) || NOTES > 4 || (FRACTIONS && NOTES > 2) ? 1 : 2)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    const i32 warp = static_cast<i32>(warp_id()), lane = static_cast<i32>(lane_id());
    const i32 across = warp % ACROSS, deep = warp / ACROSS;
    const i32 tile_cols = p.gated != 0 ? 8 : 16;
    const i32 block_col = static_cast<i32>(blockIdx.x) * ACROSS * tile_cols;
    const i32 tile = static_cast<i32>(blockIdx.y);
    const i32 row_bytes = ceil_div(p.k, 32 / BITS) * 4;
    const bool aligned = p.w.aligned != 0 && (p.gated == 0 || p.up.aligned != 0);

    // The rows of weights that this lane brings are those whose products it holds: lane / 4 and eight more.
    Row rows[2];
#pragma unroll
    for (i32 i = 0; i < 2; ++i) rows[i] = row_of(p, block_col + across * tile_cols, lane / 4 + 8 * i);
    const u8* const from[2] = {rows[0].data, rows[1].data};

    const i32 turns = ceil_div(p.steps, DEEP);
    const u8* const x = p.x + static_cast<i64>(tile) * p.steps * X_BYTES;
    const auto weights_of = [&](i32 turn) {
        const i32 step = turn * DEEP + deep;
        u8* const stage = smem + turn % STAGES * STAGE_BYTES;
        if (step < p.steps) bring_weights(stage + warp * W_BYTES, from, step, row_bytes, aligned, lane);
    };
    const auto x_of = [&](i32 turn) {
        u8* const stage = smem + turn % STAGES * STAGE_BYTES + WARPS * W_BYTES;
        const i32 first = turn * DEEP, bytes = min_of(DEEP, p.steps - first) * X_BYTES;
        for (i32 at = static_cast<i32>(threadIdx.x) * 16; at < bytes; at += 32 * WARPS * 16)
            cp_async_16(stage + at, x + static_cast<i64>(first) * X_BYTES + at);
    };

    Notes next[2];
#pragma unroll
    for (i32 i = 0; i < 2; ++i) load_notes(next[i], rows[i], i, p, min_of(deep, p.steps - 1));
#pragma unroll
    for (i32 turn = 0; turn < STAGES - 1; ++turn) weights_of(turn);
    grid_wait();
#pragma unroll
    for (i32 turn = 0; turn < STAGES - 1; ++turn) {
        x_of(turn);
        cp_async_commit();
    }

    f32 sum[NT][4] = {};
    for (i32 turn = 0; turn < turns; ++turn) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        weights_of(turn + STAGES - 1);
        x_of(turn + STAGES - 1);
        cp_async_commit();
        const i32 step = turn * DEEP + deep;
        if (step >= p.steps) continue;

        Notes now[2] = {next[0], next[1]};
        const i32 after = min_of(step + DEEP, p.steps - 1);
        load_notes(next[0], rows[0], 0, p, after);
        load_notes(next[1], rows[1], 1, p, after);

        const u8* const stage = smem + turn % STAGES * STAGE_BYTES;
        const u8* const w = stage + warp * W_BYTES;
        const u8* const xs = stage + WARPS * W_BYTES + deep * X_BYTES + lane * 16;
#pragma unroll
        for (i32 group = 0; group < GROUPS; ++group) {
            const i32 offset = 4 * READ * group + READ * (lane % 4);
            u32 low[READ / 4], high[READ / 4];
            read_words<READ>(low, w + swizzled(lane / 4, offset / 16) + offset % 16);
            read_words<READ>(high, w + swizzled(lane / 4 + 8, offset / 16) + offset % 16);
#pragma unroll
            for (i32 half = 0; half < SIXTEENS; ++half) {
                const i32 note = group * SIXTEENS + half;
                // Lanes of the other half multiply zeros.
                const u32 mask = SIXTEENS == 1 || lane % 4 / 2 == half ? 0xffffffffu : 0u;
                const PairZero low_zero = CODE::pair_zero<T>(now[0].zero[note]);
                const PairZero high_zero = CODE::pair_zero<T>(now[1].zero[note]);
                f32 part[NT][4] = {}, all[NT][4] = {};
#pragma unroll
                for (i32 i = 0; i < EIGHTS; ++i) {
                    const i32 q = group * EIGHTS + i;
                    const u8* const eight = xs + q * NT * 512;
#pragma unroll
                    for (i32 summand = 0; summand < SUMMANDS; ++summand) {
                        u32 a[4], b[4];
                        CODE::pairs<T, ZERO || FRACTIONS>(a, low + i * BITS / 4, low_zero, summand);
                        CODE::pairs<T, ZERO || FRACTIONS>(b, high + i * BITS / 4, high_zero, summand);
                        if constexpr (SIXTEENS > 1) {
#pragma unroll
                            for (i32 j = 0; j < 4; ++j) a[j] &= mask, b[j] &= mask;
                        }
                        multiply(part, a, b, eight);
                    }
                    if constexpr (FRACTIONS) {
                        const u32 one = pack2<T>(1.0f, 1.0f) & mask;
                        const u32 ones[4] = {one, one, one, one};
                        multiply(all, ones, ones, eight);
                    }
                }
#pragma unroll
                for (i32 nt = 0; nt < NT; ++nt)
#pragma unroll
                    for (i32 i = 0; i < 4; ++i) {
                        sum[nt][i] = fmaf(now[i / 2].scale[note], part[nt][i], sum[nt][i]);
                        if constexpr (FRACTIONS) sum[nt][i] = fmaf(now[i / 2].beside[note], all[nt][i], sum[nt][i]);
                    }
            }
        }
    }

    // Sums by row of x, in the ring's place: the warps that share rows one after another.
    cp_async_wait<0>();
    __syncthreads();
    f32* const sums = reinterpret_cast<f32*>(smem);
    f32* const mine = sums + deep * COLS * PITCH + across * 16 + lane / 4;
#pragma unroll
    for (i32 nt = 0; nt < NT; ++nt)
#pragma unroll
        for (i32 i = 0; i < 4; ++i) {
            // Of a gated tile the upper eight rows are what the gates scale.
            const f32 factor = p.gated != 0 && i >= 2 ? p.up.factor : p.w.factor;
            mine[(8 * nt + lane % 4 * 2 + i % 2) * PITCH + i / 2 * 8] = sum[nt][i] * factor;
        }
    __syncthreads();
    // Four neighbours of a row of x at a time; of a gated tile the upper eight rows go with the lower ones.
    const i32 fours = ACROSS * tile_cols / 4;
    for (i32 at = static_cast<i32>(threadIdx.x); at < COLS * fours; at += 32 * WARPS) {
        const i32 row = at / fours, four = at % fours;
        const f32* const first = sums + row * PITCH + (p.gated != 0 ? four / 2 * 16 + four % 2 * 4 : four * 4);
        f32 product[4] = {}, up[4] = {};
#pragma unroll
        for (i32 d = 0; d < DEEP; ++d) {
#pragma unroll
            for (i32 i = 0; i < 4; ++i) {
                product[i] += first[d * COLS * PITCH + i];
                if (p.gated != 0) up[i] += first[d * COLS * PITCH + 8 + i];
            }
        }
        const i32 col = block_col + four * 4;
        if (p.gated != 0) {
            emit<4, true>(p.e, tile * COLS + row, col, product, up);
        } else {
            emit<4>(p.e, tile * COLS + row, col, product);
        }
    }
}
