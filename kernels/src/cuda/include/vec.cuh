// Neighbouring elements of a row, in registers as f32, moved by instructions of up to 16 bytes.
//
// `N` elements lie at a multiple of their size, or of 16 bytes where that is less; N is 1, 2, 4 or 8.
#pragma once
#include "cuda/include/ptx.cuh"

template <typename T, int N> DEVICE void load_vec(f32 (&to)[N], const T* from) {
    if constexpr (N == 1) {
        to[0] = to_f32(*from);
    } else if constexpr (same_type<T, f32>::value && N == 2) {
        const float2 v = *reinterpret_cast<const float2*>(from);
        to[0] = v.x, to[1] = v.y;
    } else if constexpr (same_type<T, f32>::value) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const float4 v = *reinterpret_cast<const float4*>(from + i);
            to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
        }
    } else {
        u32 words[N / 2];
        if constexpr (N == 2) {
            words[0] = *reinterpret_cast<const u32*>(from);
        } else if constexpr (N == 4) {
            const uint2 v = *reinterpret_cast<const uint2*>(from);
            words[0] = v.x, words[1] = v.y;
        } else {
            const uint4 v = *reinterpret_cast<const uint4*>(from);
            words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
        }
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const float2 pair = unpack2<T>(words[i]);
            to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
        }
    }
}

template <typename T, int N> DEVICE void store_vec(T* to, const f32 (&from)[N]) {
    if constexpr (N == 1) {
        *to = from_f32<T>(from[0]);
    } else if constexpr (same_type<T, f32>::value && N == 2) {
        *reinterpret_cast<float2*>(to) = make_float2(from[0], from[1]);
    } else if constexpr (same_type<T, f32>::value) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            *reinterpret_cast<float4*>(to + i) = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
        }
    } else {
        u32 words[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; ++i) words[i] = pack2<T>(from[2 * i], from[2 * i + 1]);
        if constexpr (N == 2) {
            *reinterpret_cast<u32*>(to) = words[0];
        } else if constexpr (N == 4) {
            *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
        } else {
            *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
}

// N elements as they lie in memory, 16 bytes or a multiple of them, or one. Several are fetched before the first is opened: what `load_vec` gives is
// waited for at each branch.
template <typename T, int N> struct Fetched {
    static constexpr int QUADS = N * static_cast<int>(sizeof(T)) / 16;
    uint4 quads[QUADS];

    DEVICE void fetch(const T* from) {
#pragma unroll
        for (int i = 0; i < QUADS; ++i) quads[i] = reinterpret_cast<const uint4*>(from)[i];
    }
    DEVICE void open(f32 (&to)[N]) const {
#pragma unroll
        for (int i = 0; i < QUADS; ++i) {
            const u32 words[4] = {quads[i].x, quads[i].y, quads[i].z, quads[i].w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if constexpr (same_type<T, f32>::value) {
                    to[4 * i + j] = __uint_as_float(words[j]);
                } else {
                    const float2 pair = unpack2<T>(words[j]);
                    to[8 * i + 2 * j] = pair.x, to[8 * i + 2 * j + 1] = pair.y;
                }
            }
        }
    }
};
template <typename T> struct Fetched<T, 1> {
    T element;

    DEVICE void fetch(const T* from) { element = *from; }
    DEVICE void open(f32 (&to)[1]) const { to[0] = to_f32(element); }
};
