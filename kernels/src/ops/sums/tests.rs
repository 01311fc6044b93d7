//! What gradients refuse, and that no bit of them depends on the number of threads.

use std::sync::Arc;

use super::Checked;
use crate::buffer::{Storage, View};
use crate::conformance::{CaseCx, Fill};
use crate::cpu::isa::Isa;
use crate::cpu::pool::Pool;
use crate::cpu::{CpuCx, CpuOp};
use crate::op::Op;
use crate::ops::{
    ActGrad, Activation, GatherRowsGrad, MergePatchesGrad, NormGrad, NormKind, PatchEmbedGrad, PointwiseGrad,
    PoolGrad, PoolKind, PoolOver, ScatterRowsGrad,
};
use crate::spec::DType::{BF16, F32, U8};
use crate::spec::ShapeError;

#[test]
fn gradients_lie_apart_from_all_but_the_result_that_they_replace() {
    let mut cx = CaseCx::new(1);
    let wide = cx.random(&[4, 12], F32, Fill::Normal(1.0));
    let (d_out, next, across) =
        (wide.narrow(1, 0, 4).unwrap(), wide.narrow(1, 4, 4).unwrap(), wide.narrow(1, 2, 4).unwrap());
    let (other, half) =
        (cx.random(&[4, 4], F32, Fill::Normal(1.0)), cx.random(&[4, 4], BF16, Fill::Normal(1.0)));
    let sum = |view: &View, place: bool, before: Option<&View>| {
        let mut checked = Checked::new(&d_out, [("x", &next)]);
        checked.sum("d_y", before, &[4, 4]).unwrap();
        let result = match place {
            true => checked.sum_or_place("dx", Some(view), &[4, 4]),
            false => checked.sum("dx", Some(view), &[4, 4]),
        };
        result.map_err(|error| error.to_string())
    };
    for place in [false, true] {
        assert_eq!(sum(&other, place, None), Ok(()));
        assert_eq!(sum(&across, place, None), Err("dx: shares memory with d_out".into()));
        assert_eq!(sum(&next, place, None), Err("dx: shares memory with x".into()));
        assert_eq!(sum(&other, place, Some(&other)), Err("dx: shares memory with d_y".into()));
        assert_eq!(sum(&half, place, None), Err("dx: expected f32, found bf16".into()));
        let short = other.narrow(0, 0, 3).unwrap();
        let expected = "dx axis 0: expected 4 of [4, 4], found 3 of [3, 4]";
        assert_eq!(sum(&short, place, None), Err(expected.into()));
    }
    assert_eq!(sum(&d_out, true, None), Ok(()));
    assert_eq!(sum(&d_out, false, None), Err("dx: shares memory with d_out".into()));
    // One alone takes the place of the result's.
    let mut checked = Checked::new(&d_out, []);
    checked.sum_or_place("dx", Some(&d_out), &[4, 4]).unwrap();
    assert!(checked.sum_or_place("d_by", Some(&d_out), &[4, 4]).is_err());
}

/// What `op` is refused for.
fn refusal<O: Op>(op: &O) -> String {
    op.spec().err().as_ref().map_or("nothing".into(), ShapeError::to_string)
}

