// out = scale * col * row * act(cap(x)) * by + add,  cap(x) = softcap * tanh(x / softcap)
//
// x, by: [rows, d] of type X   col: [d] of type COL   row: f32 [rows]   add, out: [rows, d] of type OUT
//
// A workgroup takes COLUMNS elements of one row, two neighbours an invocation at a time, so that 16-bit outputs are written as
// whole words where a row begins at one.
//
// COL, ROW, BY, ADD: operands that exist. OUT_TO names the tensor that takes the result: `out`, or `x`, `by` or `add` where it is
// updated in place; a tensor that is read and written is bound once. BOUNDS: whether x is held between low and high first. CAP: whether it is capped. ACT as in epilogue.wgsl.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/math.wgsl"
#if OUT_TO == x
#include "wgpu/include/output.wgsl" NAME=x BINDING=0 TYPE=${X}
#else
#include "wgpu/include/input.wgsl" NAME=x BINDING=0 TYPE=${X} ACCESS=read_write
#endif
#if COL
#include "wgpu/include/input.wgsl" NAME=col BINDING=1 TYPE=${COL} ACCESS=read
#endif
#if ROW
#include "wgpu/include/input.wgsl" NAME=row BINDING=2 TYPE=f32 ACCESS=read_write
#endif
#if BY
#if OUT_TO == by
#include "wgpu/include/output.wgsl" NAME=by BINDING=3 TYPE=${X}
#else
#include "wgpu/include/input.wgsl" NAME=by BINDING=3 TYPE=${X} ACCESS=read_write
#endif
#endif
#if ADD
#if OUT_TO == add
#include "wgpu/include/output.wgsl" NAME=add BINDING=4 TYPE=${OUT}
#else
#include "wgpu/include/input.wgsl" NAME=add BINDING=4 TYPE=${OUT} ACCESS=read_write
#endif
#endif
#if OUT_TO == out
#include "wgpu/include/output.wgsl" NAME=out BINDING=5 TYPE=${OUT}
#endif

struct Params {
    rows: u32,
    d: u32,
    x: u32,
    x_stride: u32,
    col: u32,
    row: u32,
    by: u32,
    by_stride: u32,
    add: u32,
    add_stride: u32,
    out: u32,
    out_stride: u32,
    scale: f32,
    softcap: f32,
    low: f32,
    high: f32,
}
${PARAMS} p: Params;

const WG: u32 = 64u;
const COLUMNS: u32 = ${COLUMNS}u;

fn activate(x: f32) -> f32 {
#if ACT == gelu_tanh
    return x * sigmoid(1.5957691216 * x * (1.0 + 0.044715 * x * x));
#elif ACT == gelu_erf
    return x * normal_cdf(x);
#elif ACT == quick_gelu
    return x * sigmoid(1.702 * x);
#elif ACT == silu
    return x * sigmoid(x);
#elif ACT == relu
    return max(x, 0.0);
#else
    return x;
#endif
}

fn value(row: u32, at: u32, scale: f32) -> f32 {
    var v = x_at(p.x + row * p.x_stride + at);
#if BOUNDS
    v = clamp(v, p.low, p.high);
#endif
#if CAP
    v = p.softcap * tanh_f32(v / p.softcap);
#endif
    v = activate(v) * scale;
#if COL
    v *= col_at(p.col + at);
#endif
#if BY
    v *= by_at(p.by + row * p.by_stride + at);
#endif
#if ADD
    v += add_at(p.add + row * p.add_stride + at);
#endif
    return v;
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let chunks = (p.d + COLUMNS - 1u) / COLUMNS;
    let item = linear_workgroup(group, groups);
    let i = item / chunks;
    if i >= p.rows {
        return;
    }
    var scale = p.scale;
#if ROW
    scale *= row_at(p.row + i);
#endif
    let first = (item % chunks) * COLUMNS;
    let end = min(first + COLUMNS, p.d);
    let to = p.out + i * p.out_stride;
    for (var at = first + 2u * lane; at < end; at += 2u * WG) {
        if at + 1u < end {
            ${OUT_TO}_set2(to + at, vec2<f32>(value(i, at, scale), value(i, at + 1u, scale)));
        } else {
            ${OUT_TO}_set(to + at, value(i, at, scale));
        }
    }
}
