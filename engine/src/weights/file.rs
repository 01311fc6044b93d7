//! One safetensors file, mapped into memory.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use half::{bf16, f16};
use memmap2::Mmap;
use ocelli_kernels::{DType, Layout, Storage, View};
use safetensors::Dtype;

use super::WeightError;
use super::header::{self, Entry};
use crate::files::is_absent;

/// Largest number of elements that [`TensorFile::ints`] reads: shape tensors and the like, not weights.
const MAX_INTS: usize = 1 << 20;

/// Bytes with the alignment of [`ocelli_kernels::HOST_ALIGN`], for files that are built into a binary:
/// `static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("model.safetensors"));`
///
/// Without it such a file may start at any address, and its tensors would have to be copied.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Aligned<B: ?Sized>(pub B);

/// Type, shape and size of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// Type as the file names it.
    pub dtype: Dtype,
    /// Sizes of the axes.
    pub shape: &'a [usize],
    /// Bytes in the file.
    pub bytes: usize,
}

impl TensorInfo<'_> {
    /// The element type that kernels know it by, if they do.
    #[must_use]
    pub const fn kernel_dtype(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::BF16 => Some(DType::BF16),
            Dtype::F16 => Some(DType::F16),
            Dtype::I8 => Some(DType::I8),
            Dtype::U8 => Some(DType::U8),
            Dtype::I32 => Some(DType::I32),
            _ => None,
        }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How many tensors had to be copied, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Tensors that were not aligned to their type.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Owner of the bytes of a file.
enum Keeper {
    Map(Mmap),
    Static(&'static [u8]),
    Shared(Arc<[u8]>),
}

impl AsRef<[u8]> for Keeper {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Map(map) => map,
            Self::Static(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// An aligned copy of one tensor.
pub(super) struct AlignedCopy {
    words: Vec<u64>,
    len: usize,
}

impl AlignedCopy {
    pub fn zeros(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(8)], len }
    }

    pub fn of(bytes: &[u8]) -> Self {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { words, len: bytes.len() }
    }
}

impl AsRef<[u8]> for AlignedCopy {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

/// What a file remembers of a tensor beyond its header entry.
#[derive(Default)]
struct State {
    used: AtomicBool,
    copy: OnceLock<Storage>,
}

/// One safetensors file. Its header has been checked; its data is read when a tensor is used, from where it lies.
///
/// A mapped file must not be changed or truncated by others while it is open: the operating system would end the
/// process at the next read of a page that is gone.
pub struct TensorFile {
    path: String,
    keeper: Arc<Keeper>,
    storage: Storage,
    entries: Vec<Entry>,
    states: Vec<State>,
    by_name: HashMap<Box<str>, usize>,
}

impl TensorFile {
    /// Maps a file.
    ///
    /// # Errors
    /// If it cannot be opened, or is not valid safetensors: the header's length, JSON, types, shapes and offsets are
    /// checked against the file's length.
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        let label = path.display().to_string();
        let io = |source| WeightError::Io { path: label.clone(), source };
        // Before `open`, which would wait for a writer at a pipe.
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => {
                is_absent(path)?;
                return Err(io(error));
            }
        };
        if !metadata.is_file() {
            return Err(WeightError::invalid(&label, "expected a regular file"));
        }
        if metadata.len() == 0 {
            return Err(WeightError::invalid(&label, "empty file; expected safetensors"));
        }
        let file = std::fs::File::open(path).map_err(io)?;
        // SAFETY: the map is only read. That nobody changes the file meanwhile is the documented contract.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        // Kernels that stream weights read faster where each page is 2 MiB: a wish, which not every system and file system
        // grants.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Self::new(label, Keeper::Map(map))
    }

