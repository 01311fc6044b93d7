// One weight of a matrix of grouped integers: w = (q - zero) * scale, the planes as `Format::IntGroup` describes them.
//
// `w` is any struct with the planes' addresses `data`, `scales` and `zeros` (null where there are no zero points), the elements
// from row to row in each (`stride`, `scale_stride`, `zero_stride`), `group`, the weights along k that share a scale, and
// `type`, the ValueType of the scales.
#pragma once
#include "cuda/include/values.cuh"

// The field of number `index` in the word that holds it, as stored: 2^(Bits - 1) more than its value.
template <int Bits> DEVICE i32 int_group_field(u32 word, i32 index) {
    return static_cast<i32>((word >> (index % (32 / Bits) * Bits)) & ((1u << Bits) - 1));
}

template <int Bits, typename W> DEVICE f32 int_group_element(const W& w, i32 row, i32 col) {
    constexpr i32 FIELDS = 32 / Bits;
    const i32 group = col / w.group;
    const i32 q = int_group_field<Bits>(static_cast<const u32*>(w.data)[row * w.stride + col / FIELDS], col);
    i32 zero = 1 << (Bits - 1);
    if (w.zeros != nullptr)
        zero = int_group_field<Bits>(static_cast<const u32*>(w.zeros)[row / FIELDS * w.zero_stride + group], row);
    return static_cast<f32>(q - zero) * load_value(w.scales, w.type, row * w.scale_stride + group);
}
