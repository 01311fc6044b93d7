// 8-bit floats (E4M3, see `quant/e4m3/mod.rs`).
#include "quant/e4m3/value.wgsl"

// The four codes of a word, low bits first; there are no zero points.
fn code_four(word: u32, zero: vec4<f32>) -> vec4<f32> {
    return e4m3_four(word);
}