#[test]
fn ops_refuse_what_does_not_fit() {
    let mut cx = CaseCx::new(2);
    let mut of = |shape: &[usize]| cx.random(shape, F32, Fill::Normal(1.0));
    let (x, d_out, dx, vector) = (of(&[4, 6]), of(&[4, 6]), of(&[4, 6]), of(&[6]));
    let (half, token) = (of(&[4, 3]), of(&[1, 24]));

    let norm = NormGrad {
        x: x.clone(),
        weight: None,
        kind: NormKind::Rms,
        weight_offset: 0.0,
        eps: 0.0,
        d_out: d_out.clone(),
        dx: Some(dx.clone()),
        d_weight: None,
        d_bias: None,
    };
    assert_eq!(refusal(&norm), "nothing");
    let alone = NormGrad { d_weight: Some(vector.clone()), ..norm.clone() };
    assert_eq!(refusal(&alone), "d_weight: expected a `weight` to go with it, found none");
    let short = NormGrad { d_out: half.clone(), ..norm };
    assert_eq!(refusal(&short), "d_out axis 1: expected 6 of [4, 6], found 3 of [4, 3]");

    let act =
        ActGrad { z: x.clone(), act: Activation::Silu, gated: true, d_out: half.clone(), dz: dx.clone() };
    assert_eq!(refusal(&act), "nothing");
    assert_eq!(refusal(&ActGrad { dz: x.clone(), ..act.clone() }), "nothing");
    let plain = ActGrad { gated: false, ..act.clone() };
    assert_eq!(refusal(&plain), "d_out axis 1: expected 6 of [4, 6], found 3 of [4, 3]");
    let odd = ActGrad { z: half.clone(), dz: half.clone(), ..act.clone() };
    assert_eq!(refusal(&odd), "z axis 1, gated: expected an even number, found 3");
    let over = ActGrad { gated: false, d_out: dx.clone(), ..act };
    assert_eq!(refusal(&over), "dz: shares memory with d_out");

    let pointwise = PointwiseGrad::new(x.clone(), d_out.clone(), dx.clone());
    assert_eq!(refusal(&pointwise), "nothing");
    let alone = PointwiseGrad { d_col: Some(vector), ..pointwise.clone() };
    assert_eq!(refusal(&alone), "d_col: expected a `col` to go with it, found none");
    let alone = PointwiseGrad { d_by: Some(x.clone()), ..pointwise.clone() };
    assert_eq!(refusal(&alone), "d_by: expected a `by` to go with it, found none");
    let twice = PointwiseGrad { d_add: Some(dx.clone()), ..pointwise.clone() };
    assert_eq!(refusal(&twice), "d_add: shares memory with dx");
    let bounds = PointwiseGrad { bounds: Some([1.0, 0.0]), ..pointwise };
    assert_eq!(refusal(&bounds), "bounds: expected the least one first, found 1 and 0");

    let merge = MergePatchesGrad {
        grid_h: 2,
        grid_w: 2,
        factor: 2,
        order: crate::ops::MergeOrder::RowFirst,
        d_out: token.clone(),
        dx: dx.clone(),
    };
    assert_eq!(refusal(&merge), "nothing");
    assert_eq!(
        refusal(&MergePatchesGrad { grid_w: 4, ..merge.clone() }),
        "dx axis 0: expected a multiple of 2 * 4, found 4"
    );
    assert_eq!(
        refusal(&MergePatchesGrad { d_out: x.clone(), ..merge }),
        "d_out axis 0: expected 1 of [1, 24], found 4 of [4, 6]"
    );

    let ints = cx.ints(&[4], &[0, 1, 3, 2]);
    let gather = GatherRowsGrad { ids: ints.clone(), scale: 1.0, d_out: d_out.clone(), d_table: dx.clone() };
    assert_eq!(refusal(&gather), "nothing");
    let narrow = GatherRowsGrad { d_table: half.clone(), ..gather };
    assert_eq!(refusal(&narrow), "d_table axis 1: expected 6 of [4, 6], found 3 of [4, 3]");
    let scatter = ScatterRowsGrad { rows: ints, d_out: d_out.clone(), d_src: Some(dx.clone()) };
    assert_eq!(refusal(&scatter), "nothing");
    let same = ScatterRowsGrad { d_src: Some(d_out.clone()), ..scatter };
    assert_eq!(refusal(&same), "d_src: shares memory with d_out");

    let over = PoolOver::Grid { grid_h: 2, grid_w: 2, block_h: 2, block_w: 2 };
    let pool = PoolGrad {
        x: None,
        over,
        kind: PoolKind::Mean,
        d_out: d_out.narrow(0, 0, 1).unwrap(),
        dx: dx.clone(),
    };
    assert_eq!(refusal(&pool), "nothing");
    let max = PoolGrad { kind: PoolKind::Max, ..pool.clone() };
    assert_eq!(refusal(&max), "x: expected the rows, for max, found none");
    assert_eq!(refusal(&PoolGrad { x: Some(x.clone()), ..max }), "nothing");
    assert_eq!(refusal(&PoolGrad { x: Some(x), ..pool }), "x: expected none, for Mean, found rows");

    let patches = PatchEmbedGrad {
        pixels: cx.values(&[1, 4, 4, 3], U8, &[7.0; 48]),
        pos_ids: None,
        mean: [127.5; 3],
        std: [127.5; 3],
        patch: 2,
        d_out,
        d_w: None,
        d_bias: None,
        d_pos: Some(dx),
    };
    assert_eq!(refusal(&patches), "nothing");
    assert_eq!(
        refusal(&PatchEmbedGrad { std: [0.0; 3], ..patches.clone() }),
        "std: expected no zero, found [0.0, 0.0, 0.0]"
    );
    assert_eq!(
        refusal(&PatchEmbedGrad { patch: 0, ..patches.clone() }),
        "patch: expected at least 1, found 0"
    );
    let d_w = Some(half);
    assert_eq!(
        refusal(&PatchEmbedGrad { d_w, ..patches.clone() }),
        "d_w axis 0: expected 6 of [6, 12], found 4 of [4, 3]"
    );
    let d_pos = patches.d_pos.as_ref().map(|d_pos| d_pos.narrow(0, 0, 3).unwrap());
    assert_eq!(
        refusal(&PatchEmbedGrad { d_pos, ..patches }),
        "d_pos axis 0: expected 4 patches of a picture or more, found 3"
    );
}

