// The order of k in `quant_wgmma.cu`, as `quant_wgmma_x.cu` lays x out.
//
// A step has STEP columns in two halves of 64. Lane t of four decodes eight neighbours at a time; they are pairs 2 t and 2 t + 8
// of two products of 16 along k, so that 32 columns of the operand are eights of four lanes. Where groups are of 32 columns
// those 32 are neighbours; else a lane has two eights that follow each other, which it reads at once.
#pragma once
#include "cuda/include/ptx.cuh"

constexpr i32 STEP = 128;
// Eights of columns that a lane reads at once.
constexpr i32 EIGHTS = GROUPS == 4 ? 1 : 2;

// First column in its half of the eight that lane t has in 32 columns `q` of the operand.
DEVICE constexpr i32 eight_column(i32 q, i32 t) { return EIGHTS == 1 ? 32 * q + 8 * t : 16 * t + 8 * q; }
