// out[i, j] = act(sum_k x[i / share, k] w[ids[i] n + j, k]), gated by the upper half of an expert's rows if GATED
//
// x: [m / share, k] of type X   w: rows of any format, see `weight.wgsl`   ids: i32 [m]   out: [m, n_out] of type OUT
//
// A launch serves one part of the matrix, rows `first..first + rows` of the whole: it writes the columns whose rows fall into the
// part, and no others. A workgroup makes COLUMNS neighbouring columns of one choice; its invocations lie along k, neighbours on
// neighbouring weights, and add up in workgroup memory.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/weight.wgsl"
#include "wgpu/include/input.wgsl" NAME=x BINDING=3 TYPE=${X} ACCESS=read_write
#include "ops/matmul/epilogue.wgsl"

@group(0) @binding(4) var<storage, read_write> ids: array<i32>;

struct Params {
    m: u32,
    share: u32,
    experts: u32,
    n: u32,
    n_out: u32,
    k: u32,
    first: u32,
    rows: u32,
    x: u32,
    x_stride: u32,
    ids: u32,
    out: u32,
    out_stride: u32,
    w: u32,
    w_stride: u32,
    scales: u32,
    scale_stride: u32,
    zeros: u32,
    zero_stride: u32,
    group: u32,
    factor: f32,
}
${PARAMS} p: Params;

const WG: u32 = 64u;
const COLUMNS: u32 = ${COLUMNS}u;
#if GATED
const SUMS: u32 = 2u * COLUMNS;
#else
const SUMS: u32 = COLUMNS;
#endif

var<workgroup> lane_sums: array<f32, WG * SUMS>;

// Row of this part for sum `s` of a workgroup; beyond the part where there is none.
fn row_of(id: u32, first: u32, s: u32) -> u32 {
    let col = first + s % COLUMNS;
    if id >= p.experts || col >= p.n_out {
        return 0xffffffffu;
    }
    // Rows before the part become numbers beyond it.
    return id * p.n + s / COLUMNS * p.n_out + col - p.first;
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (p.n_out + COLUMNS - 1u) / COLUMNS;
    let item = linear_workgroup(group, groups);
    let choice = item / blocks;
    if choice >= p.m {
        return;
    }
    let first = item % blocks * COLUMNS;
    // Negative ids become numbers beyond every expert.
    let id = bitcast<u32>(ids[p.ids + choice]);
    let x_row = p.x + choice / p.share * p.x_stride;
    var acc: array<f32, SUMS>;
    for (var col = lane; col < p.k; col += WG) {
        let value = x_at(x_row + col);
        for (var s = 0u; s < SUMS; s += 1u) {
            let row = row_of(id, first, s);
            if row < p.rows {
                acc[s] = fma(value, weight_at(row, col), acc[s]);
            }
        }
    }
    for (var s = 0u; s < SUMS; s += 1u) {
        lane_sums[lane * SUMS + s] = acc[s];
    }
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        for (var s = lane; s < half * SUMS; s += WG) {
            lane_sums[s] += lane_sums[s + half * SUMS];
        }
    }
    workgroupBarrier();
    if lane < COLUMNS && row_of(id, first, lane) < p.rows {
        var value = activate(lane_sums[lane]);
#if GATED
        value *= lane_sums[COLUMNS + lane];
#endif
        out_set(p.out + choice * p.out_stride + first + lane, value);
    }
}