    /// A file built into the binary; `label` is what errors call it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn embedded(label: &str, bytes: &'static [u8]) -> Result<Self, WeightError> {
        Self::new(label.to_owned(), Keeper::Static(bytes))
    }

    /// A file held in memory; `label` is what errors call it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn in_memory(label: &str, bytes: Arc<[u8]>) -> Result<Self, WeightError> {
        Self::new(label.to_owned(), Keeper::Shared(bytes))
    }

    /// A file whose bytes are in `storage` as well, from which its tensors are taken: memory of a stream, which may write to them. What
    /// is read from the file itself is as it was.
    ///
    /// # Errors
    /// As [`open`](Self::open), and if the storage has another length.
    pub fn placed(label: &str, bytes: Arc<[u8]>, storage: Storage) -> Result<Self, WeightError> {
        if storage.len() != bytes.len() {
            let reason = format!("memory: expected {} bytes, found {}", bytes.len(), storage.len());
            return Err(WeightError::invalid(label, reason));
        }
        Ok(Self { storage, ..Self::in_memory(label, bytes)? })
    }

    fn new(path: String, keeper: Keeper) -> Result<Self, WeightError> {
        let keeper = Arc::new(keeper);
        let entries = header::parse(&path, (*keeper).as_ref())?;
        let by_name = entries.iter().enumerate().map(|(index, entry)| (entry.name.clone(), index)).collect();
        let states = entries.iter().map(|_| State::default()).collect();
        Ok(Self { storage: Storage::shared(keeper.clone()), path, keeper, entries, states, by_name })
    }

    /// What errors call the file: its path, for one on disk.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Bytes of the file.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.storage.len() as u64
    }

    /// Whether the file has no tensors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Names, in the order in which the tensors lie in the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| &*entry.name)
    }

    /// Index of a name, for the methods below.
    pub(super) fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Type and shape of a tensor.
    #[must_use]
    pub fn info(&self, name: &str) -> Option<TensorInfo<'_>> {
        self.index(name).map(|index| self.info_at(index))
    }

    pub(super) fn info_at(&self, index: usize) -> TensorInfo<'_> {
        let entry = &self.entries[index];
        TensorInfo { dtype: entry.dtype, shape: &entry.shape, bytes: entry.len }
    }

    pub(super) fn named(&self, index: usize) -> (&str, TensorInfo<'_>) {
        (&self.entries[index].name, self.info_at(index))
    }

    fn find(&self, name: &str) -> Result<usize, WeightError> {
        self.index(name).ok_or_else(|| WeightError::Missing {
            path: self.path.clone(),
            tensor: name.to_owned(),
            near: super::near(name, self.names()),
        })
    }

    fn bytes_at(&self, index: usize) -> &[u8] {
        let entry = &self.entries[index];
        &(*self.keeper).as_ref()[entry.start..entry.start + entry.len]
    }

    /// The tensor where it lies in the file.
    ///
    /// # Errors
    /// If there is none of that name, or kernels know no such element type or rank.
    pub fn view(&self, name: &str) -> Result<View, WeightError> {
        self.view_at(self.find(name)?, None)
    }

    /// As [`view`](Self::view), seen as another shape of as many elements.
    pub(super) fn view_at(&self, index: usize, shape: Option<&[usize]>) -> Result<View, WeightError> {
        let (entry, info) = (&self.entries[index], self.info_at(index));
        let fail = |reason: String| WeightError::tensor(&self.path, &entry.name, reason);
        let Some(dtype) = info.kernel_dtype() else {
            return Err(fail(format!("expected F32, BF16, F16, I8, U8 or I32, found {}", entry.dtype)));
        };
        self.view_of(index, shape, dtype)
    }

    /// As [`view_at`](Self::view_at), its elements seen as another type of their size.
    pub(super) fn view_of(
        &self,
        index: usize,
        shape: Option<&[usize]>,
        dtype: DType,
    ) -> Result<View, WeightError> {
        let (entry, info) = (&self.entries[index], self.info_at(index));
        let fail = |reason: String| WeightError::tensor(&self.path, &entry.name, reason);
        let shape = shape.unwrap_or(&entry.shape);
        let len = shape.iter().try_fold(dtype.size(), |count, &size| count.checked_mul(size));
        if len != Some(info.bytes) {
            return Err(fail(format!("expected the elements of shape {shape:?}, found {:?}", entry.shape)));
        }
        let layout = Layout::dense(shape).map_err(|e| WeightError::shape(&self.path, &entry.name, &e))?;
        self.states[index].used.store(true, Ordering::Relaxed);
        let address = (*self.keeper).as_ref().as_ptr() as usize + entry.start;
        let (storage, offset) = if address.is_multiple_of(dtype.size()) {
            (self.storage.clone(), entry.start)
        } else {
            let copy = self.states[index]
                .copy
                .get_or_init(|| Storage::shared(Arc::new(AlignedCopy::of(self.bytes_at(index)))));
            (copy.clone(), 0)
        };
        View::new(storage, offset, layout, dtype).map_err(|e| WeightError::shape(&self.path, &entry.name, &e))
    }

    /// A matrix `[n, k]` of bytes as words `[n, ceil(k / 4)]`, the bytes after a row zero: where it lies in the file if rows
    /// are whole words there.
    pub(super) fn words_at(&self, index: usize, n: usize, k: usize) -> Result<View, WeightError> {
        let name = &self.entries[index].name;
        let bytes = self.bytes_at(index);
        if n.checked_mul(k) != Some(bytes.len()) {
            let reason = format!("expected {n} x {k} bytes, found {}", bytes.len());
            return Err(WeightError::tensor(&self.path, name, reason));
        }
        self.states[index].used.store(true, Ordering::Relaxed);
        let whole = k.is_multiple_of(4) && (bytes.as_ptr() as usize).is_multiple_of(4);
        let (storage, offset) = if whole {
            (self.storage.clone(), self.entries[index].start)
        } else {
            let copy = self.states[index].copy.get_or_init(|| {
                let mut rows = vec![0; n * k.next_multiple_of(4)];
                for (to, from) in rows.chunks_mut(k.next_multiple_of(4).max(1)).zip(bytes.chunks(k.max(1))) {
                    to[..from.len()].copy_from_slice(from);
                }
                Storage::shared(Arc::new(AlignedCopy::of(&rows)))
            });
            (copy.clone(), 0)
        };
        Layout::dense(&[n, k.div_ceil(4)])
            .and_then(|layout| View::new(storage, offset, layout, DType::I32))
            .map_err(|e| WeightError::shape(&self.path, name, &e))
    }

    /// The bytes of a tensor as they lie in the file.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn bytes(&self, name: &str) -> Result<&[u8], WeightError> {
        let index = self.find(name)?;
        self.states[index].used.store(true, Ordering::Relaxed);
        Ok(self.bytes_at(index))
    }

    /// A small tensor of any integer type as i64: a stored shape for one.
    ///
    /// # Errors
    /// If there is none of that name, its type is no integer, it has more than 2^20 elements, or a value does not fit.
    pub fn ints(&self, name: &str) -> Result<Vec<i64>, WeightError> {
        let index = self.find(name)?;
        let info = self.info_at(index);
        let fail = |reason: String| WeightError::tensor(&self.path, name, reason);
        if info.len() > MAX_INTS {
            return Err(fail(format!("expected at most {MAX_INTS} integers, found {}", info.len())));
        }
        let bytes = self.bytes(name)?;
        Ok(match info.dtype {
            Dtype::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            Dtype::U64 => {
                let wide = bytes.as_chunks().0.iter().map(|b| i64::try_from(u64::from_le_bytes(*b)));
                wide.collect::<Result<_, _>>().map_err(|_| fail("a value is above 2^63 - 1".into()))?
            }
            Dtype::I32 => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
            Dtype::U32 => bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b).into()).collect(),
            Dtype::I16 => bytes.as_chunks().0.iter().map(|b| i16::from_le_bytes(*b).into()).collect(),
            Dtype::U16 => bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b).into()).collect(),
            Dtype::I8 => bytes.iter().map(|&b| (b as i8).into()).collect(),
            Dtype::U8 | Dtype::BOOL => bytes.iter().map(|&b| b.into()).collect(),
            other => return Err(fail(format!("expected integers, found {other}"))),
        })
    }

    /// A copy of a float tensor, widened to f32 (f64 is rounded).
    ///
    /// # Errors
    /// If there is none of that name, or its type is not F64, F32, BF16 or F16.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let bytes = self.bytes(name)?;
        let index = self.find(name)?;
        widen(bytes, self.entries[index].dtype).ok_or_else(|| {
            let found = self.entries[index].dtype;
            WeightError::tensor(&self.path, name, format!("expected F64, F32, BF16 or F16, found {found}"))
        })
    }

    pub(super) fn is_used(&self, index: usize) -> bool {
        self.states[index].used.load(Ordering::Relaxed)
    }

    /// Tensors that were copied because they are not aligned.
    #[must_use]
    pub fn copied(&self) -> Copied {
        let copies = self.states.iter().filter_map(|state| state.copy.get());
        copies.fold(Copied::default(), |sum, copy| Copied {
            tensors: sum.tensors + 1,
            bytes: sum.bytes + copy.len() as u64,
        })
    }

    /// Asks the system to read the tensors that have been used so far, in the background. A hint; failure is no error.
    pub fn prefetch(&self) {
        #[cfg(unix)]
        if let Keeper::Map(map) = &*self.keeper {
            for (entry, state) in self.entries.iter().zip(&self.states) {
                if state.used.load(Ordering::Relaxed)
                    && let Err(e) = map.advise_range(memmap2::Advice::WillNeed, entry.start, entry.len)
                {
                    tracing::debug!("{}: no read-ahead: {e}", self.path);
                }
            }
        }
    }
}

/// Little-endian floats as f32; `None` for other types.
pub(super) fn widen(bytes: &[u8], dtype: Dtype) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        _ => return None,
    })
}

impl std::fmt::Debug for TensorFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} tensors, {} bytes)", self.path, self.entries.len(), self.len())
    }
}
