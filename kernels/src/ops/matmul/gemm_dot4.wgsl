// out[i, j] = epilogue(sum_k x[i, k] w[j, k]) for many rows of x rounded to bytes, weights of grouped integers.
//
// x: [m, blocks] as `round.wgsl` leaves it   w: [n, k]   out: [m, n_out], see `operands.wgsl` and `epilogue.wgsl`
//
// The arithmetic is that of `gemv_dot4.wgsl`. A workgroup of 256 gives a tile of 64 x 64, an invocation 4 x 4 of it;
// one block of 32 columns of k at a time lies in workgroup memory, 5 KiB: eight words of four bytes a row, transposed,
// the word outermost, and the scale with the sum or the zero of each row. Half the invocations stage x and half the
// weights, four words of a row each; vectors are permuted by the half, so that they do not meet in one bank. A block is
// 128 dot products of four for 16 sums, then five operations to scale each sum.
#define X bytes
#define BYTES 1
#define ROWS 64
#define COLS 64
#define ACROSS 16
#include "ops/matmul/operands.wgsl"
#include "ops/matmul/epilogue.wgsl"
#include "ops/matmul/tile.wgsl"

var<workgroup> x_tile: array<vec4<u32>, 128>;
var<workgroup> w_tile: array<vec4<u32>, 128>;
// (scale, sum) of rows of x, (scale, zero) of rows of w.
var<workgroup> x_row: array<vec2<f32>, 64>;
var<workgroup> w_row: array<vec2<f32>, 64>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_row = group.x * ROWS;
    let first_col = group.y * (COLS / PER_COLUMN);
    let across = lane % ACROSS;
    let down = lane / ACROSS;
    // What this invocation stages.
    let weights = lane >= 128u;
    let row = (lane & 127u) >> 1u;
    let half = lane & 1u;
    let x_from = min(first_row + row, p.m - 1u);
    let w_from = weight_row(first_col, row);

    var acc: array<vec4<f32>, SUMS>;
    for (var block = 0u; block * 32u < p.k; block++) {
        var words: vec4<u32>;
        var notes: vec2<f32>;
        if weights {
            let all = w_block(w_from, block * 32u);
            words = select(all.first, all.second, half == 1u);
            notes = w_notes(w_from, block * 32u) - vec2<f32>(0.0, BYTE_ZERO);
        } else {
            words = x[p.x + x_from * p.x_stride + 2u * block + half];
            notes = x_notes[p.notes + x_from * p.notes_stride + block];
        }
        // The tile of the turn before has been read.
        workgroupBarrier();
        let at = half * 64u + ((row >> 2u) ^ (half * 4u));
        if weights {
            for (var i = 0u; i < 4u; i++) {
                w_tile[at + i * 16u][row & 3u] = words[i];
            }
            w_row[row] = notes;
        } else {
            for (var i = 0u; i < 4u; i++) {
                x_tile[at + i * 16u][row & 3u] = words[i];
            }
            x_row[row] = notes;
        }
        workgroupBarrier();
        var sums: array<vec4<i32>, 4>;
        for (var word = 0u; word < 8u; word++) {
            let swap = word & 4u;
            let a = x_tile[word * 16u + (down ^ swap)];
            let b = w_tile[word * 16u + (across ^ swap)];
            for (var i = 0u; i < 4u; i++) {
                sums[i] += vec4<i32>(
                    dot4I8Packed(a[i], b.x),
                    dot4I8Packed(a[i], b.y),
                    dot4I8Packed(a[i], b.z),
                    dot4I8Packed(a[i], b.w),
                );
            }
        }
        let c = 4u * across;
        let scale = vec4<f32>(w_row[c].x, w_row[c + 1u].x, w_row[c + 2u].x, w_row[c + 3u].x);
        let zero = vec4<f32>(w_row[c].y, w_row[c + 1u].y, w_row[c + 2u].y, w_row[c + 3u].y);
        for (var i = 0u; i < 4u; i++) {
            let note = x_row[4u * down + i];
            acc[i] = fma(scale * note.x, vec4<f32>(sums[i]) - zero * note.y, acc[i]);
        }
    }
    emit_tile(first_row, first_col, down, across, &acc);
}
