#if TILE == f16
enable f16;
#endif
// out[i, j] = epilogue(sum_k x[i, k] w[j, k]) for many rows of x, weights in any format.
//
// x: [m, k] of type X   w: [n, k]   out: [m, n_out], see `operands.wgsl` and `epilogue.wgsl`
// ROWS, COLS: rows of x and of w in a workgroup's tile; DEPTH: columns of k at once; ACROSS: invocations along COLS;
// TILE: f32, or f16 where x and the decoded weights are exact in f16, or may be rounded; PARTIAL: the grid's third axis
// cuts k into slices.
//
// A workgroup of 256 gives a tile of ROWS x COLS, an invocation 4 or 8 rows by 4 or 8 columns of it in registers. Tiles
// of DEPTH columns of k lie in workgroup memory, at most 16 KiB of them:
//
//   ROWS x COLS x DEPTH   invocation   for
//    32 x 128 x 16          4 x 4      few rows: all the weights at little cost of idle rows
//    64 x  64 x 32          4 x 4      few tiles
//   128 x 128 x 16          8 x 8      many tiles: 64 multiply-adds for 16 values from workgroup memory
//
// Weights are decoded once for each workgroup, while they are staged: an invocation takes eight neighbours of k of one
// row, so that the lanes of a row read 32 to 128 bytes together, and puts them into the tile transposed, k outermost:
// each invocation then reads its rows, or its columns, as vectors. The next tile is on its way to registers while this
// one is multiplied. Within a row of the tile the vectors are permuted by k (`place`): else the lanes that stage
// different k of the same row would meet in one bank.
//
// The grid's first axis walks rows of x, the second those of w: workgroups that run together share their weights.
#include "ops/matmul/operands.wgsl"
#include "ops/matmul/epilogue.wgsl"
#include "ops/matmul/tile.wgsl"

const DEPTH: u32 = ${DEPTH}u;
const CHUNKS: u32 = DEPTH / 8u;
// Eights that an invocation stages.
const X_EIGHTS: u32 = (ROWS * CHUNKS + WG - 1u) / WG;
const W_EIGHTS: u32 = (COLS * CHUNKS + WG - 1u) / WG;

var<workgroup> x_tile: array<vec4<${TILE}>, DEPTH * ROWS / 4u>;
var<workgroup> w_tile: array<vec4<${TILE}>, DEPTH * COLS / 4u>;

// Where vector `v` of a row of the tile lies, of the k that chunk `chunk` holds.
fn place(v: u32, chunk: u32) -> u32 {
    return v ^ (chunk * (8u / CHUNKS));
}

fn put_x(row: u32, chunk: u32, eight: Eight) {
    let at = chunk * 8u * (ROWS / 4u) + place(row >> 2u, chunk);
    for (var i = 0u; i < 4u; i++) {
        x_tile[at + i * (ROWS / 4u)][row & 3u] = ${TILE}(eight.a[i]);
        x_tile[at + (i + 4u) * (ROWS / 4u)][row & 3u] = ${TILE}(eight.b[i]);
    }
}

fn put_w(row: u32, chunk: u32, eight: Eight) {
    let at = chunk * 8u * (COLS / 4u) + place(row >> 2u, chunk);
    for (var i = 0u; i < 4u; i++) {
        w_tile[at + i * (COLS / 4u)][row & 3u] = ${TILE}(eight.a[i]);
        w_tile[at + (i + 4u) * (COLS / 4u)][row & 3u] = ${TILE}(eight.b[i]);
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_row = group.x * ROWS;
    let first_col = group.y * (COLS / PER_COLUMN);
    let across = lane % ACROSS;
    let down = lane / ACROSS;
    let begin = group.z * p.slice;
    let end = min(p.k, begin + p.slice);
#if PARTIAL
    slice_index = group.z;
#endif

    var acc: array<vec4<f32>, SUMS>;
    var xs: array<Eight, X_EIGHTS>;
    var ws: array<Eight, W_EIGHTS>;
    // One turn more than there are tiles: each stages the tile that the turn before has read, and multiplies it.
    for (var k0 = begin; k0 < end + DEPTH; k0 += DEPTH) {
        if k0 > begin {
            workgroupBarrier();
            for (var i = 0u; i < X_EIGHTS; i++) {
                let unit = lane + i * WG;
                if unit < ROWS * CHUNKS {
                    put_x(unit / CHUNKS, unit % CHUNKS, xs[i]);
                }
            }
            for (var i = 0u; i < W_EIGHTS; i++) {
                let unit = lane + i * WG;
                if unit < COLS * CHUNKS {
                    put_w(unit / CHUNKS, unit % CHUNKS, ws[i]);
                }
            }
            workgroupBarrier();
        }
        for (var i = 0u; i < X_EIGHTS; i++) {
            let unit = lane + i * WG;
            let col = k0 + unit % CHUNKS * 8u;
            xs[i] = Eight();
            if unit < ROWS * CHUNKS && col < end {
                xs[i] = x_eight_at(p.x + min(first_row + unit / CHUNKS, p.m - 1u) * p.x_stride, col);
            }
        }
        for (var i = 0u; i < W_EIGHTS; i++) {
            let unit = lane + i * WG;
            let col = k0 + unit % CHUNKS * 8u;
            ws[i] = Eight();
            if unit < COLS * CHUNKS && col < end {
                let row = weight_row(first_col, unit / CHUNKS);
                let notes = w_notes(row, col);
                let eight = w_eight(w_span(row, col), row, col, notes);
                ws[i] = Eight(eight.a * notes.x, eight.b * notes.x);
            }
        }
        if k0 > begin {
            for (var chunk = 0u; chunk < CHUNKS; chunk++) {
                let x_at = chunk * 8u * (ROWS / 4u) + place(down, chunk);
                let w_at = chunk * 8u * (COLS / 4u) + place(across, chunk);
                for (var k = 0u; k < 8u; k++) {
                    var w: array<vec4<f32>, WIDE>;
                    for (var v = 0u; v < WIDE; v++) {
                        w[v] = vec4<f32>(w_tile[w_at + k * (COLS / 4u) + v * ACROSS]);
                    }
                    for (var u = 0u; u < TALL; u++) {
                        let x = vec4<f32>(x_tile[x_at + k * (ROWS / 4u) + u * DOWN]);
                        for (var v = 0u; v < WIDE; v++) {
                            let at = 4u * u * WIDE + v;
                            acc[at] = fma(vec4<f32>(x.x), w[v], acc[at]);
                            acc[at + WIDE] = fma(vec4<f32>(x.y), w[v], acc[at + WIDE]);
                            acc[at + 2u * WIDE] = fma(vec4<f32>(x.z), w[v], acc[at + 2u * WIDE]);
                            acc[at + 3u * WIDE] = fma(vec4<f32>(x.w), w[v], acc[at + 3u * WIDE]);
                        }
                    }
                }
            }
        }
    }
    emit_tile(first_row, first_col, down, across, &acc);
}
