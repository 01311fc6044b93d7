use super::*;

fn shape(op: &str, spec: &str) -> Shape {
    Shape { what: "test".into(), op: op.into(), spec: spec.into() }
}

#[test]
fn every_embedded_shape_becomes_its_op() {
    fn same<O: Build>(shape: &Shape, operands: &mut Operands) {
        let spec = build::read_spec::<O>(&shape.spec).unwrap_or_else(|e| panic!("{shape:?}: {e}"));
        let op = O::build(&spec, operands).unwrap_or_else(|e| panic!("{shape:?}: {e}"));
        assert_eq!(op.spec().unwrap_or_else(|e| panic!("{shape:?}: {e}")), spec, "{shape:?}");
        assert!(op.cost().bytes() > 0 && op.cold_bytes() > 0);
        assert!(!op.parts().unwrap().is_empty());
    }
    let mut operands = Operands::new();
    for shape in Shapes::embedded().unwrap().iter().flat_map(|list| &list.shapes) {
        match shape.op.as_str() {
            "matmul" => same::<Matmul>(shape, &mut operands),
            "attention" => same::<Attention>(shape, &mut operands),
            "patch_embed" => same::<PatchEmbed>(shape, &mut operands),
            "norm" => same::<Norm>(shape, &mut operands),
            "rope" => same::<Rope>(shape, &mut operands),
            "merge_patches" => same::<MergePatches>(shape, &mut operands),
            "gather_rows" => same::<GatherRows>(shape, &mut operands),
            "sample" => same::<Sample>(shape, &mut operands),
            other => panic!("no benchmark of {other}"),
        }
    }
}

#[test]
fn small_ops_are_checked_and_timed() {
    let mut cx = Cx::on(Operands::sized(1 << 20), Some(2)).unwrap();
    let roofs = Roofs {
        fma_f32_gflops: 100.0,
        fma_f32_gflops_1t: 50.0,
        int8_gops: 200.0,
        int8_gops_1t: 100.0,
        bf16_gflops: None,
        bf16_gflops_1t: None,
        read_gbps: 20.0,
        read_gbps_1t: 10.0,
    };
    for (op, spec) in [
        ("matmul", "m=8 n=96 k=64 w=bf16 parts=3 bias=true residual=true"),
        ("matmul", "m=2 n=64 k=64 w=int4g32 gated=true act=silu parts=2"),
        ("attention", "seqs=2 q=4 kv=32 heads_q=4 heads_kv=2 head_dim=32 page=16 causal=true"),
        ("rope", "tokens=4 heads_q=4 heads_kv=2 head_dim=32 pairs=16 axes=1 page=16"),
    ] {
        let (rows, notes) = cx.shape(&shape(op, spec), &roofs, true).unwrap();
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
    let mut cx = Cx::on(Operands::sized(80 << 20), Some(1)).unwrap();
    for spec in ["m=4 n=64 k=64 w=bf16", "m=1 n=8192 k=4096 w=bf16"] {
        let spec = build::read_spec::<Matmul>(spec).unwrap();
        let op = Matmul::build(&spec, &mut cx.operands).unwrap();
        let kernel = select(<Matmul as ocelli_kernels::CpuOp>::cpu_variants(), &spec, &cx.caps).unwrap();
        assert!(cx.check(&op, |op| (kernel.launch)(op, &cx.cpu)).is_ok());
        // One input value changes after the reference has seen it.
        let spoiled = cx.check(&op, |op| {
            let x = op.x.write_ptr::<f32>(cx.cpu.id)?;
            // SAFETY: the view has at least one element, and no op runs now.
            unsafe { *x += 1.0 };
            (kernel.launch)(op, &cx.cpu)
        });
        assert!(matches!(spoiled, Err(Failure::Wrong(_))));
    }
}

#[test]
fn bad_shapes_are_refused() {
    let mut cx = Cx::on(Operands::sized(1 << 20), Some(1)).unwrap();
    assert!(matches!(cx.prepare(&shape("matmul", "m=1 q=2"), false), Err(BenchError::Shapes(_))));
    assert!(matches!(cx.prepare(&shape("convolve", ""), false), Err(BenchError::Shapes(_))));
    let options = Options { backend: Backend::Cuda, ..Options::default() };
    assert!(matches!(run(&options, &mut |_| {}), Err(BenchError::Backend { .. })));
}

#[test]
fn names_tell_the_roof() {
    assert_eq!(roof_of("gemv-int8-vnni"), Roof::Int8Gops);
    assert_eq!(roof_of("gemm-bf16"), Roof::Bf16Gflops);
    assert_eq!(roof_of("gemm-f32"), Roof::FmaF32Gflops);
}
