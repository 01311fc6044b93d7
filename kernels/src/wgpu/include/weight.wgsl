// A weight matrix of any format, one weight at a time: `weight_at(row, col)`, at bindings 0 to 2.
//
// `Kernel::weight` gives the values that choose the format, and the parameters w, w_stride, scales, scale_stride, zeros,
// zero_stride, group and factor, which the kernel's `p` holds.
#if BITS
#include "quant/grouped/element.wgsl"
#else
#include "wgpu/include/input.wgsl" NAME=weight_plane BINDING=0 TYPE=${W} ACCESS=${W_ACCESS}

fn weight_at(row: u32, col: u32) -> f32 {
    return weight_plane_at(p.w + row * p.w_stride + col);
}
#endif
