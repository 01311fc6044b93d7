// Draws a token of a row of keys by the settings of the row: top-k, top-p, min-p, then the draw. The blocks of a row survey its keys, each
// a chunk of them; the last one to be done goes on alone.
//
// Tokens have a rank: by descending key, then by ascending number. Top-k, top-p and min-p each keep a beginning of that
// ranking, so that what is kept is known by its mass alone, the least of the three; and the token drawn is the one at which
// the mass of the ranking reaches `uniform` of it. All need nothing but a search: which token stands at a given mass, or
// count?
//
// Mass: a token's weight e^((logit - most) / temperature) in units of 2^-31, an integer; sums are integers of 64 bits. They
// do not depend on the order of the additions: the same settings give the same token on every run and every device.
//
// Search: a histogram over all tokens divides the REACH = 24 natural logarithms below the best into BINS - 1 equal bins (less
// has no mass) and one for the rest, each with count and mass. It is made once, a part by each block. A search picks the bin; while that
// holds more than CANDIDATES tokens, a histogram of digits of their keys, and for equal keys of their numbers, narrows it, 8 bits
// a pass; then the tokens left are collected and ranked by comparing each with each. Passes are over the chunks alone that have
// tokens in the bin. Real logits take one for each of top-k, top-p and the draw.
#pragma once
#include "cuda/include/math.cuh"
#include "cuda/include/ptx.cuh"
#include "ops/sample/memory.cuh"
#include "ops/sample/order.cuh"
#include "ops/sample/settings.cuh"

