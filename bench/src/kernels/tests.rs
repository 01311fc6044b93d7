use ocelli_kernels::ops::Matmul;

use super::*;

fn on_cpu(bytes: usize, threads: usize) -> Cx {
    let options = DeviceOptions { threads: Some(threads), ..DeviceOptions::default() };
    Cx::on(Operands::sized(bytes), Backend::Cpu, &options).unwrap()
}

fn shape(op: &str, spec: &str) -> Shape {
    Shape { what: "test".into(), op: op.into(), spec: spec.into() }
}

/// Makes the ops of shapes and counts them.
struct Made<'a> {
    operands: Operands,
    shapes: Vec<&'a Shape>,
}

impl OpVisitor for Made<'_> {
    fn visit<O: BackendOp>(&mut self) {
        let mut count = 0;
        for shape in self.shapes.iter().filter(|shape| shape.op == O::NAME) {
            let spec = read_spec::<O>(&shape.spec).unwrap_or_else(|e| panic!("{shape:?}: {e}"));
            let mut op = O::of_spec(&spec, &mut self.operands).unwrap_or_else(|e| panic!("{shape:?}: {e}"));
            assert_eq!(op.spec().unwrap_or_else(|e| panic!("{shape:?}: {e}")), spec, "{shape:?}");
            assert!(op.cost().bytes() > 0 && cold_bytes(&op) > op.weights().map_or(0, |w| w.bytes()));
            assert!(!op.parts().unwrap().is_empty());
            count += 1;
        }
        assert!(count > 0, "{}: expected a shape in bench/shapes, found none", O::NAME);
        // An op or an error, but no panic.
        let _ = O::of_spec(&O::Spec::default(), &mut self.operands);
    }
}

#[test]
fn every_op_has_a_shape_and_every_shape_becomes_its_op() {
    // Those of one backend, and those that are asked for, are too large for the memory of a small machine.
    let lists = Shapes::embedded().unwrap();
    let small = lists.iter().filter(|list| list.backend.is_none() && list.set == Set::Usual);
    // But products whose columns are heads, which CUDA alone has kernels for.
    let heads = lists
        .iter()
        .flat_map(|list| &list.shapes)
        .filter(|shape| shape.op == "matmul" && shape.spec.contains("heads_q="));
    assert!(heads.clone().count() > 0);
    let shapes = small.flat_map(|list| &list.shapes).chain(heads).collect();
    for_each_op(&mut Made { operands: Operands::new(), shapes });
}

#[test]
fn small_ops_are_checked_and_timed() {
    let mut cx = on_cpu(1 << 20, 2);
    cx.roofs = Some(Roofs { fma_f32_gflops: 100.0, int8_gops: 200.0, read_gbps: 20.0, ..Roofs::default() });
    for (op, spec) in [
        ("matmul", "m=8 n=96 k=64 w=bf16 parts=3 bias=true residual=true"),
        ("matmul", "m=2 n=64 k=64 w=int4g32 gated=true act=silu parts=2"),
        ("attention", "seqs=2 q=4 kv=32 heads_q=4 heads_kv=2 head_dim=32 page=16 causal=true"),
        ("rope", "tokens=4 heads_q=4 heads_kv=2 head_dim=32 pairs=16 axes=1 page=16"),
    ] {
        let (rows, notes) = cx.shape(&shape(op, spec), true).unwrap();
        assert!(
            notes.is_empty() && rows.iter().filter(|row| row.picked).count() == 1,
            "{op} {spec}: {notes:?}"
        );
        for row in rows {
            assert!(row.median_us > 0.0 && row.fraction > 0.0 && row.bytes > 0, "{row:?}");
            let stored = crate::record::spec_text(&row.spec);
            assert!(spec.split(' ').all(|field| stored.split(' ').any(|word| word == field)), "{stored}");
            assert!(op != "matmul" || row.spec.contains_key("x"), "{stored}");
        }
    }
}

#[test]
fn a_wrong_result_is_noticed() {
    let mut cx = on_cpu(80 << 20, 1);
    for spec in ["m=4 n=64 k=64 w=bf16", "m=1 n=8192 k=4096 w=bf16"] {
        let spec = read_spec::<Matmul>(spec).unwrap();
        let op = Matmul::of_spec(&spec, &mut cx.operands).unwrap();
        let row = cx.target.rows::<Matmul>(&spec).iter().position(|row| row.picked).unwrap();
        let mut oracle = Oracle::new(cx.operands.id, true);
        op.parts().unwrap().iter().for_each(|part| part.reference(&mut oracle).unwrap());
        let expected = oracle.into_expected();
        let placed = cx.target.place(&op, &cx.operands).unwrap();
        assert!(cx.check(&placed, &expected, |target, op| target.launch(op, row)).is_ok());
        // One input value changes after the reference has seen it.
        let id = cx.operands.id;
        let spoiled = cx.check(&placed, &expected, |target, op| {
            let x = op.x.write_ptr::<f32>(id)?;
            // SAFETY: the view has at least one element, and no op runs now.
            unsafe { *x += 1.0 };
            target.launch(op, row)
        });
        assert!(matches!(spoiled, Err(Failure::Wrong(_))));
    }
}

#[test]
fn bad_shapes_are_refused() {
    let mut cx = on_cpu(1 << 20, 1);
    assert!(matches!(cx.prepare(&shape("matmul", "m=1 q=2"), false), Err(BenchError::Shapes(_))));
    assert!(matches!(cx.prepare(&shape("convolve", ""), false), Err(BenchError::Shapes(_))));
    let options = DeviceOptions { index: 99, ..DeviceOptions::default() };
    let cuda = Cx::on(Operands::sized(1 << 20), Backend::Cuda, &options);
    assert!(matches!(cuda, Err(BenchError::Device(_) | BenchError::Backend { .. })));
    assert!(matches!(shapes(Backend::Cpu, Some("no such shape"), Set::Usual), Err(BenchError::Nothing(_))));
}

#[test]
fn names_tell_the_roof() {
    assert_eq!(roof_of("gemv-int8-vnni"), Roof::Int8Gops);
    assert_eq!(roof_of("gemm-bf16"), Roof::Bf16Gflops);
    assert_eq!(roof_of("gemm-amx-f32"), Roof::Bf16Gflops);
    let of = |variant: &str| {
        ["m=8 w=bf16", "x=bf16 w=bf16", "x=f16 w=bf16", "m=8", "x=f16 w=int4g32", "x=bf16 w=f16"]
            .map(|spec| products(variant, &fields(spec)))
    };
    let exact = [3, 1, 2, 6, 5, 2];
    assert_eq!((of("gemm-amx-f32"), of("gemm-amx"), of("gemm-f32")), (exact, [1; 6], [1; 6]));
    assert_eq!(roof_of("gemm-f32"), Roof::FmaF32Gflops);
    assert_eq!(roof_of("gemv-dot4"), Roof::Int8Gops);
    assert_eq!(roof_of("gemm-f16"), Roof::F16Gflops);
    assert_eq!(roof_of("gemm-coop"), Roof::MatrixF16Gflops);
}
