// What searches keep, see search.cuh, and sums of masses.
#pragma once
#include "cuda/include/ptx.cuh"

constexpr u32 BINS = 256;
constexpr u32 REST = BINS - 1;
constexpr u32 CANDIDATES = 256;
constexpr f32 REACH = 24.0f;
constexpr f32 UNIT = 2147483648.0f;
// Chunks of a row at most.
constexpr u32 CHUNKS = 1024;

// What searches are for, in this order.
enum Goal { TOP_K, TOP_P, DRAW };

// Tokens in ranks that follow each other: those with keys `low..=high` and numbers `first..=last`.
struct Range {
    u32 low;
    u32 high;
    u32 first;
    u32 last;
    u64 mass;
    u64 mass_before;
    u32 count;
    u32 count_before;

    DEVICE bool holds(u32 key, u32 token) const { return key >= low && key <= high && token >= first && token <= last; }
};

// The token that was searched for, and the mass up to it; for TOP_K with the tokens of equal key.
struct Found {
    u64 mass;
    u32 token;
};

// Sums up to and with each bin of a histogram.
struct Sums {
    u64 mass[BINS];
    u32 count[BINS];
};

// What a block knows of its chunk: mass and count of each bin, but of REST the count of the tokens in all others; the mass of the tokens
// that min-p keeps.
struct Histogram {
    u64 mass[BINS];
    u32 count[BINS];
    u64 likely;
};

// In shared memory.
struct SearchMemory {
    // Of the first histogram, and of a later one.
    Sums whole;
    Sums part;
    Range range;
    Found found;
    // A histogram in the making; masses in two words.
    u32 counts[BINS];
    u32 mass_low[BINS];
    u32 mass_high[BINS];
    // Bin b of the first histogram holds the keys above `bounds[b + 1]` up to `bounds[b]`.
    u32 bounds[BINS + 1];
    // Mass of the tokens that min-p keeps, in two words.
    u32 likely[2];
    u32 chosen;
    u32 collected;
    // Chunks that passes are over.
    u32 listed;
    u16 list[CHUNKS];
    u32 keys[CANDIDATES];
    u32 tokens[CANDIDATES];
    u32 masses[CANDIDATES];
};

// Adds to a sum of two words.
DEVICE void add_mass(u32* low, u32* high, u64 mass) {
    const u32 lower = static_cast<u32>(mass);
    u32 upper = static_cast<u32>(mass >> 32);
    if (lower > 0 && atomicAdd(low, lower) > 0xffffffffu - lower) ++upper;
    if (upper > 0) atomicAdd(high, upper);
}

// A share of a mass, rounded down.
DEVICE u64 share_of(u64 mass, f32 share) {
    const f32 high = static_cast<f32>(static_cast<u32>(mass >> 32));
    return static_cast<u64>(share * fmaf(high, 4294967296.0f, static_cast<f32>(static_cast<u32>(mass))));
}

DEVICE u64 shfl_up_u64(u64 v, i32 by) {
    const u32 low = shfl_up(static_cast<u32>(v), by);
    return static_cast<u64>(shfl_up(static_cast<u32>(v >> 32), by)) << 32 | low;
}
