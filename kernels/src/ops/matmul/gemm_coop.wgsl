enable f16;
enable wgpu_cooperative_matrix;
// naga takes every variable for one that differs between invocations; those that control flow here are the same for
// all.
diagnostic(off, derivative_uniformity);
// out[i, j] = epilogue(sum_k x[i, k] w[j, k]) by cooperative matrices: products of f16, sums of f32, one instruction of
// a subgroup for SIDE x SIDE x SIDE multiply-adds. Matrices of side 8 are run on a
// software driver; expansions of both sides are validated by `tests/wgpu/sources.rs`. No GPU has run it.
//
// x: [m, k] f16   w: [n, k] in any format, exact in f16 or allowed to be rounded   out: [m, n_out], see `operands.wgsl`
// and `epilogue.wgsl`
// SIDE: 8 or 16; WG: invocations, four times the widest subgroup.
//
// A workgroup gives a tile of 8 SIDE x 8 SIDE: four subgroups, two by two, hold 4 x 4 matrices of sums each. A step of
// SIDE along k loads 4 + 4 matrices for 16 products: with less, workgroup memory could not keep up. Where subgroups
// turn out narrower than the widest, those beyond four repeat the work of the first and store nothing, as all must
// reach every instruction.
//
// DEPTH columns of k lie in workgroup memory as f16, decoded once for each workgroup while they are staged; rows are 16
// bytes longer than that, so that eight of them lie in different banks. The weights' tile is [n][k]: the matrix of k by
// n is its column-major reading. The next tile is on its way to registers while this one is multiplied.
//
// Matrices cannot be taken apart, so sums pass through workgroup memory, a matrix of each subgroup at a time, to
// invocations that know their rows and columns.
#include "ops/matmul/operands.wgsl"
#include "ops/matmul/epilogue.wgsl"

const WG: u32 = ${WG}u;
const SIDE: u32 = ${SIDE}u;
const TILE: u32 = 8u * SIDE;
const DEPTH: u32 = 32u;
const CHUNKS: u32 = DEPTH / 8u;
const PITCH: u32 = DEPTH + 8u;
// Eights of x, and of w, that an invocation stages.
const EIGHTS: u32 = (TILE * CHUNKS + WG - 1u) / WG;

alias MatrixA = coop_mat${SIDE}x${SIDE}<f16, A>;
alias MatrixB = coop_mat${SIDE}x${SIDE}<f16, B>;
alias MatrixC = coop_mat${SIDE}x${SIDE}<f32, C>;

var<workgroup> x_tile: array<f16, TILE * PITCH>;
var<workgroup> w_tile: array<f16, TILE * PITCH>;
// One matrix of each subgroup.
var<workgroup> results: array<f32, 4u * SIDE * SIDE>;

// An eight as f16; values beyond its range become its ends.
struct Halves {
    a: vec4<f16>,
    b: vec4<f16>,
}

fn halves(eight: Eight) -> Halves {
    let most = vec4<f32>(65504.0);
    return Halves(vec4<f16>(clamp(eight.a, -most, most)), vec4<f16>(clamp(eight.b, -most, most)));
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let first_row = group.x * TILE;
    let first_col = group.y * (TILE / PER_COLUMN);
    let begin = group.z * p.slice;
    let end = min(p.k, begin + p.slice);
#if PARTIAL
    slice_index = group.z;
#endif
    // The quarter of the tile that this subgroup sums.
    let x_from = (subgroup & 2u) * 2u * SIDE * PITCH;
    let w_from = (subgroup & 1u) * 4u * SIDE * PITCH;

    for (var i = lane; i < 4u * SIDE * SIDE; i += WG) {
        results[i] = 0.0;
    }
    workgroupBarrier();
    var acc: array<MatrixC, 16>;
    for (var i = 0u; i < 16u; i++) {
        acc[i] = coopLoadT<MatrixC>(&results[0], SIDE);
    }

    var a: array<MatrixA, 4>;
    var xs: array<Halves, EIGHTS>;
    var ws: array<Halves, EIGHTS>;
    // One turn more than there are tiles: each stages the tile that the turn before has read, and multiplies it.
    for (var k0 = begin; k0 < end + DEPTH; k0 += DEPTH) {
        workgroupBarrier();
        for (var i = 0u; i < EIGHTS; i++) {
            let unit = lane + i * WG;
            if k0 > begin && unit < TILE * CHUNKS {
                let at = unit / CHUNKS * PITCH + unit % CHUNKS * 8u;
                for (var j = 0u; j < 4u; j++) {
                    x_tile[at + j] = xs[i].a[j];
                    x_tile[at + 4u + j] = xs[i].b[j];
                    w_tile[at + j] = ws[i].a[j];
                    w_tile[at + 4u + j] = ws[i].b[j];
                }
            }
        }
        workgroupBarrier();
        for (var i = 0u; i < EIGHTS; i++) {
            let unit = lane + i * WG;
            let col = k0 + unit % CHUNKS * 8u;
            xs[i] = Halves();
            ws[i] = Halves();
            if unit < TILE * CHUNKS && col < end {
                xs[i] = halves(x_eight_at(p.x + min(first_row + unit / CHUNKS, p.m - 1u) * p.x_stride, col));
                let row = weight_row(first_col, unit / CHUNKS);
                let notes = w_notes(row, col);
                let eight = w_eight(w_span(row, col), row, col, notes);
                ws[i] = halves(Eight(eight.a * notes.x, eight.b * notes.x));
            }
        }
        if k0 > begin {
            for (var k = 0u; k < DEPTH; k += SIDE) {
                for (var i = 0u; i < 4u; i++) {
                    a[i] = coopLoadT<MatrixA>(&x_tile[x_from + i * SIDE * PITCH + k], PITCH);
                }
                for (var j = 0u; j < 4u; j++) {
                    let b = coopLoad<MatrixB>(&w_tile[w_from + j * SIDE * PITCH + k], PITCH);
                    for (var i = 0u; i < 4u; i++) {
                        acc[4u * i + j] = coopMultiplyAdd(a[i], b, acc[4u * i + j]);
                    }
                }
            }
        }
    }

    for (var m = 0u; m < 16u; m++) {
        if subgroup < 4u {
            coopStoreT(acc[m], &results[subgroup * SIDE * SIDE], SIDE);
        }
        workgroupBarrier();
        // Four columns of a row of one of the matrices.
        for (var unit = lane; unit < SIDE * SIDE; unit += WG) {
            let quarter = unit / (SIDE * SIDE / 4u);
            let at = 4u * unit;
            let all = vec4<f32>(results[at], results[at + 1u], results[at + 2u], results[at + 3u]);
            let row = first_row + ((quarter >> 1u) * 4u + (m >> 2u)) * SIDE + at / SIDE % SIDE;
            let c = ((quarter & 1u) * 4u + (m & 3u)) * SIDE + at % SIDE;
#if GATED
            emit2(row, first_col + c / 2u, all.xy, all.zw);
#else
            emit2(row, first_col + c, all.xy, vec2<f32>());
            emit2(row, first_col + c + 2u, all.zw, vec2<f32>());
#endif
        }
        workgroupBarrier();
    }
}
