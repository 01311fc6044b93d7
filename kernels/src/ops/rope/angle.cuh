// How a pair of a head is turned.
#pragma once
#include "cuda/include/math.cuh"

// Sine and cosine of a pair's angle, scaled.
DEVICE float2 turn_of(i32 position, f32 freq, f32 scaling) {
    const float2 turn = sin_cos(static_cast<f32>(position) * freq);
    return make_float2(turn.x * scaling, turn.y * scaling);
}

DEVICE void turn(f32& a, f32& b, float2 by) {
    const f32 x = a;
    a = x * by.y - b * by.x;
    b = b * by.y + x * by.x;
}
