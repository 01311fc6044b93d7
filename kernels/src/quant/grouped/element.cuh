// One weight of a matrix of codes in groups: w = (q - zero) * scale, the planes as `Grouped` describes them.
//
// `w` is any struct with the planes' addresses `data`, `scales` and `zeros` (null where there are no zero points), the elements
// from row to row in each (`stride`, `scale_stride`, `zero_stride`), `group`, the weights along k that share a scale, and
// `type`, the ValueType of the scales.
#pragma once
#include "cuda/include/values.cuh"
#include "quant/e4m3/decode.cuh"

// The field of number `index` in the word that holds it, as stored: 2^(Bits - 1) more than its value.
template <int Bits> DEVICE i32 int_group_field(u32 word, i32 index) {
    return static_cast<i32>((word >> (index % (32 / Bits) * Bits)) & ((1u << Bits) - 1));
}

template <int Bits, bool Float, typename W> DEVICE f32 grouped_element(const W& w, i32 row, i32 col) {
    constexpr i32 FIELDS = 32 / Bits;
    const i32 group = col / w.group;
    const u32 word = static_cast<const u32*>(w.data)[row * w.stride + col / FIELDS];
    const f32 scale = load_value(w.scales, w.type, row * w.scale_stride + group);
    if constexpr (Float) return unpack2<f16>(e4m3_halves(word << (8 * (3 - col % 4)))).y * 256.0f * scale;
    i32 zero = 1 << (Bits - 1);
    if (w.zeros != nullptr)
        zero = int_group_field<Bits>(static_cast<const u32*>(w.zeros)[row / FIELDS * w.zero_stride + group], row);
    return static_cast<f32>(int_group_field<Bits>(word, col) - zero) * scale;
}
