// NF4, see `quant/nf4/mod.rs`.
#pragma once
#include "quant/table.cuh"

struct nf4_values {
    static DEVICE f32 at(u32 code) {
        const f32 low = pick8(code, -1.0f, -0.6961928f, -0.52507305f, -0.3949175f,
                              -0.28444138f, -0.18477343f, -0.091050036f, 0.0f);
        const f32 high = pick8(code, 0.0795803f, 0.1609302f, 0.2461123f, 0.33791524f,
                               0.44070983f, 0.562617f, 0.72295684f, 1.0f);
        return code & 8 ? high : low;
    }
};

struct code_nf4 : table_code<nf4_values> {};