// A row's keys, four a load, padded with zeros, in chunks of CHUNK; the methods are called by all SIZE threads of the block.
template <u32 SIZE> struct Search {
    SearchMemory& m;
    const uint4* keys;
    u32 vocab;
    // Of the chunks, if there are several.
    const Histogram* histograms;
    u32 chunks;
    f32 most;
    f32 per_temperature;
    f32 per_bin;

    // Probability relative to the best token's.
    DEVICE f32 likelihood(u32 key) const {
        return key <= LEAST_KEY ? 0.0f : exp_f32((logit_of(key) - most) * per_temperature);
    }
    DEVICE u32 mass_of(u32 key) const { return static_cast<u32>(fmaf(likelihood(key), UNIT, 0.5f)); }

    // Calls `visit(key, token)` for every token of the listed chunks, padding included, each by one thread.
    template <typename Visit> DEVICE void for_each(const Visit& visit) const {
        // Loads that are under way at once.
        constexpr u32 AHEAD = 4, QUADS = CHUNK / 4;
        const u32 all = m.listed * QUADS, end = (vocab + 3) / 4;
        for (u32 begin = threadIdx.x; begin < all; begin += AHEAD * SIZE) {
            uint4 four[AHEAD];
            u32 quads[AHEAD];
#pragma unroll
            for (u32 i = 0; i < AHEAD; ++i) {
                const u32 at = begin + i * SIZE;
                quads[i] = at < all ? m.list[at / QUADS] * QUADS + at % QUADS : end;
                four[i] = quads[i] < end ? keys[quads[i]] : make_uint4(0, 0, 0, 0);
            }
#pragma unroll
            for (u32 i = 0; i < AHEAD; ++i) {
                if (quads[i] >= end) continue;
                const u32 token = 4 * quads[i];
                visit(four[i].x, token);
                visit(four[i].y, token + 1);
                visit(four[i].z, token + 2);
                visit(four[i].w, token + 3);
            }
        }
    }
    // Lists the chunks with tokens in a bin of the first histogram.
    DEVICE void list_chunks(u32 bin) {
        if (threadIdx.x == 0) m.listed = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < chunks; i += SIZE) {
            const bool any = chunks == 1 || bin == REST || histograms[i].count[bin] > 0;
            if (any) m.list[atomicAdd(&m.listed, 1u)] = static_cast<u16>(i);
        }
        __syncthreads();
    }

    DEVICE void clear() {
        if (threadIdx.x < BINS) m.counts[threadIdx.x] = m.mass_low[threadIdx.x] = m.mass_high[threadIdx.x] = 0;
        __syncthreads();
    }
    DEVICE void count_in(u32 bin, u32 mass) {
        atomicAdd(&m.counts[bin], 1u);
        add_mass(&m.mass_low[bin], &m.mass_high[bin], mass);
    }
    // Sums the histogram: a warp, neighbouring bins a lane.
    DEVICE void sum_to(Sums& sums) {
        constexpr u32 OWN = BINS / 32;
        __syncthreads();
        if (threadIdx.x < 32) {
            u32 count = 0;
            u64 mass = 0;
            for (u32 bin = threadIdx.x * OWN; bin < (threadIdx.x + 1) * OWN; ++bin) {
                count += m.counts[bin];
                mass += static_cast<u64>(m.mass_high[bin]) << 32 | m.mass_low[bin];
                sums.count[bin] = count;
                sums.mass[bin] = mass;
            }
            const u32 own_count = count;
            const u64 own_mass = mass;
            for (i32 by = 1; by < 32; by *= 2) {
                const u32 other_count = shfl_up(count, by);
                const u64 other_mass = shfl_up_u64(mass, by);
                if (threadIdx.x >= static_cast<u32>(by)) count += other_count, mass += other_mass;
            }
            for (u32 bin = threadIdx.x * OWN; bin < (threadIdx.x + 1) * OWN; ++bin) {
                sums.count[bin] += count - own_count;
                sums.mass[bin] += mass - own_mass;
            }
        }
        __syncthreads();
    }

    // Bin of the first histogram. The quotient is a guess, the bounds decide.
    DEVICE u32 bin_of(u32 key) const {
        const f32 below = (most - fmaxf(logit_of(key), -3.0e38f)) * per_bin;
        u32 bin = static_cast<u32>(fminf(fmaxf(below, 0.0f), static_cast<f32>(REST)));
        while (bin < REST && key <= m.bounds[bin + 1]) ++bin;
        while (bin > 0 && key > m.bounds[bin]) --bin;
        return bin;
    }

    // The first histogram of chunk `number`, and the mass that min-p keeps of it. Until `conclude` REST has the count of all others.
    DEVICE void survey(f32 min_p, u32 number) {
        const f32 width = 1.0f / per_bin;
        if (threadIdx.x < BINS) m.bounds[threadIdx.x] = key_of(most - static_cast<f32>(threadIdx.x) * width);
        if (threadIdx.x == 0) {
            m.bounds[BINS] = m.likely[0] = m.likely[1] = 0;
            m.listed = 1, m.list[0] = static_cast<u16>(number);
        }
        clear();
        u32 counted = 0;
        u64 likely = 0;
        for_each([&](u32 key, u32) {
            if (key <= m.bounds[REST]) return;
            const f32 relative = likelihood(key);
            const u32 mass = static_cast<u32>(fmaf(relative, UNIT, 0.5f));
            count_in(bin_of(key), mass);
            ++counted;
            if (relative >= min_p) likely += mass;
        });
#pragma unroll
        for (i32 mask = 16; mask > 0; mask /= 2) counted += shfl_xor(counted, mask);
        if (threadIdx.x % 32 == 0) atomicAdd(&m.counts[REST], counted);
        if (min_p > 0.0f) add_mass(&m.likely[0], &m.likely[1], likely);
        __syncthreads();
    }
    // Leaves it to the block that goes on.
    DEVICE void leave(Histogram& to) const {
        if (threadIdx.x < BINS) {
            const u32 bin = threadIdx.x;
            to.mass[bin] = static_cast<u64>(m.mass_high[bin]) << 32 | m.mass_low[bin];
            to.count[bin] = m.counts[bin];
        }
        if (threadIdx.x == 0) to.likely = static_cast<u64>(m.likely[1]) << 32 | m.likely[0];
    }
    // Adds up those of all chunks.
    DEVICE void merge() {
        constexpr u32 TEAMS = SIZE / BINS; // threads with the same bin
        const u32 bin = threadIdx.x % BINS;
        u64 mass = 0, likely = 0;
        u32 count = 0;
        for (u32 i = threadIdx.x / BINS; i < chunks; i += TEAMS) mass += histograms[i].mass[bin], count += histograms[i].count[bin];
        for (u32 i = threadIdx.x; i < chunks; i += SIZE) likely += histograms[i].likely;
        if (threadIdx.x == 0) m.likely[0] = m.likely[1] = 0;
        clear();
        if (count > 0) atomicAdd(&m.counts[bin], count);
        add_mass(&m.mass_low[bin], &m.mass_high[bin], mass);
        add_mass(&m.likely[0], &m.likely[1], likely);
        __syncthreads();
    }
    // The histogram is that of all tokens. Those in no other bin are the rest, and have no mass.
    DEVICE void conclude() {
        if (threadIdx.x == 0) m.counts[REST] = vocab - m.counts[REST];
        sum_to(m.whole);
    }

    // Whether the ranks that begin after this count and mass begin at or before `target`.
    DEVICE static bool begins(Goal goal, u64 target, u32 count, u64 mass) {
        return goal == TOP_K ? count <= target : mass <= target;
    }

    // The bin that holds the target, the same for all: the last that begins in time and is not empty.
    DEVICE u32 choose(Goal goal, u64 target, const Sums& sums, const Range& before) {
        if (threadIdx.x == 0) m.chosen = 0;
        __syncthreads();
        const u32 bin = threadIdx.x;
        if (bin < BINS) {
            const u32 count = before.count_before + (bin > 0 ? sums.count[bin - 1] : 0);
            const u64 mass = before.mass_before + (bin > 0 ? sums.mass[bin - 1] : 0);
            const bool holds_any = before.count_before + sums.count[bin] > count;
            if (holds_any && begins(goal, target, count, mass)) atomicMax(&m.chosen, bin);
        }
        __syncthreads();
        return m.chosen;
    }

    // Sets the range to a bin, with these keys and numbers.
    DEVICE void enter(const Sums& sums, u32 bin, const Range& before, u32 low, u32 high, u32 first, u32 last) {
        if (threadIdx.x == 0) {
            const u32 skipped = bin > 0 ? sums.count[bin - 1] : 0;
            const u64 skipped_mass = bin > 0 ? sums.mass[bin - 1] : 0;
            m.range = {low,
                       high,
                       first,
                       last,
                       sums.mass[bin] - skipped_mass,
                       before.mass_before + skipped_mass,
                       sums.count[bin] - skipped,
                       before.count_before + skipped};
        }
        __syncthreads();
    }

    // Divides the range by 8 bits of its keys, or of its numbers where it has one key, and enters the part with the target.
    DEVICE void narrow(Goal goal, u64 target, const Range& r) {
        const bool by_key = r.low < r.high;
        const u32 extent = by_key ? r.high - r.low : r.last - r.first;
        const u32 shift = max_of(31 - __clz(extent | 1), 7) - 7;
        clear();
        for_each([&](u32 key, u32 token) {
            if (r.holds(key, token)) count_in((by_key ? r.high - key : token - r.first) >> shift, mass_of(key));
        });
        sum_to(m.part);
        const u32 bin = choose(goal, target, m.part, r);
        const u32 skip = bin << shift;
        const u32 most_left = (1u << shift) - 1;
        if (by_key) {
            const u32 high = r.high - skip;
            enter(m.part, bin, r, high - min_of(high - r.low, most_left), high, r.first, r.last);
        } else {
            const u32 first = r.first + skip;
            enter(m.part, bin, r, r.low, r.high, first, first + min_of(r.last - first, most_left));
        }
    }

    // Collects the tokens of the range and finds the one with the target.
    DEVICE void rank_candidates(Goal goal, u64 target, const Range& r) {
        if (threadIdx.x == 0) m.collected = m.chosen = 0;
        __syncthreads();
        for_each([&](u32 key, u32 token) {
            if (!r.holds(key, token)) return;
            const u32 at = atomicAdd(&m.collected, 1u);
            if (at < CANDIDATES) m.keys[at] = key, m.tokens[at] = token, m.masses[at] = mass_of(key);
        });
        __syncthreads();
        const u32 own = threadIdx.x;
        const u32 count = min_of(m.collected, CANDIDATES);
        u32 ahead = 0;
        u64 mass = r.mass_before;
        u64 mass_with_equals = r.mass_before;
        if (own < count) {
            for (u32 i = 0; i < count; ++i) {
                const bool is_ahead = rank_of(m.keys[i], m.tokens[i]) > rank_of(m.keys[own], m.tokens[own]);
                ahead += is_ahead;
                mass += is_ahead ? m.masses[i] : 0;
                mass_with_equals += m.keys[i] >= m.keys[own] ? m.masses[i] : 0;
            }
            if (begins(goal, target, r.count_before + ahead, mass)) atomicMax(&m.chosen, ahead);
        }
        __syncthreads();
        if (own < count && ahead == m.chosen) {
            m.found = {goal == TOP_K ? mass_with_equals : mass + m.masses[own], m.tokens[own]};
        }
        __syncthreads();
    }

    // The token at a target: a count for TOP_K, else a mass below that of all tokens.
    DEVICE Found find(Goal goal, u64 target) {
        const Range all = {0, 0, 0, vocab - 1, 0, 0, vocab, 0};
        const u32 bin = choose(goal, target, m.whole, all);
        enter(m.whole, bin, all, m.bounds[bin + 1] + 1, m.bounds[bin], 0, vocab - 1);
        list_chunks(bin);
        // At most four digits of the keys and three of the numbers.
        for (u32 digit = 0; digit < 8; ++digit) {
            const Range r = m.range;
            if (r.count <= CANDIDATES) break;
            if (goal == TOP_K && r.low == r.high) return {r.mass_before + r.mass, 0};
            narrow(goal, target, r);
        }
        rank_candidates(goal, target, m.range);
        return m.found;
    }

    // Where the best has the key `top`.
    DEVICE void begin(const Settings& set, u32 top) {
        const f32 temperature = fminf(fmaxf(set.temperature, 1.0e-30f), 1.0e30f);
        most = logit_of(top);
        per_temperature = 1.0f / temperature;
        per_bin = static_cast<f32>(REST) / (REACH * temperature);
    }
    // The token drawn.
    DEVICE u32 draw(const Settings& set, u32 top) {
        u64 kept = m.whole.mass[REST];
        u32 token = 0;
        for (i32 goal = TOP_K; goal <= DRAW; ++goal) {
            u64 target = 0;
            if (goal == TOP_K) {
                const u32 count = static_cast<u32>(fminf(fmaxf(set.top_k, 0.0f), static_cast<f32>(vocab)));
                if (count == 0 || count >= vocab) continue;
                target = count - 1;
            } else if (goal == TOP_P) {
                if (!(set.top_p < 1.0f)) continue;
                target = share_of(kept, fmaxf(set.top_p, 0.0f));
                target -= target > 0;
            } else {
                if (set.min_p > 0.0f) {
                    const u64 likely = static_cast<u64>(m.likely[1]) << 32 | m.likely[0];
                    // The best token stays whatever min-p is.
                    kept = min_of(kept, likely > 0 ? likely : static_cast<u64>(mass_of(top)));
                }
                target = min_of(share_of(kept, fminf(fmaxf(set.uniform, 0.0f), 1.0f)), kept - 1);
            }
            const Found found = find(static_cast<Goal>(goal), target);
            kept = found.mass;
            token = found.token;
        }
        return token;
    }
};
