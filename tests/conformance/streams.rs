//! Streams, selection, spec text and shape errors.

use ocelli_kernels::cpu::isa::{Isa, Level};
use ocelli_kernels::cpu::{CpuDevice, caps};
use ocelli_kernels::ops::{
    GatherRows, GatherRowsSpec, MatmulSpec, Norm, NormKind, NormSpec, PatchEmbed, Sample, ScatterRows, params,
};
use ocelli_kernels::spec::text;
use ocelli_kernels::{
    Arch, Backend, BackendOp, Caps, Code, DType, Device, Exec, Format, Grouped, KernelError, NullStream, Op,
    OpVisitor, Queue, ReferenceStream, Reject, ShapeError, Stream, Variant, View, Weights, Zero, explain,
    for_each_op, select,
};

fn here() -> Caps {
    caps(Isa::best(), 2)
}

fn view(stream: &mut dyn Stream, shape: &[usize], dtype: DType) -> View {
    let bytes = shape.iter().product::<usize>() * dtype.size();
    View::dense(stream.alloc(bytes).unwrap(), shape, dtype).unwrap()
}

fn norm(stream: &mut dyn Stream, rows: usize, d: usize) -> Norm {
    Norm {
        x: view(stream, &[rows, d], DType::F32),
        add: None,
        sum: None,
        weight: Some(view(stream, &[d], DType::F32)),
        bias: None,
        kind: NormKind::Rms,
        weight_offset: 0.0,
        eps: 1e-5,
        out: view(stream, &[rows, d], DType::F32),
    }
}

#[test]
fn the_null_stream_records_spec_variant_and_cost() {
    let mut stream = NullStream::new(here());
    let op = norm(&mut stream, 3, 64);
    stream.scope(format_args!("text"));
    stream.scope(format_args!("layers.{}", 4));
    stream.exec(&op).unwrap();
    stream.end_scope();
    stream.exec(&Norm { kind: NormKind::Layer, ..op.clone() }).unwrap();
    stream.end_scope();

    let log = stream.log();
    assert_eq!(log.allocated(), (2 * 3 * 64 + 64) * 4);
    let bytes = 3 * 64 * 4;
    let total = log.total();
    assert_eq!((total.read, total.written), (2 * (bytes + 256), 2 * bytes));
    let records = log.take();
    assert_eq!(records.len(), 2);
    assert_eq!(records[0].scope, "text.layers.4");
    assert_eq!(records[1].scope, "text");
    assert_eq!((records[0].op, records[0].spec.as_str()), ("norm", "rows=3 d=64"));
    assert_eq!(records[1].spec, "rows=3 d=64 kind=layer");
    assert_eq!(records[0].variant.as_deref(), Ok("rows-f32"));
    assert_eq!(records[0].cost, op.cost());
    assert!(log.take().is_empty());
}

#[test]
fn dry_runs_need_no_device() {
    for arch in Arch::ALL {
        let mut stream = NullStream::new(Caps::of_arch(arch));
        let op = norm(&mut stream, 3, 64);
        stream.exec(&op).unwrap();
        assert_eq!(stream.log().take()[0].variant, Ok("rows"), "{arch}");
    }
}

#[test]
fn every_op_has_kernels_for_every_level() {
    struct Check;
    impl OpVisitor for Check {
        fn visit<O: BackendOp>(&mut self) {
            assert!(O::variants(Backend::Cpu).is_ok(), "{}: every op has kernels for the CPU", O::NAME);
            for backend in Backend::ALL {
                let names = match O::variants(backend) {
                    Ok(names) => names,
                    Err(why) => {
                        assert!(!why.is_empty(), "{}: no {backend} kernels, and no reason", O::NAME);
                        continue;
                    }
                };
                assert!(!names.is_empty(), "{}: no {backend} kernels", O::NAME);
                let mut unique = names.clone();
                unique.sort_unstable();
                unique.dedup();
                assert_eq!(names.len(), unique.len(), "{}: {names:?}", O::NAME);
            }
            let cpu = |isa| Caps { isa, int8_dot: false, bf16_dot: false, ..here() };
            let plain = Caps { backend: Backend::Wgpu, ..Caps::default() };
            for caps in Level::ALL.into_iter().map(cpu).chain([plain]) {
                let Ok(rows) = O::explain(&O::Spec::default(), &caps) else { continue };
                let picked = rows.iter().filter(|row| row.picked).count();
                assert_eq!(picked, 1, "{} at {caps:?}: {rows:?}", O::NAME);
                assert!(rows.iter().all(|row| row.rejected.is_some() != row.est_us.is_some()), "{rows:?}");
            }
        }
    }
    for_each_op(&mut Check);
}

