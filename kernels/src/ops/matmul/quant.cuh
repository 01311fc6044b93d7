// How x lies in working memory for products with codes in groups: `quant_x.cu` writes it, `quant_mma.cu` reads it.
//
// A tile has 8 * NT rows of x, a step SPAN columns: 64 bytes of each row of weights. Tile by tile and step by step there are, for
// each of PARTS summands of x, for each 32 columns and each 8 rows, the 16 bytes that each lane multiplies: row lane / 4, eight
// columns in the order of `pair_order`. The columns are those that lie in the words that the same lane holds of a row
// of weights: of 64 bytes of a row, lane t = lane % 4 of four has READ at 4 READ r + READ t, r counting GROUPS.
#pragma once
#include "quant/codes.cuh"

constexpr i32 ROW_BYTES = 64;
constexpr i32 SPAN = ROW_BYTES * 8 / BITS;
constexpr i32 READ = 16 / GROUPS;
// Eights of columns that a lane has in READ bytes, and in a step.
constexpr i32 EIGHTS = READ / BITS;
constexpr i32 STEP_EIGHTS = SPAN / 32;
// Bytes of x of a tile and a step.
constexpr i32 X_BYTES = PARTS * STEP_EIGHTS * NT * 512;

// First column in its step of the eight that lane t has at place `q`.
DEVICE constexpr i32 eight_column(i32 q, i32 t) { return 8 * (q / EIGHTS * 4 * EIGHTS + t * EIGHTS + q % EIGHTS); }
