// Rows of one stored tensor of weights, as a launch gets them.
#pragma once
#include "quant/grouped/scale.cuh"

// Addresses are of the tensor's first row; row `i` of the launch is its row `first + i`, because zero points of several rows
// share a word. Strides are in elements of each plane. Planes that the format does not have are null.
struct WeightRows {
    const void* data;   // floats; of codes, words of them
    const void* scales;
    const void* zeros;
    i64 stride;
    i64 scale_stride;
    i64 zero_stride;
    i32 first;
    i32 group;   // weights along k that share a scale
    u32 type;    // ValueType of the floats: dense weights, or scales
    u32 aligned; // whether each row of `data` begins at a multiple of 16 bytes
    f32 factor;  // of the scales
    u32 zero;    // ZeroKind
};
