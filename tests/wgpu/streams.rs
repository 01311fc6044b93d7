//! Memory, order and errors of the wgpu stream.

use std::sync::Arc;
use std::time::Duration;

use half::bf16;
use ocelli_kernels::ops::{GatherRows, Matmul, ScatterRows, ScatterRowsSpec};
use ocelli_kernels::wgpu::{PARAM_BYTES, Profile, WgpuCx, WgpuStream};
use ocelli_kernels::{
    Access, Cost, DType, Device, Exec, Format, KernelError, Layout, Op, Operands, Oracle, Queue, ShapeError,
    Storage, Variant, View, Weights, WgpuLaunch, WgpuOp, WgpuRows,
};

use super::device;

fn upload(stream: &mut WgpuStream, shape: &[usize], values: &[f32]) -> View {
    let view = View::dense(stream.alloc(values.len() * 4).unwrap(), shape, DType::F32).unwrap();
    stream.write(&view, bytemuck::cast_slice(values)).unwrap();
    view
}

fn download(stream: &mut WgpuStream, view: &View) -> Vec<f32> {
    let mut values = vec![0f32; view.len()];
    stream.read(view, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

#[test]
fn views_of_any_offset_are_written_and_read() {
    let Some(device) = device(Profile::Full) else { return };
    let mut stream = device.queue().unwrap();
    for dtype in [DType::U8, DType::BF16, DType::I32] {
        let storage = stream.alloc(200).unwrap();
        let whole = View::dense(storage.clone(), &[200], DType::U8).unwrap();
        stream.write(&whole, &[7; 200]).unwrap();
        let size = dtype.size();
        let layout = Layout::strided(&[3, 5], &[9, 1]).unwrap();
        let view = View::new(storage, 3 * size, layout, dtype).unwrap();
        let bytes: Vec<u8> = (0..15 * size as u8).map(|i| i + 50).collect();
        stream.write(&view, &bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        stream.read(&view, &mut back).unwrap();
        assert_eq!(back, bytes);
        let mut all = vec![0; 200];
        stream.read(&whole, &mut all).unwrap();
        let changed = all.iter().filter(|&&byte| byte != 7).count();
        assert_eq!(changed, bytes.len(), "{dtype}: bytes beside the view stay");
        assert!(stream.write(&view, &bytes[1..]).is_err());
    }
}

/// Host writes and launches happen in the order given, though writes wait in one place and launches in another.
#[test]
fn writes_and_launches_keep_their_order() {
    for profile in [Profile::Full, Profile::Baseline] {
        let Some(device) = device(profile) else { return };
        let mut stream = device.queue().unwrap();
        let src = upload(&mut stream, &[1, 4], &[0.0; 4]);
        let out = upload(&mut stream, &[300, 4], &[0.0; 1200]);
        let rows = View::dense(stream.alloc(4).unwrap(), &[1], DType::I32).unwrap();
        for i in 0..300i32 {
            let values = [i as f32, 1.0, 2.0, 3.0];
            stream.write(&src, bytemuck::cast_slice(&values)).unwrap();
            stream.write(&rows, &i.to_le_bytes()).unwrap();
            stream.exec(&ScatterRows { src: src.clone(), rows: rows.clone(), out: out.clone() }).unwrap();
        }
        let early = stream.fetch(&out.narrow(0, 299, 1).unwrap()).unwrap();
        stream.write(&out, bytemuck::cast_slice(&[-1.0f32; 1200])).unwrap();
        let early = early.wait().unwrap();
        assert_eq!(early, bytemuck::cast_slice::<f32, u8>(&[299.0, 1.0, 2.0, 3.0]));
        assert!(download(&mut stream, &out).iter().all(|&value| value == -1.0));
        assert!(stream.host_time() > Duration::ZERO && stream.overlaps());
    }
}

/// Weights of SmolVLM's and Gemma 3's heads: the second is larger than a binding may be.
#[test]
fn large_tables_are_split_by_rows() {
    let Some(device) = device(Profile::Baseline) else { return };
    let mut stream = device.queue().unwrap();
    for (n, k, parts) in [(49_280, 576, 1), (262_144, 640, 3)] {
        // Row r holds r % 251 in its first place, ones in the second, and zeros.
        let mut bytes = vec![0u8; n * k * 2];
        for (r, row) in bytes.chunks_exact_mut(k * 2).enumerate() {
            row[..2].copy_from_slice(&bf16::from_f32((r % 251) as f32).to_le_bytes());
            row[2..4].copy_from_slice(&bf16::ONE.to_le_bytes());
        }
        let host = View::dense(Storage::shared(Arc::new(bytes)), &[n, k], DType::BF16).unwrap();
        let host = Weights::dense(host, None).unwrap();
        let w = stream.place(&host).unwrap();
        assert_eq!(w.parts().len(), parts, "{n} x {k}");
        let again = stream.place(&host).unwrap();
        assert!(again.parts()[0].planes[0].storage().same(w.parts()[0].planes[0].storage()), "placed once");

        let mut x = vec![0f32; 2 * k];
        (x[0], x[1], x[k]) = (2.0, 0.5, 1.0);
        let x = upload(&mut stream, &[2, k], &x);
        let out = View::dense(stream.alloc(2 * n * 4).unwrap(), &[2, n], DType::F32).unwrap();
        stream.exec(&Matmul::new(x, w.clone(), out.clone())).unwrap();
        let got = download(&mut stream, &out);
        for r in 0..n {
            let value = (r % 251) as f32;
            assert_eq!((got[r], got[n + r]), (2.0 * value + 0.5, value), "row {r} of {n}");
        }
        let wanted: Vec<i32> = [0, 1, n / 2, 2 * n / 3 + 5, n - 1].map(|r| r as i32).to_vec();
        let ids = View::dense(stream.alloc(20).unwrap(), &[5], DType::I32).unwrap();
        stream.write(&ids, bytemuck::cast_slice(&wanted)).unwrap();
        let rows = View::dense(stream.alloc(5 * k * 4).unwrap(), &[5, k], DType::F32).unwrap();
        stream.exec(&GatherRows { table: w, ids, scale: 1.0, out: rows.clone() }).unwrap();
        let got = download(&mut stream, &rows);
        for (row, &id) in got.chunks_exact(k).zip(&wanted) {
            assert_eq!((row[0], row[1], row[2]), ((id % 251) as f32, 1.0, 0.0), "row {id} of {n}");
        }
    }
}

/// Stacked tensors become one matrix on the device, packed zero points and missing biases included.
#[test]
fn stacked_tensors_become_one() {
    use ocelli_kernels::conformance::CaseCx;
    let Some(device) = device(Profile::Full) else { return };
    let mut stream = device.queue().unwrap();
    let mut cx = CaseCx::new(3);
    for text in ["bf16", "int4g32z", "int8g64z.f16", "int4g128"] {
        let format: Format = text.parse().unwrap();
        for (rows, parts) in [([24, 8, 16], 1), ([24, 3, 16], 2)] {
            // Zero points of 3 rows end inside a word.
            let parts = if text.contains('z') { parts } else { 1 };
            let all: Vec<Weights> =
                rows.iter().enumerate().map(|(i, &n)| cx.weights(format, n, 160, i != 1)).collect();
            let host = Weights::stack(all).unwrap();
            let oracle = Oracle::new(cx.id(), false);
            let (expected, biases) = (oracle.weights(&host).unwrap(), oracle.biases(&host).unwrap());
            let mut placed = host;
            placed.for_each_view(&mut |view| *view = share(&cx, view));
            let w = stream.place(&placed).unwrap();
            assert_eq!(w.parts().len(), parts, "{text} {rows:?}");
            let n = w.n();
            let ids: Vec<i32> = (0..n as i32).collect();
            let id_view = View::dense(stream.alloc(4 * n).unwrap(), &[n], DType::I32).unwrap();
            stream.write(&id_view, bytemuck::cast_slice(&ids)).unwrap();
            let out = View::dense(stream.alloc(n * 160 * 4).unwrap(), &[n, 160], DType::F32).unwrap();
            stream
                .exec(&GatherRows { table: w.clone(), ids: id_view, scale: 1.0, out: out.clone() })
                .unwrap();
            for (got, want) in download(&mut stream, &out).iter().zip(&expected) {
                assert!((f64::from(*got) - want).abs() <= 1e-6 * want.abs(), "{text}: {got} for {want}");
            }
            let x = upload(&mut stream, &[1, 160], &[0.0; 160]);
            let sums = View::dense(stream.alloc(n * 4).unwrap(), &[1, n], DType::F32).unwrap();
            stream.exec(&Matmul::new(x, w, sums.clone())).unwrap();
            for (got, want) in download(&mut stream, &sums).iter().zip(&biases) {
                assert!((f64::from(*got) - want).abs() <= 1e-6, "{text}: bias {got} for {want}");
            }
        }
    }
}

/// The bytes of a view of a test's memory, for everyone to read.
fn share(cx: &ocelli_kernels::conformance::CaseCx, view: &View) -> View {
    let mut bytes = Vec::new();
    for index in 0..view.len() {
        let value = cx.get(view, index);
        match view.dtype() {
            DType::F32 => bytes.extend((value as f32).to_le_bytes()),
            DType::BF16 => bytes.extend(bf16::from_f64(value).to_le_bytes()),
            DType::F16 => bytes.extend(half::f16::from_f64(value).to_le_bytes()),
            _ => bytes.extend((value as i32).to_le_bytes()),
        }
    }
    View::dense(Storage::shared(Arc::new(bytes)), view.shape(), view.dtype()).unwrap()
}

/// An op whose kernels are wrong, each in its own way.
#[derive(Clone)]
struct Broken(View);

impl Op for Broken {
    const NAME: &'static str = "broken";
    type Spec = ScatterRowsSpec;

    fn spec(&self) -> Result<ScatterRowsSpec, ShapeError> {
        Ok(ScatterRowsSpec::default())
    }

    fn cost(&self) -> Cost {
        Cost::default()
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::Out, &mut self.0);
    }

    fn of_spec(_: &ScatterRowsSpec, _: &mut dyn Operands) -> Result<Self, KernelError> {
        Err(KernelError::ReadOnly)
    }

    fn reference(&self, _: &mut Oracle) -> Result<(), KernelError> {
        Ok(())
    }

    fn cases(_: &mut ocelli_kernels::conformance::CaseCx) -> Vec<ocelli_kernels::conformance::Case<Self>> {
        Vec::new()
    }
}

fn no_value(_: &Broken, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    cx.kernel("ops/scatter_rows/rows.wgsl").dispatch([1, 1, 1])
}

fn no_source(_: &Broken, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    cx.kernel("ops/broken/none.wgsl").dispatch([1, 1, 1])
}

fn no_such_type(op: &Broken, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let mut kernel = cx.kernel("ops/scatter_rows/rows.wgsl");
    kernel.define("X", "f32").define("OUT", "f99");
    for index in 0..3 {
        kernel.bind(index, &op.0)?;
    }
    kernel.dispatch([1, 1, 1])
}

fn too_large(_: &Broken, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    cx.kernel("ops/scatter_rows/rows.wgsl").dispatch([1, 70_000, 1])
}

/// A binding that the kernel writes but the launch declares as only read.
fn wrong_access(op: &Broken, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let mut kernel = cx.kernel("ops/scatter_rows/rows.wgsl");
    kernel.define("X", "f32").define("OUT", "f32");
    for index in 0..3 {
        kernel.read(index, &op.0)?;
    }
    kernel.dispatch([1, 1, 1])
}

/// Parameters larger than a launch may have.
fn too_many_params(op: &Broken, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let mut kernel = cx.kernel("ops/scatter_rows/rows.wgsl");
    kernel.define("X", "f32").define("OUT", "f32").params(&[0u32; PARAM_BYTES / 4 + 1]);
    for index in 0..3 {
        kernel.bind(index, &op.0)?;
    }
    kernel.dispatch([1, 1, 1])
}

impl WgpuOp for Broken {
    fn wgpu_variants() -> WgpuRows<Self> {
        const fn row(
            name: &'static str,
            launch: WgpuLaunch<Broken>,
        ) -> Variant<ScatterRowsSpec, WgpuLaunch<Broken>> {
            Variant { name, reject: |_, _| None, est_us: |_, _| 1.0, launch }
        }
        const {
            Ok(&[
                row("no-value", no_value),
                row("no-source", no_source),
                row("no-such-type", no_such_type),
                row("too-large", too_large),
                row("wrong-access", wrong_access),
                row("too-many-params", too_many_params),
            ])
        }
    }
}

#[test]
fn kernels_that_do_not_compile_are_errors_with_their_names() {
    let Some(device) = device(Profile::Full) else { return };
    let mut stream = device.queue().unwrap();
    let op = Broken(upload(&mut stream, &[4], &[1.0; 4]));
    let said = [
        "`X` has no value",
        "no source file",
        "f99",
        "is too large",
        "rows.wgsl",
        "expected at most 128 bytes, found 132",
    ];
    for (row, said) in Broken::wgpu_variants().unwrap().iter().zip(said) {
        let error = stream.launch(&op, row).unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains(row.name) && error.contains(said), "{error}");
    }
    // The stream goes on.
    assert_eq!(download(&mut stream, &op.0), [1.0; 4]);
}

#[test]
fn memory_of_others_is_refused() {
    let (Some(device), Some(other)) = (device(Profile::Full), device(Profile::Full)) else { return };
    let (mut stream, mut foreign) = (device.queue().unwrap(), other.queue().unwrap());
    let rows = View::dense(stream.alloc(4).unwrap(), &[1], DType::I32).unwrap();
    let out = upload(&mut stream, &[2, 4], &[0.0; 8]);
    let host = View::dense(Storage::shared(Arc::new(vec![0u8; 16])), &[1, 4], DType::F32).unwrap();
    let theirs = upload(&mut foreign, &[1, 4], &[0.0; 4]);
    for (src, said) in [(host, "a view of host was given to a wgpu stream"), (theirs, "another stream")] {
        let op = ScatterRows { src, rows: rows.clone(), out: out.clone() };
        let error = stream.exec(&op).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn what_does_not_fit_is_out_of_memory() {
    let Some(device) = device(Profile::Full) else { return };
    let mut stream = device.queue().unwrap();
    for bytes in [1usize << 42, usize::MAX / 2] {
        let error = stream.alloc(bytes).unwrap_err();
        assert!(matches!(error, KernelError::OutOfMemory { .. }), "{error}");
        assert!(error.to_string().contains(&device.caps().device), "{error}");
    }
    assert!(stream.alloc(1 << 20).is_ok());
}

/// A long product under a short limit; then a device that is gone.
#[test]
fn slow_and_lost_devices_are_errors() {
    let Some(device) = device(Profile::Full) else { return };
    let mut stream = device.queue().unwrap();
    let n = 512;
    let view = upload(&mut stream, &[n, n], &vec![0.5; n * n]);
    let out = upload(&mut stream, &[n, n], &vec![0.0; n * n]);
    let w = Weights::dense(view.clone(), None).unwrap();
    let op = Matmul::new(upload(&mut stream, &[n, n], &vec![0.5; n * n]), w, out);
    stream.exec(&op).unwrap();
    stream.sync().unwrap();
    device.set_timeout(Duration::from_millis(1));
    for _ in 0..8 {
        stream.exec(&op).unwrap();
    }
    let error = stream.sync().unwrap_err();
    assert!(matches!(error, KernelError::Timeout { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains("matmul") && said.contains("no answer in 0.001 s"), "{said}");

    device.set_timeout(Duration::from_secs(60));
    device.lose();
    let lost = stream.exec(&op).and_then(|()| stream.sync()).unwrap_err();
    assert!(matches!(lost, KernelError::Lost { .. }), "{lost}");
}