#[test]
fn the_cheapest_variant_that_runs_is_picked() {
    type Row = Variant<usize, &'static str>;
    fn small(&m: &usize, _: &Caps) -> Option<Reject> {
        (m > 4).then(|| format!("m {m} is more than 4").into())
    }
    let rows: [Row; 4] = [
        Row { name: "any", reject: |_, _| None, est_us: |&m, _| m as f32, launch: "a" },
        Row { name: "never", reject: |_, _| Some("needs a unicorn".into()), est_us: |_, _| 0.0, launch: "b" },
        Row { name: "small", reject: small, est_us: |_, _| 0.5, launch: "c" },
        Row { name: "equal", reject: |_, _| None, est_us: |&m, _| m as f32, launch: "d" },
    ];
    let name = |m| select(&rows, &m, &here()).map(|row| row.name);
    assert_eq!((name(3), name(7)), (Some("small"), Some("any")));
    assert!(select(&rows[1..2], &3, &here()).is_none());

    let table = explain(&rows, &7, &here());
    let why: Vec<Option<&str>> = table.iter().map(|row| row.rejected.as_deref()).collect();
    assert_eq!(why, [None, Some("needs a unicorn"), Some("m 7 is more than 4"), None]);
    let picked: Vec<bool> = table.iter().map(|row| row.picked).collect();
    assert_eq!(picked, [true, false, false, false]);
    assert_eq!(table[3].est_us, Some(7.0));
    assert_eq!(table[2].est_us, None);
}

#[test]
fn specs_survive_their_text_form() {
    let spec = MatmulSpec {
        m: 1,
        n: 8192,
        k: 8192,
        w: Format::Grouped(Grouped { code: Code::Int4, group: 128, zero: Zero::None, scale: DType::BF16 }),
        ..MatmulSpec::default()
    };
    assert_eq!(text::write(&spec), "m=1 n=8192 k=8192 w=int4g128");
    assert_eq!(text::read::<MatmulSpec>(" w=int4g128  k=8192 n=8192 m=1 "), Ok(spec));
    assert_eq!(text::read::<MatmulSpec>(""), Ok(MatmulSpec::default()));
    let norm = NormSpec { rows: 8, d: 576, kind: NormKind::Layer, add: true, ..NormSpec::default() };
    assert_eq!(text::write(&norm), "rows=8 d=576 kind=layer add=true");
    assert_eq!(text::read::<NormSpec>(&text::write(&norm)), Ok(norm));
}

#[test]
fn spec_text_errors_name_the_word() {
    let error = |text: &str| text::read::<GatherRowsSpec>(text).unwrap_err();
    assert_eq!(error("tokens"), "`tokens` is not field=value; fields: tokens, rows, d, w, out");
    assert_eq!(error("d=4 k=7"), "no field `k`; fields: tokens, rows, d, w, out");
    assert_eq!(error("d=-1"), "`d=-1`: expected a whole number");
    assert_eq!(text::read::<NormSpec>("add=yes").unwrap_err(), "`add=yes`: expected true or false");
    assert!(error("w=int5g32").contains("int5g32") && error("w=int5g32").contains("int4g128"));
    assert!(error("out=f64").contains("f64"), "{}", error("out=f64"));
    assert!(error("d=99999999999").contains("99999999999"), "{}", error("d=99999999999"));
    let error = text::read::<NormSpec>("kind=batch").unwrap_err();
    assert!(error.contains("batch") && error.contains("layer"), "{error}");
}

