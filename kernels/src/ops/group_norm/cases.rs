//! Conformance cases.

use super::GroupNorm;
use crate::conformance::{Case, CaseCx, Fill};
use crate::ops::Activation;
use crate::spec::DType;

#[derive(Clone, Copy)]
struct Shape {
    pictures: usize,
    rows: usize,
    channels: usize,
    groups: usize,
    act: Activation,
    x: DType,
    out: DType,
    tables: DType,
    fill: Fill,
    gap: usize,
}

fn norm(cx: &mut CaseCx, s: Shape) -> GroupNorm {
    let shape = [s.pictures * s.rows, s.channels];
    GroupNorm {
        x: cx.random_gapped(&shape, s.x, s.fill, s.gap),
        weight: cx.random(&[s.channels], s.tables, Fill::Normal(1.0)),
        bias: cx.random(&[s.channels], s.tables, Fill::Normal(1.0)),
        rows: s.rows,
        groups: s.groups,
        eps: 1e-6,
        act: s.act,
        out: cx.output_gapped(&shape, s.out, s.gap),
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<GroupNorm>> {
    use Activation::{GeluErf, GeluTanh, None, QuickGelu, Relu, Silu};
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    let base = Shape {
        pictures: 1,
        rows: 36,
        channels: 64,
        groups: 32,
        act: None,
        x: F32,
        out: F32,
        tables: F32,
        fill: Fill::Normal(2.0),
        gap: 0,
    };
    for (channels, groups) in
        [(1, 1), (32, 32), (64, 32), (128, 32), (96, 32), (6, 2), (63, 3), (131, 1), (40, 8), (512, 32)]
    {
        for (pictures, rows) in [(0, 4), (1, 1), (2, 5), (1, 36), (3, 17)] {
            let shape = Shape { pictures, rows, channels, groups, ..base };
            let name = format!("{channels} channels in {groups} groups, {pictures} of {rows} rows");
            all.push(Case { name, op: norm(cx, shape) });
        }
    }
    for act in [Silu, GeluTanh, GeluErf, QuickGelu, Relu] {
        let shape = Shape { act, pictures: 2, ..base };
        all.push(Case { name: format!("{act:?}"), op: norm(cx, shape) });
    }
    for (x, out, tables) in
        [(BF16, BF16, BF16), (F16, F16, F16), (F32, BF16, BF16), (BF16, F32, F32), (F16, F32, BF16)]
    {
        for (channels, groups, gap) in [(63, 3, 5), (64, 32, 0), (33, 33, 1), (160, 32, 3)] {
            let shape = Shape { channels, groups, gap, x, out, tables, pictures: 2, act: Silu, ..base };
            let name = format!("{x} to {out}, {channels} in {groups}, gap {gap}");
            all.push(Case { name, op: norm(cx, shape) });
        }
    }
    for (name, fill) in [("spiky", Fill::Spiky), ("far from zero", Fill::Normal(100.0))] {
        all.push(Case { name: name.into(), op: norm(cx, Shape { fill, rows: 211, ..base }) });
    }
    // Results in place of the input.
    for (dtype, channels, groups) in [(F32, 96, 32), (BF16, 96, 32), (F16, 35, 5)] {
        let mut op = norm(cx, Shape { x: dtype, channels, groups, pictures: 2, act: Silu, ..base });
        op.out = op.x.clone();
        all.push(Case { name: format!("in place, {dtype}"), op });
    }
    // A row of a real decoder of pictures.
    let shape = Shape { rows: 1024, channels: 256, act: Silu, x: BF16, out: BF16, ..base };
    all.push(Case { name: "256 channels on 32 x 32".into(), op: norm(cx, shape) });
    all
}
