//! Views and storages: what keeps raw accesses within their memory and away from other threads.

use std::sync::Arc;

use half::bf16;
use ocelli_kernels::cpu::CpuDevice;
use ocelli_kernels::ops::{Norm, NormKind};
use ocelli_kernels::{
    DType, Device, Format, HOST_ALIGN, KernelError, Layout, Op, Storage, Stream, StreamId, View, Weights,
};

fn stream() -> Box<dyn Stream> {
    CpuDevice::open(Some(1), std::sync::Arc::default()).unwrap().stream().unwrap()
}

fn vector(storage: Storage, len: usize) -> View {
    View::dense(storage, &[len], DType::F32).unwrap()
}

#[test]
fn views_stay_within_their_storage() {
    let storage = Storage::host(64, StreamId::fresh()).unwrap();
    let view = |offset, len| View::new(storage.clone(), offset, Layout::dense(&[len]).unwrap(), DType::F32);
    assert!(view(0, 16).is_ok() && view(60, 1).is_ok() && view(64, 0).is_ok());
    for (offset, len) in [(0, 17), (4, 16), (64, 1), (usize::MAX - 3, 1), (0, usize::MAX / 64)] {
        let error = view(offset, len).unwrap_err().to_string();
        assert!(error.contains("does not fit in 64 bytes"), "{error}");
    }
    assert!(view(0, 16).unwrap().with_storage(Storage::Meta(63)).is_err());
    let strided = Layout::strided(&[3, 2], &[7, 1]).unwrap();
    assert!(View::new(storage.clone(), 0, strided, DType::F32).is_ok(), "16 elements reach the very end");
    assert!(View::new(storage, 4, strided, DType::F32).is_err());
}

#[test]
fn views_are_aligned_to_their_type() {
    let storage = Storage::host(64, StreamId::fresh()).unwrap();
    for dtype in DType::ALL {
        for offset in 0..8 {
            let view = View::new(storage.clone(), offset, Layout::dense(&[2]).unwrap(), dtype);
            assert_eq!(view.is_ok(), offset % dtype.size() == 0, "{dtype} at {offset}");
        }
    }
    // Bytes of someone else: a window of a file that begins anywhere.
    let bytes = Arc::new(vec![0u8; 64]);
    let odd = 1 + bytes.as_ptr() as usize % 2;
    let shared = Storage::shared(bytes);
    let error = View::new(shared, odd, Layout::dense(&[2]).unwrap(), DType::BF16).unwrap_err().to_string();
    assert!(error.contains(&format!("byte {odd} is not aligned to bf16")), "{error}");
    let own = StreamId::fresh();
    let view = vector(Storage::host(4, own).unwrap(), 1);
    assert_eq!(view.read_ptr::<f32>(own).unwrap() as usize % HOST_ALIGN, 0);
}

#[test]
fn memory_of_another_stream_is_refused() {
    let (mut ours, mut theirs) = (stream(), stream());
    let view = vector(ours.alloc(16).unwrap(), 4);
    ours.write(&view, &[1; 16]).unwrap();
    let mut bytes = [0; 16];
    assert!(matches!(theirs.read(&view, &mut bytes), Err(KernelError::WrongStream)));
    assert!(matches!(theirs.write(&view, &[2; 16]), Err(KernelError::WrongStream)));
    ours.read(&view, &mut bytes).unwrap();
    assert_eq!(bytes, [1; 16]);
    let (x, out) =
        (view.reshape(&[1, 4]).unwrap(), vector(theirs.alloc(16).unwrap(), 4).reshape(&[1, 4]).unwrap());
    let mut op = Norm {
        x,
        add: None,
        sum: None,
        weight: None,
        bias: None,
        kind: NormKind::Rms,
        weight_offset: 0.0,
        eps: 0.0,
        out,
    };
    assert!(matches!(theirs.exec(&op), Err(KernelError::WrongStream)), "reads theirs");
    assert!(matches!(ours.exec(&op), Err(KernelError::WrongStream)), "writes theirs");
    std::mem::swap(&mut op.x, &mut op.out);
    assert!(matches!(ours.exec(&op), Err(KernelError::WrongStream)));
    op.out = View::dense(Storage::Meta(16), &[1, 4], DType::F32).unwrap();
    assert!(matches!(theirs.exec(&op), Err(KernelError::WrongStorage { expected: "host", found: "meta" })));
}

