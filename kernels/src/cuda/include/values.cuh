// Floats whose type is a value of the parameters: f32, bf16 or f16; scales of weights also have types of 8 bits, and keys and values may be
// codes of 8 bits. The type is the same for the whole grid, so the branches are uniform: a kernel that is not bound by them needs one
// compilation for all types.
#pragma once
#include "cuda/include/ptx.cuh"

enum ValueType : u32 { VALUE_NONE, VALUE_F32, VALUE_BF16, VALUE_F16, VALUE_E4M3, VALUE_E8M0, VALUE_I8 };

DEVICE f32 load_value(const void* p, u32 type, i64 at) {
    if (type == VALUE_F32) return static_cast<const f32*>(p)[at];
    const u16 bits = static_cast<const u16*>(p)[at];
    return type == VALUE_BF16 ? to_f32(bf16{bits}) : to_f32(f16{bits});
}
DEVICE void store_value(void* p, u32 type, i64 at, f32 v) {
    if (type == VALUE_F32) {
        static_cast<f32*>(p)[at] = v;
    } else {
        static_cast<u16*>(p)[at] = type == VALUE_BF16 ? from_f32<bf16>(v).bits : from_f32<f16>(v).bits;
    }
}
// Two 16-bit values in a word.
DEVICE u32 pack_values(u32 type, f32 lo, f32 hi) {
    return type == VALUE_BF16 ? pack2<bf16>(lo, hi) : pack2<f16>(lo, hi);
}
DEVICE float2 unpack_values(u32 type, u32 word) {
    return type == VALUE_BF16 ? unpack2<bf16>(word) : unpack2<f16>(word);
}

// `WORDS` words at an address aligned to their size, 16 bytes at most.
template <int WORDS> DEVICE void load_words(u32 (&v)[WORDS], const void* p) {
    if constexpr (WORDS % 4 == 0) {
#pragma unroll
        for (int i = 0; i < WORDS / 4; ++i) {
            const uint4 word = static_cast<const uint4*>(p)[i];
            v[4 * i] = word.x, v[4 * i + 1] = word.y, v[4 * i + 2] = word.z, v[4 * i + 3] = word.w;
        }
    } else if constexpr (WORDS == 2) {
        const uint2 word = *static_cast<const uint2*>(p);
        v[0] = word.x, v[1] = word.y;
    } else {
        v[0] = *static_cast<const u32*>(p);
    }
}
template <int WORDS> DEVICE void store_words(void* p, const u32 (&v)[WORDS]) {
    if constexpr (WORDS % 4 == 0) {
#pragma unroll
        for (int i = 0; i < WORDS / 4; ++i)
            static_cast<uint4*>(p)[i] = make_uint4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
    } else if constexpr (WORDS == 2) {
        *static_cast<uint2*>(p) = make_uint2(v[0], v[1]);
    } else {
        *static_cast<u32*>(p) = v[0];
    }
}

// N neighbours from element `at` on, aligned to their size or to 16 bytes.
template <int N> DEVICE void load_group(f32 (&v)[N], const void* p, u32 type, i64 at) {
    if constexpr (N == 1) {
        v[0] = load_value(p, type, at);
    } else if (type == VALUE_F32) {
        u32 words[N];
        load_words(words, static_cast<const f32*>(p) + at);
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = __uint_as_float(words[i]);
    } else {
        u32 words[N / 2];
        load_words(words, static_cast<const u16*>(p) + at);
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const float2 pair = unpack_values(type, words[i]);
            v[2 * i] = pair.x, v[2 * i + 1] = pair.y;
        }
    }
}
template <int N> DEVICE void store_group(void* p, u32 type, i64 at, const f32 (&v)[N]) {
    if constexpr (N == 1) {
        store_value(p, type, at, v[0]);
    } else if (type == VALUE_F32) {
        u32 words[N];
#pragma unroll
        for (int i = 0; i < N; ++i) words[i] = __float_as_uint(v[i]);
        store_words(static_cast<f32*>(p) + at, words);
    } else {
        u32 words[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; ++i) words[i] = pack_values(type, v[2 * i], v[2 * i + 1]);
        store_words(static_cast<u16*>(p) + at, words);
    }
}
// As load_group and store_group for a group of which only the first `count` exist, wherever it begins.
template <int N> DEVICE void load_some(f32 (&v)[N], const void* p, u32 type, i64 at, i32 count) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = i < count ? load_value(p, type, at + i) : 0.0f;
}
template <int N> DEVICE void store_some(void* p, u32 type, i64 at, const f32 (&v)[N], i32 count) {
#pragma unroll
    for (int i = 0; i < N; ++i)
        if (i < count) store_value(p, type, at + i, v[i]);
}

// Four neighbours as they lie in memory. Several are fetched before the first is opened: functions that convert what they load wait for
// each load.
struct Four {
    u32 words[4];
};
// Those from element `at` on, zeros where there are none; `aligned`: to their size.
DEVICE Four fetch_four(const void* p, u32 type, bool aligned, i64 at, bool there) {
    Four v = {};
    if (!there) return v;
    if (type == VALUE_F32) {
        const f32* const from = static_cast<const f32*>(p) + at;
        if (aligned) {
            load_words(v.words, from);
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) v.words[i] = __float_as_uint(from[i]);
        }
    } else {
        const u16* const from = static_cast<const u16*>(p) + at;
        if (aligned) {
            const uint2 pair = *reinterpret_cast<const uint2*>(from);
            v.words[0] = pair.x, v.words[1] = pair.y;
        } else {
#pragma unroll
            for (int i = 0; i < 2; ++i) v.words[i] = from[2 * i] | static_cast<u32>(from[2 * i + 1]) << 16;
        }
    }
    return v;
}
DEVICE void open_four(f32 (&to)[4], const Four& v, u32 type) {
    if (type == VALUE_F32) {
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i] = __uint_as_float(v.words[i]);
    } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float2 pair = unpack_values(type, v.words[i]);
            to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
        }
    }
}

// Columns col .. col + N - 1 of a row of k elements, the first of which is element `row`; zeros where there are none. Rows of
// `aligned` ones begin at multiples of 16 bytes.
template <int N> DEVICE void load_columns(f32 (&v)[N], const void* p, u32 type, bool aligned, i64 row, i32 col, i32 k) {
    if (aligned && col + N <= k) {
        load_group(v, p, type, row + col);
    } else {
        load_some(v, p, type, row + col, k - col);
    }
}
