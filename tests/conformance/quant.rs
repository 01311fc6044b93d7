//! Storage formats against what other libraries wrote.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocelli_kernels::cpu::CpuDevice;
use ocelli_kernels::cpu::pool::Pool;
use ocelli_kernels::ops::Matmul;
use ocelli_kernels::quant::grouped;
use ocelli_kernels::{DType, Device, Format, Storage, View, Weights};
use safetensors::SafeTensors;

fn golden(path: &str) -> Vec<u8> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/quant").join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    let data = file.tensor(name).expect(name).data().to_vec();
    data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn rounding_and_packing_equal_compressed_tensors() {
    let bytes = golden("round.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("round.safetensors");
    let shape = file.tensor("w").expect("w").shape().to_vec();
    let w = floats(&file, "w");
    for text in [
        "int4g32.f32",
        "int4g32z.f32",
        "int4row.f32",
        "int4rowz.f32",
        "int8g32.f32",
        "int8g32z.f32",
        "int8row.f32",
        "int8rowz.f32",
    ] {
        let format: Format = text.parse().expect(text);
        let planes = grouped::encode(format, shape[0], shape[1], &w, 1.0).expect(text);
        for (plane, name) in planes.iter().zip(["packed", "scales", "zeros"]) {
            let name = format!("{text}/{name}");
            assert_eq!(plane, file.tensor(&name).expect(&name).data(), "{name}");
        }
    }
}

#[test]
fn pack_quantized_files_decode_and_multiply() {
    for (case, text) in [
        ("ct_w4a16_g128_sym", "int4g128"),
        ("ct_w4a16_g32_asym", "int4g32z"),
        ("ct_w4a16_channel_asym", "int4rowz"),
        ("ct_w8a16_channel", "int8row"),
    ] {
        let (model, golden) =
            (golden(&format!("{case}/model.safetensors")), golden(&format!("{case}/golden.safetensors")));
        let model = SafeTensors::deserialize(&model).expect(case);
        let golden = SafeTensors::deserialize(&golden).expect(case);
        let format: Format = text.parse().expect(text);
        let packed = model.tensor("proj.weight_packed").expect("packed");
        let (n, k) = (packed.shape()[0], golden.tensor("x").expect("x").shape()[1]);
        let tensor = |name: &str| model.tensor(name).ok().map(|t| t.data().to_vec());
        let planes: Vec<Vec<u8>> = ["proj.weight_packed", "proj.weight_scale", "proj.weight_zero_point"]
            .iter()
            .filter_map(|name| tensor(name))
            .collect();

        let w = grouped::decode(format, n, k, &planes.iter().map(Vec::as_slice).collect::<Vec<_>>(), 1.0);
        let w = w.expect(case);
        let max = w.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let rows = golden.tensor("rows").expect("rows").data().to_vec();
        let w_deq = floats(&golden, "w_deq");
        for (i, row) in rows.chunks_exact(4).enumerate() {
            let row = i32::from_le_bytes([row[0], row[1], row[2], row[3]]) as usize;
            for col in 0..k {
                let (got, want) = (w[row * k + col], w_deq[i * k + col]);
                assert!((got - want).abs() <= 1e-6 * max, "{case} [{row}, {col}]: {got}, expected {want}");
            }
        }

        let device = CpuDevice::at(ocelli_kernels::cpu::isa::Isa::best(), Arc::new(Pool::new(2)));
        let mut stream = device.stream().expect("the CPU");
        let views = planes.iter().zip(format.planes(n, k)).map(|(bytes, plane)| {
            let storage = Storage::shared(Arc::new(bytes.clone()));
            View::dense(storage, &[plane.rows, plane.cols], plane.dtype).expect("a plane")
        });
        let bias = tensor("proj.bias")
            .map(|bytes| View::dense(Storage::shared(Arc::new(bytes)), &[n], DType::BF16).expect("a bias"));
        let weights = Weights::new(format, n, k, views, bias).expect("planes of the format");
        let x = golden.tensor("x").expect("x");
        let m = x.shape()[0];
        let mut alloc = |shape: [usize; 2]| {
            let storage = stream.alloc(shape[0] * shape[1] * 4).expect("memory");
            View::dense(storage, &shape, DType::F32).expect("a dense view")
        };
        let (xs, out) = (alloc([m, k]), alloc([m, n]));
        stream.write(&xs, x.data()).expect("x");
        stream.exec(&Matmul::new(xs, weights, out.clone())).expect("the product");
        let mut y = vec![0; m * n * 4];
        stream.read(&out, &mut y).expect("y");
        let want = floats(&golden, "y");
        let max = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        for (i, want) in want.iter().enumerate() {
            let got = f32::from_le_bytes([y[4 * i], y[4 * i + 1], y[4 * i + 2], y[4 * i + 3]]);
            assert!((got - want).abs() <= 1e-5 * max, "{case} y[{i}]: {got}, expected {want}");
        }
    }
}
