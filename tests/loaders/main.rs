//! Loading weights: valid files of every shape, hostile and mutated files, shards, quantized layers.

mod alloc;
mod build;
mod calibrated;
mod checkpoints;
mod corrupt;
mod fuzz;
mod hostile;
mod json;
mod layout;
mod linear;
mod published;
mod quantize;
mod shards;
mod stacks;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::Checkpoint;
use ocelli_kernels::ops::GatherRows;
use ocelli_kernels::{DType, Element, Exec, Queue, ReferenceStream, StreamId, View, Weights};

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

/// A file or folder of the golden data.
fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(path)
}

/// A folder for one test, removed when dropped.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("ocelli-loaders-{}-{id}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder for temporary files");
        Self(dir)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, bytes).expect("a temporary file");
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The elements of a dense view.
fn elements<T: Element>(view: &View) -> Vec<T> {
    assert!(view.layout().is_dense());
    let from = view.read_ptr::<T>(StreamId::fresh()).expect("host memory of this type");
    // SAFETY: the pointer is valid for as many elements, which nobody writes.
    unsafe { std::slice::from_raw_parts(from, view.len()) }.to_vec()
}

/// A model of these weights and this `config.json`.
fn model_of(weights: &[u8], config: &str) -> (TempDir, Checkpoint) {
    let dir = TempDir::new();
    dir.write("model.safetensors", weights);
    dir.write("config.json", config);
    let checkpoint = Checkpoint::open(&ModelFiles::dir(&dir.0)).expect("a valid model");
    (dir, checkpoint)
}

/// All values of a matrix, as the kernels' reference decodes them.
fn decoded(weights: &Weights) -> Vec<f32> {
    let (n, k) = (weights.n(), weights.k());
    let mut stream = ReferenceStream::default();
    let mut view = |bytes: usize, shape: &[usize], dtype| {
        View::dense(stream.alloc(bytes).expect("memory"), shape, dtype).expect("a view")
    };
    let (ids, out) = (view(4 * n, &[n], DType::I32), view(4 * n * k, &[n, k], DType::F32));
    stream.write(&ids, &build::i32s(&(0..n as i32).collect::<Vec<_>>())).expect("ids");
    stream.exec(&GatherRows { table: weights.clone(), ids, scale: 1.0, out: out.clone() }).expect("rows");
    let mut bytes = vec![0; 4 * n * k];
    stream.read(&out, &mut bytes).expect("values");
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
