// FP4 as bitsandbytes has it, see `quant/bnb_fp4/mod.rs`.
#pragma once
#include "quant/table.cuh"

struct bnb_fp4_values {
    static DEVICE f32 at(u32 code) {
        const f32 value = pick8(code, 0.0f, 1.0f / 192.0f, 2.0f / 3.0f, 1.0f, 1.0f / 3.0f, 0.5f, 1.0f / 6.0f, 0.25f);
        return code & 8 ? -value : value;
    }
};

struct code_bnb_fp4 : table_code<bnb_fp4_values> {};
