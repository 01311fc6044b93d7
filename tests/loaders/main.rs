//! Loading weights: valid files of every shape, hostile and mutated files, shards, quantized layers.

mod build;
mod hostile;
mod layout;
mod shards;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use ocelli_kernels::{Element, StreamId, View};

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
