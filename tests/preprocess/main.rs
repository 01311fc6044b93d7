//! Preprocessing against the reference: resized pixels, decoded pixels, processors and prompts, and hostile pictures.

mod decode;
mod faults;
mod fuzz;
mod messages;
mod processor;
mod resize;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A file or folder of the golden data.
fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(path)
}

/// A folder with some JSON files, which is gone when this is dropped.
struct Dir(PathBuf);

impl Dir {
    fn with(files: &[(&str, &serde_json::Value)]) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ocelli-preprocess-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        for (name, value) in files {
            std::fs::write(path.join(name), value.to_string()).unwrap();
        }
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
