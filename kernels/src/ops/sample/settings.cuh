// What a row is sampled by.
#pragma once
#include "cuda/include/types.cuh"

// Settings of a row, in the order of their columns.
struct Settings {
    f32 temperature;
    f32 top_k;
    f32 top_p;
    f32 min_p;
    f32 repetition_penalty;
    f32 uniform;
    f32 mask;
};
