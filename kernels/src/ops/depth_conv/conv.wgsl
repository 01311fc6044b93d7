// out[y, x, n] = bias[n] + sum of weight[t, n] * in[y * stride + ty - padding, x * stride + tx - padding, n / multiplier]
//
// x: [pictures * rows * cols, channels] of type X   weight: f32 [height * width, wide]   bias: f32 [wide], if BIAS
// out: [pictures * down * across, wide] of type OUT
//
// An invocation makes two neighbouring channels of one place. Taps beyond the edges are left out.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/input.wgsl" NAME=x BINDING=0 TYPE=${X} ACCESS=read_write
#include "wgpu/include/output.wgsl" NAME=out BINDING=2 TYPE=${OUT}

@group(0) @binding(1) var<storage, read_write> weight: array<f32>;
#if BIAS
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;
#endif

struct Params {
    places: u32,
    wide: u32,
    multiplier: u32,
    rows: u32,
    cols: u32,
    down: u32,
    across: u32,
    height: u32,
    width: u32,
    stride: u32,
    padding: u32,
    x: u32,
    x_stride: u32,
    weight: u32,
    weight_stride: u32,
    bias: u32,
    out: u32,
    out_stride: u32,
}
${PARAMS} p: Params;

const WG: u32 = 64u;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let chunks = (p.wide + 2u * WG - 1u) / (2u * WG);
    let item = linear_workgroup(group, groups);
    let place = item / chunks;
    let col = 2u * (item % chunks * WG + lane);
    if place >= p.places || col >= p.wide {
        return;
    }
    let last = min(col + 1u, p.wide - 1u);
    let picture = place / (p.down * p.across);
    let y = place / p.across % p.down * p.stride;
    let left = place % p.across * p.stride;
    var sum = vec2<f32>(0.0);
#if BIAS
    sum = vec2<f32>(bias[p.bias + col], bias[p.bias + last]);
#endif
    for (var ty = 0u; ty < p.height; ty++) {
        // Rows above the picture wrap to numbers that no picture has.
        let row = y + ty - p.padding;
        if row >= p.rows {
            continue;
        }
        for (var tx = 0u; tx < p.width; tx++) {
            let at = left + tx - p.padding;
            if at >= p.cols {
                continue;
            }
            let source = p.x + ((picture * p.rows + row) * p.cols + at) * p.x_stride;
            let value = vec2<f32>(x_at(source + col / p.multiplier), x_at(source + last / p.multiplier));
            let tap = p.weight + (ty * p.width + tx) * p.weight_stride;
            sum += vec2<f32>(weight[tap + col], weight[tap + last]) * value;
        }
    }
    let to = p.out + place * p.out_stride + col;
    if last > col {
        out_set2(to, sum);
    } else {
        out_set(to, sum.x);
    }
}
