// Patch (r, c) of a picture goes to token (r / factor, c / factor), block order(r % factor, c % factor): a permutation.
//
// x: [images * grid_h * grid_w, d] of type X   out: [images * (grid_h / factor) * (grid_w / factor), factor^2 * d] of type OUT
//
// A workgroup copies COLUMNS features of one patch: both sides are contiguous there. VEC: all rows begin at multiples of
// four elements and d is one; four elements are then one load and one store. Else two neighbours an invocation, so that
// 16-bit outputs are written as whole words where a block begins at one.
#include "wgpu/include/grid.wgsl"
#if VEC
#include "wgpu/include/input4.wgsl" NAME=x BINDING=0 TYPE=${X} ACCESS=read_write
#include "wgpu/include/output4.wgsl" NAME=out BINDING=1 TYPE=${OUT}
#else
#include "wgpu/include/input.wgsl" NAME=x BINDING=0 TYPE=${X} ACCESS=read_write
#include "wgpu/include/output.wgsl" NAME=out BINDING=1 TYPE=${OUT}
#endif

struct Params {
    patches: u32,
    d: u32,
    grid_w: u32,
    factor: u32,
    column_first: u32,
    x: u32,
    x_stride: u32,
    out: u32,
    out_stride: u32,
}
${PARAMS} p: Params;

const WG: u32 = 64u;
const COLUMNS: u32 = ${COLUMNS}u;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let chunks = (p.d + COLUMNS - 1u) / COLUMNS;
    let item = linear_workgroup(group, groups);
    let patch_index = item / chunks;
    if patch_index >= p.patches {
        return;
    }
    // Rows of patches count through all pictures, which hold whole blocks.
    let r = patch_index / p.grid_w;
    let c = patch_index % p.grid_w;
    let token = r / p.factor * (p.grid_w / p.factor) + c / p.factor;
    let block = select(
        r % p.factor * p.factor + c % p.factor,
        c % p.factor * p.factor + r % p.factor,
        p.column_first == 1u,
    );
    let first_column = (item % chunks) * COLUMNS;
    let end = min(first_column + COLUMNS, p.d);
    let source = p.x + patch_index * p.x_stride;
    let to = p.out + token * p.out_stride + block * p.d;
#if VEC
    for (var col = first_column + 4u * lane; col < end; col += 4u * WG) {
        out_set4(to + col, x_at4(source + col));
    }
#else
    for (var col = first_column + 2u * lane; col < end; col += 2u * WG) {
        if col + 1u < end {
            out_set2(to + col, vec2<f32>(x_at(source + col), x_at(source + col + 1u)));
        } else {
            out_set(to + col, x_at(source + col));
        }
    }
#endif
}
