// One weight of a matrix of codes in groups, the planes as `Grouped` describes them, at bindings 0, 1 and 2; see `group.wgsl`.
//
// The kernel's parameters hold what `Kernel::weight` gives.
#include "quant/grouped/group.wgsl" SCALES=1 ZEROS=2
@group(0) @binding(0) var<storage, read> packed: array<u32>;

fn weight_at(row: u32, col: u32) -> f32 {
    let group = w_group(row, col / p.group);
    let word = packed[p.w + row * p.w_stride + col / PER_WORD];
    return code_four(word >> (col % PER_WORD * ${BITS}u), vec4<f32>(group.y)).x * group.x;
}
