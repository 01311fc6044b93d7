// The result, four elements at a time.
//
// TYPE: f32, bf16 or f16. Gives `store_row4(first, column, x)`: elements `4 column .. 4 column + 4` of the head that begins at
// `first`; those beyond it are left out.
#include "wgpu/include/output.wgsl" NAME=result BINDING=3 TYPE=${TYPE}

fn store_row4(first: u32, column: u32, x: vec4<f32>) {
    let i = first + 4u * column;
    if 4u * column + 4u <= HEAD_DIM {
        result_set2(i, x.xy);
        result_set2(i + 2u, x.zw);
        return;
    }
    for (var e = 0u; e < HEAD_DIM % 4u; e++) {
        result_set(i + e, x[e]);
    }
}