/// What `stream` says of an op that does not fit.
fn refusal<O: Op>(stream: &mut impl Exec<O>, op: &O) -> String {
    match stream.exec(op).unwrap_err() {
        KernelError::Shape(error) => error.to_string(),
        other => panic!("not a shape error: {other}"),
    }
}

#[test]
fn shape_errors_name_operand_axis_and_both_sides() {
    let mut stream = NullStream::new(here());
    let s = &mut stream;
    let good = norm(s, 3, 64);
    let cases = [
        (
            Norm { out: view(s, &[3, 65], DType::F32), ..good.clone() },
            "norm: out axis 1: expected 64 of [3, 64], found 65 of [3, 65]",
        ),
        (Norm { x: view(s, &[192], DType::F32), ..good.clone() }, "norm: x: expected 2 axes, found [192]"),
        (
            Norm { x: view(s, &[3, 64], DType::I32), ..good.clone() },
            "norm: x: expected f32, bf16 or f16, found i32",
        ),
        (
            Norm { add: Some(view(s, &[4, 64], DType::F32)), ..good.clone() },
            "norm: add axis 0: expected 3 of [3, 64], found 4 of [4, 64]",
        ),
        (
            Norm { add: Some(view(s, &[3, 64], DType::F16)), ..good.clone() },
            "norm: add: expected f32, found f16",
        ),
        (
            Norm { sum: Some(good.out.clone()), ..good.clone() },
            "norm: sum: expected an `add` to go with it, found none",
        ),
        (
            Norm { weight: Some(view(s, &[63], DType::F32)), ..good.clone() },
            "norm: weight axis 0: expected 64 of [64], found 63 of [63]",
        ),
    ];
    for (op, expected) in &cases {
        assert_eq!(&refusal(s, op), expected);
    }
    let table = Weights::dense(view(s, &[10, 8], DType::F32), None).unwrap();
    let gather =
        GatherRows { table, ids: view(s, &[5], DType::F32), scale: 1.0, out: view(s, &[5, 8], DType::F32) };
    assert_eq!(refusal(s, &gather), "gather_rows: ids: expected i32, found f32");
    let gather = GatherRows { ids: view(s, &[4], DType::I32), ..gather };
    assert_eq!(refusal(s, &gather), "gather_rows: out axis 0: expected 4 of [4, 8], found 5 of [5, 8]");

    let sample = Sample {
        logits: view(s, &[2, 0], DType::F32),
        params: view(s, &[2, params::COUNT], DType::F32),
        history: None,
        mask: None,
        out: view(s, &[2], DType::I32),
    };
    assert_eq!(refusal(s, &sample), "sample: logits axis vocab: expected at least one token, found 0");
    let sample =
        Sample { logits: view(s, &[2, 65], DType::F32), mask: Some(view(s, &[1, 2], DType::I32)), ..sample };
    assert_eq!(refusal(s, &sample), "sample: mask axis 1: expected 3 of [1, 3], found 2 of [1, 2]");

    let embed = PatchEmbed {
        pixels: view(s, &[1, 32, 32, 4], DType::U8),
        w: Weights::dense(view(s, &[8, 768], DType::F32), None).unwrap(),
        pos: None,
        pos_ids: None,
        mean: [0.0; 3],
        std: [1.0; 3],
        patch: 16,
        out: view(s, &[4, 8], DType::F32),
    };
    assert_eq!(refusal(s, &embed), "patch_embed: pixels axis channel: expected 3, found 4");
    let embed = PatchEmbed { pixels: view(s, &[1, 32, 32, 3], DType::U8), patch: 14, ..embed };
    assert_eq!(refusal(s, &embed), "patch_embed: w axis k: expected 3 * 14 * 14, found 768");
    let embed = PatchEmbed { patch: 16, pos: Some(view(s, &[3, 8], DType::F32)), ..embed };
    assert_eq!(
        refusal(s, &embed),
        "patch_embed: pos axis 0: expected 4 patches of a picture or more, found 3"
    );
    assert!(stream.log().take().is_empty(), "refused ops are not recorded");
}