#[test]
fn shared_memory_is_never_written() {
    let mut stream = stream();
    let keeper: Arc<Vec<u8>> = Arc::new(1f32.to_le_bytes().repeat(4));
    let storage = Storage::shared(keeper.clone());
    let aligned = (keeper.as_ptr() as usize).is_multiple_of(4);
    assert!(aligned, "allocations of four bytes and more are aligned");
    let view = vector(storage, 4);
    assert!(matches!(stream.write(&view, &[0; 16]), Err(KernelError::ReadOnly)));
    let row = view.reshape(&[1, 4]).unwrap();
    let op = Norm {
        x: row.clone(),
        add: None,
        sum: None,
        weight: Some(view.clone()),
        bias: None,
        kind: NormKind::Rms,
        weight_offset: 0.0,
        eps: 0.0,
        out: row.clone(),
    };
    assert!(op.spec().is_err(), "out would overwrite the weight");
    assert!(matches!(stream.exec(&Norm { weight: None, ..op.clone() }), Err(KernelError::ReadOnly)));
    let out = vector(stream.alloc(16).unwrap(), 4).reshape(&[1, 4]).unwrap();
    stream.exec(&Norm { out: out.clone(), ..op }).unwrap();
    let mut bytes = [0; 16];
    stream.read(&out, &mut bytes).unwrap();
    assert_eq!(bytes.to_vec(), 1f32.to_le_bytes().repeat(4));
    assert_eq!(*keeper, 1f32.to_le_bytes().repeat(4));
}

#[test]
fn views_are_read_as_what_they_are() {
    let own = StreamId::fresh();
    let view = vector(Storage::host(16, own).unwrap(), 4);
    assert!(view.read_ptr::<f32>(own).is_ok() && view.write_ptr::<f32>(own).is_ok());
    for result in [view.read_ptr::<bf16>(own).map(drop), view.write_ptr::<bf16>(own).map(drop)] {
        assert!(matches!(result, Err(KernelError::WrongDType { expected: DType::BF16, found: DType::F32 })));
    }
    let mut stream = stream();
    let view = vector(stream.alloc(16).unwrap(), 4);
    let error = stream.write(&view, &[0; 12]).unwrap_err().to_string();
    assert_eq!(error, "host copy: expected 16 bytes, found 12 bytes");
    assert!(stream.read(&view, &mut [0; 17]).is_err());
}

#[test]
fn narrow_and_reshape_keep_to_the_view() {
    let own = StreamId::fresh();
    let view = View::dense(Storage::host(4 * 30, own).unwrap(), &[5, 6], DType::F32).unwrap();
    let part = view.narrow(0, 1, 3).and_then(|rows| rows.narrow(1, 4, 2)).unwrap();
    assert_eq!((part.shape(), part.offset(), part.byte_range()), ([3, 2].as_slice(), 40, 40..96));
    assert!(view.narrow(1, 4, 3).is_err() && view.narrow(2, 0, 1).is_err());
    assert!(view.narrow(0, usize::MAX, 2).is_err());
    assert!(part.reshape(&[6]).is_err() && part.reshape(&[3, 1, 2]).is_ok());
    assert!(part.overlaps(&view) && !part.overlaps(&view.narrow(0, 0, 1).unwrap()));
    assert!(part.same_elements(&part.clone()) && !part.same_elements(&view));
    let end = view.narrow(0, 5, 0).unwrap();
    assert!(end.is_empty() && !end.overlaps(&view));
}

#[test]
fn weights_check_their_planes() {
    let own = StreamId::fresh();
    let plane =
        |shape: &[usize], dtype| View::dense(Storage::host(1 << 12, own).unwrap(), shape, dtype).unwrap();
    let format: Format = "int4g32".parse().unwrap();
    let (packed, scales) = (plane(&[6, 8], DType::I32), plane(&[6, 2], DType::BF16));
    assert!(Weights::new(format, 6, 64, [packed.clone(), scales.clone()], None).is_ok());
    let error = |planes: Vec<View>, bias| Weights::new(format, 6, 64, planes, bias).unwrap_err().to_string();
    assert_eq!(error(vec![packed.clone()], None), "weight: expected 2 planes of int4g32, found 1");
    let found = error(vec![packed.clone(), plane(&[6, 3], DType::BF16)], None);
    assert!(found.contains("int4g32 scales: expected bf16 [6, 2]") && found.contains("[6, 3]"), "{found}");
    let found = error(vec![packed.clone(), plane(&[6, 2], DType::F16)], None);
    assert!(found.contains("found f16 [6, 2]"), "{found}");
    let found = error(vec![packed.clone(), scales.clone()], Some(plane(&[7], DType::F32)));
    assert!(found.contains("bias: expected dense floats [6], found f32 [7]"), "{found}");
    let one = Weights::new(format, 6, 64, [packed, scales], None).unwrap();
    let other = Weights::dense(plane(&[6, 64], DType::F32), None).unwrap();
    assert!(
        Weights::stack([one.clone(), other]).unwrap_err().to_string().contains("expected int4g32 with k 64")
    );
    assert_eq!(Weights::stack([one.clone(), one]).unwrap().n(), 12);
    assert!(Weights::stack([]).is_err());
}
