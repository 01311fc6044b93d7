// One weight of a matrix of codes in groups; see `Grouped`.
#pragma once
#include "quant/codes.cuh"
#include "quant/grouped/scale.cuh"

// `w` is any struct with the planes' addresses `data`, `scales` and `zeros` (null where there are no zero points), the elements
// from row to row in each (`stride`, `scale_stride`, `zero_stride`), `group`, the weights along k that share a scale, `type`, the
// ValueType of the scales, `factor`, which multiplies them, and `zero`, a ZeroKind.
template <typename Code, typename W> DEVICE f32 grouped_element(const W& w, i32 row, i32 col) {
    constexpr i32 FIELDS = Code::BITS == 0 ? 1 : 32 / Code::BITS;
    const i32 group = col / w.group;
    const u32 word = static_cast<const u32*>(w.data)[row * w.stride + col / FIELDS];
    const f32 scale = scale_value(scale_bits(w.scales, w.type, row * w.scale_stride + group), w.type) * w.factor;
    f32 zero = static_cast<f32>(Code::CENTRE), offset = 0.0f;
    if (w.zero == ZERO_CODES) {
        zero = Code::value(static_cast<const u32*>(w.zeros)[row / FIELDS * w.zero_stride + group], row);
    } else if (w.zero == ZERO_FLOAT) {
        zero = load_value(w.zeros, w.type, row * w.zero_stride + group);
    } else if (w.zero == ZERO_OFFSET) {
        zero = 0.0f;
        offset = load_value(w.zeros, w.type, row * w.zero_stride + group);
    }
    return (Code::value(word, col) - zero) * scale + offset;
}