#[test]
fn ids_beyond_a_gradient_are_an_error() {
    let mut cx = CaseCx::new(3);
    let cpu = CpuCx { isa: Isa::best(), pool: Arc::new(Pool::new(1)), id: cx.id() };
    let mut of = |shape: &[usize]| cx.random(shape, F32, Fill::Normal(1.0));
    let (d_out, to) = (of(&[3, 5]), of(&[4, 5]));
    for (id, scatter_fails) in [(4, true), (-1, false)] {
        let ids = cx.ints(&[3], &[0, 3, id]);
        let gather =
            GatherRowsGrad { ids: ids.clone(), scale: 1.0, d_out: d_out.clone(), d_table: to.clone() };
        let before = to.storage().snapshot();
        let error = run(&cpu, &gather).unwrap_err();
        assert_eq!(error, format!("gather_rows_grad: id {id} is out of range: expected less than 4"));
        assert_eq!(to.storage().snapshot(), before);
        let scatter = ScatterRowsGrad { rows: ids, d_out: to.clone(), d_src: None };
        assert_eq!(run(&cpu, &scatter).is_err(), scatter_fails);
    }
}

fn run<O: CpuOp>(cpu: &CpuCx, op: &O) -> Result<(), String> {
    (O::cpu_variants()[0].launch)(op, cpu).map_err(|error| error.to_string())
}

/// Runs all cases of an op with one thread and with several.
fn threads_change_no_bit<O: CpuOp>() {
    let mut cx = CaseCx::new(4);
    let cases = O::cases(&mut cx);
    let pools = [1, 2, 5].map(|threads| Arc::new(Pool::new(threads)));
    for case in cases {
        let mut storages: Vec<Storage> = Vec::new();
        case.op.clone().visit(&mut |_, view| storages.push(view.storage().clone()));
        let before: Vec<Vec<u8>> = storages.iter().map(Storage::snapshot).collect();
        let mut after: Option<Vec<Vec<u8>>> = None;
        for pool in &pools {
            storages.iter().zip(&before).for_each(|(storage, bytes)| storage.restore(bytes));
            let cpu = CpuCx { isa: Isa::best(), pool: pool.clone(), id: cx.id() };
            run(&cpu, &case.op).unwrap();
            let now: Vec<Vec<u8>> = storages.iter().map(Storage::snapshot).collect();
            let first = after.get_or_insert_with(|| now.clone());
            assert!(*first == now, "{} `{}`: {} threads", O::NAME, case.name, pool.threads());
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    threads_change_no_bit::<NormGrad>();
    threads_change_no_bit::<ActGrad>();
    threads_change_no_bit::<GatherRowsGrad>();
    threads_change_no_bit::<ScatterRowsGrad>();
    threads_change_no_bit::<MergePatchesGrad>();
    threads_change_no_bit::<PatchEmbedGrad>();
    threads_change_no_bit::<PointwiseGrad>();
    threads_change_no_bit::<PoolGrad>();
}
