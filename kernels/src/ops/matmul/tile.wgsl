// How the invocations of a workgroup share a tile of sums, and how they give it away.
//
// ROWS, COLS: the tile; ACROSS: invocations along its columns. An invocation holds blocks of four rows by four columns:
// rows `4 (u DOWN + down) ..` and columns `4 (v ACROSS + across) ..`, so that neighbouring lanes read neighbouring
// vectors. Row i of block (u, v) is `acc[(4 u + i) WIDE + v]`.
const WG: u32 = 256u;
const ROWS: u32 = ${ROWS}u;
const COLS: u32 = ${COLS}u;
const ACROSS: u32 = ${ACROSS}u;
const DOWN: u32 = WG / ACROSS;
const TALL: u32 = ROWS / (4u * DOWN);
const WIDE: u32 = COLS / (4u * ACROSS);
const SUMS: u32 = 4u * TALL * WIDE;

fn emit_tile(first_row: u32, first_col: u32, down: u32, across: u32, acc: ptr<function, array<vec4<f32>, SUMS>>) {
    for (var i = 0u; i < 4u * TALL; i++) {
        let row = first_row + 4u * ((i >> 2u) * DOWN + down) + (i & 3u);
        for (var v = 0u; v < WIDE; v++) {
            let all = (*acc)[i * WIDE + v];
#if GATED
            emit2(row, first_col + 2u * (v * ACROSS + across), all.xy, all.zw);
#else
            let col = first_col + 4u * (v * ACROSS + across);
            emit2(row, col, all.xy, vec2<f32>());
            emit2(row, col + 2u, all.zw, vec2<f32>());
#endif
        }
    }
}
