// Reduces rows to one per segment or per block of a grid: mean, largest, first or last.
//
// x: [rows, d] of type X   segments: i32 [outputs + 1], ascending   out: [outputs, d] of type OUT
//
// The members of output o are the rows first + i / across * stride + i % across, i < count: of a segment, neighbours
// (across beyond every count); of a block of a grid, `across` neighbours in each of some lines `stride` apart. First and
// last are segments of one row.
//
// A workgroup makes PAIRS * 2 neighbouring columns of one output. Its SLICES slices of invocations go through every
// SLICES-th member each and join their results in workgroup memory, so that one long segment keeps a device busy too. A
// slice reads PAIRS * 2 neighbours of a row at once. The largest starts from a slice's own first member, and slices without
// one are left out at the end: there is no number below all others to start from.
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/input.wgsl" NAME=x BINDING=0 TYPE=${X} ACCESS=read_write
#include "wgpu/include/output.wgsl" NAME=out BINDING=1 TYPE=${OUT}
#if SEGMENTS
@group(0) @binding(2) var<storage, read_write> segments: array<i32>;
#endif

struct Params {
    rows: u32,
    outputs: u32,
    d: u32,
    x: u32,
    x_stride: u32,
    out: u32,
    out_stride: u32,
    segments: u32,
    grid_w: u32,
    block_h: u32,
    block_w: u32,
}
${PARAMS} p: Params;

const PAIRS: u32 = 32u;
const SLICES: u32 = 8u;

var<workgroup> parts: array<vec2<f32>, PAIRS * SLICES>;

struct Members {
    first: u32,
    across: u32,
    stride: u32,
    count: u32,
}

fn members_of(output: u32) -> Members {
#if SEGMENTS
    let first = u32(clamp(segments[p.segments + output], 0, i32(p.rows)));
    let end = u32(clamp(segments[p.segments + output + 1u], i32(first), i32(p.rows)));
#if KIND == first
    return Members(first, 0xffffffffu, 0u, min(end - first, 1u));
#elif KIND == last
    return Members(max(end, 1u) - 1u, 0xffffffffu, 0u, min(end - first, 1u));
#else
    return Members(first, 0xffffffffu, 0u, end - first);
#endif
#else
    // Lines of blocks count through all pictures, which hold whole blocks.
    let blocks = p.grid_w / p.block_w;
    let first = output / blocks * p.block_h * p.grid_w + output % blocks * p.block_w;
    return Members(first, p.block_w, p.grid_w, p.block_w * p.block_h);
#endif
}

@compute @workgroup_size(PAIRS, SLICES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let chunks = (p.d + 2u * PAIRS - 1u) / (2u * PAIRS);
    let item = linear_workgroup(group, groups);
    let output = item / chunks;
    if output >= p.outputs {
        return;
    }
    let members = members_of(output);
    let col = 2u * ((item % chunks) * PAIRS + lane.x);
    let last_col = min(col + 1u, p.d - 1u);

    var all = vec2<f32>(0.0);
    if col < p.d {
        for (var i = lane.y; i < members.count; i += SLICES) {
            let row = members.first + i / members.across * members.stride + i % members.across;
            let at = p.x + row * p.x_stride;
            let values = vec2<f32>(x_at(at + col), x_at(at + last_col));
#if KIND == max
            all = select(max(all, values), values, i == lane.y);
#else
            all += values;
#endif
        }
    }
    parts[lane.y * PAIRS + lane.x] = all;
    workgroupBarrier();
    if lane.y > 0u || col >= p.d {
        return;
    }
    for (var slice = 1u; slice < min(SLICES, members.count); slice++) {
#if KIND == max
        all = max(all, parts[slice * PAIRS + lane.x]);
#else
        all += parts[slice * PAIRS + lane.x];
#endif
    }
#if KIND == mean
    all /= f32(max(members.count, 1u));
#endif
    let to = p.out + output * p.out_stride + col;
    if last_col > col {
        out_set2(to, all);
    } else {
        out_set(to, all.x);
    }
}