#[test]
fn outputs_that_share_memory_are_refused() {
    let device = CpuDevice::open(Some(1), std::sync::Arc::default()).unwrap();
    let mut stream = device.stream().unwrap();
    let op = norm(&mut *stream, 2, 64);
    let both = view(&mut *stream, &[5, 64], DType::F32);
    let rows = |start: usize| both.narrow(0, start, 2).unwrap();
    let shared = Norm { x: rows(0), out: rows(1), ..op.clone() };
    assert_eq!(shared.spec(), Err(ShapeError::new("out: shares memory with x")));
    assert!(Norm { x: rows(0), out: rows(2), ..op.clone() }.spec().is_ok());
    assert!(Norm { x: rows(0), out: rows(0), ..op.clone() }.spec().is_ok(), "in place");
    let weight = both.narrow(0, 4, 1).and_then(|row| row.reshape(&[64])).unwrap();
    let shared = Norm { weight: Some(weight), out: rows(3), ..op.clone() };
    assert_eq!(shared.spec(), Err(ShapeError::new("out: shares memory with weight")));
    let storage = stream.alloc(4096).unwrap();
    let layout = ocelli_kernels::Layout::strided(&[2, 64], &[32, 1]).unwrap();
    let twice = View::new(storage, 0, layout, DType::F32).unwrap();
    let error = Norm { out: twice, ..op }.spec().unwrap_err().to_string();
    assert!(error.contains("out: expected each element once"), "{error}");
}

#[test]
fn indices_out_of_range_are_errors_on_every_stream() {
    fn check(stream: &mut dyn Stream) {
        let ints = |stream: &mut dyn Stream, values: &[i32]| {
            let view = view(stream, &[values.len()], DType::I32);
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            stream.write(&view, &bytes).unwrap();
            view
        };
        let message = |result: Result<(), KernelError>| result.unwrap_err().to_string();
        for (id, shown) in [(10, "10"), (-1, "-1"), (i32::MAX, "2147483647")] {
            let gather = GatherRows {
                table: Weights::dense(view(stream, &[10, 8], DType::F32), None).unwrap(),
                ids: ints(stream, &[0, 9, id]),
                scale: 1.0,
                out: view(stream, &[3, 8], DType::F32),
            };
            let expected = format!("gather_rows: id {shown} is out of range: expected less than 10");
            assert_eq!(message(stream.exec(&gather)), expected);
        }
        let scatter = ScatterRows {
            src: view(stream, &[2, 8], DType::F32),
            rows: ints(stream, &[-3, 4]),
            out: view(stream, &[4, 8], DType::F32),
        };
        assert_eq!(
            message(stream.exec(&scatter)),
            "scatter_rows: row 4 is out of range: expected less than 4"
        );
        let sample = Sample {
            logits: view(stream, &[1, 6], DType::F32),
            params: view(stream, &[1, params::COUNT], DType::F32),
            history: Some(ints(stream, &[-1, 6]).reshape(&[1, 2]).unwrap()),
            mask: None,
            out: view(stream, &[1], DType::I32),
        };
        assert_eq!(
            message(stream.exec(&sample)),
            "sample: history token 6 is out of range: expected less than 6"
        );
        let mut numbers = [0f32; params::COUNT];
        numbers[params::MASK] = 3.0;
        let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
        stream.write(&sample.params, &bytes).unwrap();
        let sample = Sample { history: None, mask: Some(view(stream, &[2, 1], DType::I32)), ..sample };
        assert_eq!(message(stream.exec(&sample)), "sample: mask 2 is out of range: expected less than 2");
    }
    check(&mut ReferenceStream::default());
    for isa in Isa::available() {
        let device = CpuDevice::at(isa, std::sync::Arc::new(ocelli_kernels::cpu::pool::Pool::new(2)));
        check(&mut *device.stream().unwrap());
    }
}
