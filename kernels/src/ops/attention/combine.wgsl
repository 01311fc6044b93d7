// The sum of what split.wgsl found in parts of the keys, in order:
//
//   most = max_s most_s;   out = sum_s 2^(most_s - most) o_s / sum_s 2^(most_s - most) sum_s
//
// partial: f32 [tokens, heads_q, splits, COLUMNS + 1, 4], see there   out: [tokens, heads_q, HEAD_DIM] of type X
//
// An invocation has four elements of a row. The splits of a row are read twice, their sums once.
const HEAD_DIM: u32 = ${HEAD_DIM}u;
#include "wgpu/include/grid.wgsl"
#include "wgpu/include/math.wgsl"
#include "ops/attention/params.wgsl"
#include "ops/attention/result.wgsl" TYPE=${X}

@group(0) @binding(0) var<storage, read_write> partial: array<vec4<f32>>;

const WG: u32 = 64u;
const COLUMNS: u32 = (HEAD_DIM + 3u) / 4u;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let item = linear_workgroup(group, groups) * WG + index;
    let row = item / COLUMNS;
    let column = item % COLUMNS;
    if row >= p.tokens * p.heads_q {
        return;
    }
    let first = p.partial / 4u + row * p.splits * (COLUMNS + 1u);
    var most = -3.0e38;
    for (var i = 0u; i < p.splits; i++) {
        most = max(most, partial[first + i * (COLUMNS + 1u) + COLUMNS].x);
    }
    var o = vec4<f32>(0.0);
    var total = 0.0;
    for (var i = 0u; i < p.splits; i++) {
        let at = first + i * (COLUMNS + 1u);
        let found = partial[at + COLUMNS];
        let factor = exp2_f32(found.x - most);
        total += factor * found.y;
        o += factor * partial[at + column];
    }
    // A row that sees no key is zero.
    let scale = select(0.0, 1.0 / total, total > 0.0);
    let head = row % p.heads_q;
    store_row4(p.out + row / p.heads_q * p.out_token + head * p.out_head, column, o * scale);
}
