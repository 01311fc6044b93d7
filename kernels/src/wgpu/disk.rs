//! What the driver made of kernels, kept for the next process where the driver can give it away.

use std::path::{Path, PathBuf};

/// The driver's cache of compiled kernels with its place on disk.
pub(super) struct DiskCache {
    cache: wgpu::PipelineCache,
    path: PathBuf,
}

impl DiskCache {
    /// The cache of an adapter below `directory`; `None` where the device has no such cache. A file of another driver or of other
    /// kernels is ignored.
    pub fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo, directory: &Path) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let key = wgpu::util::pipeline_cache_key(info)?;
        let path = directory.join("pipelines").join(format!("{key}-{}", crate::DIGEST));
        let data = std::fs::read(&path).ok();
        let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
        // SAFETY: the bytes were written by `save` to the user's own cache directory; `wgpu` compares their header with device
        // and driver, and the driver checks the rest as its own.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Self { cache, path })
    }

    /// The cache, for the creation of pipelines.
    pub fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Writes the cache; the file appears whole. A disk that is full or read-only costs nothing but the next start.
    pub fn save(&self) {
        let Some(data) = self.cache.get_data() else { return };
        let Some(directory) = self.path.parent() else { return };
        let unfinished = self.path.with_extension(format!("{}.new", std::process::id()));
        let written = std::fs::create_dir_all(directory)
            .and_then(|()| std::fs::write(&unfinished, data))
            .and_then(|()| std::fs::rename(&unfinished, &self.path));
        if let Err(error) = written {
            tracing::debug!("{}: {error}", self.path.display());
            let _ = std::fs::remove_file(&unfinished);
        }
    }
}
