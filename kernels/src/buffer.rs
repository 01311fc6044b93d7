//! Memory and typed windows into it. The only casts between bytes and elements are here.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;

use crate::spec::{DType, Element, Format, KMajor, KernelError, Layout, ShapeError, Zero};
use crate::zeroed::Zeroed;

/// Alignment of host allocations: a cache line, and the widest vector register.
pub const HOST_ALIGN: usize = 64;

/// Identity of a stream. Writable host memory belongs to the stream that allocated it: only ops of that stream, which
/// run one after another, may touch it. That is what makes the raw accesses of kernels free of data races.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId(u64);

impl StreamId {
    /// Memory that everyone may read and nobody may write.
    const SHARED: Self = Self(0);

    /// A new identity, never given out before.
    #[must_use]
    pub fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Host memory: an allocation of one stream, or bytes that someone else keeps alive (a mapped file).
pub struct HostBuf {
    base: NonNull<u8>,
    len: usize,
    owner: StreamId,
    _keeper: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the memory is plain bytes. Writes happen through views of the owning stream alone, whose ops are ordered by
// `&mut` access to it; shared memory is never written (`View::write_ptr` refuses it).
unsafe impl Send for HostBuf {}
// SAFETY: as above.
unsafe impl Sync for HostBuf {}

impl HostBuf {
    fn zeroed(len: usize, owner: StreamId, zeros: Option<Zeroed>) -> Result<Self, KernelError> {
        let fail = || KernelError::OutOfMemory { bytes: len, device: "the host".into() };
        let zeros = zeros.ok_or_else(fail)?;
        Ok(Self { base: zeros.base(), len, owner, _keeper: Arc::new(zeros) })
    }
}

/// Memory of some device; clones share it.
#[derive(Clone)]
pub enum Storage {
    /// Host memory.
    Host(Arc<HostBuf>),
    /// Memory of a device of the wgpu backend.
    #[cfg(feature = "wgpu")]
    Wgpu(Arc<crate::wgpu::WgpuBuf>),
    /// Memory of a device of the CUDA backend.
    #[cfg(feature = "cuda")]
    Cuda(Arc<crate::cuda::CudaBuf>),
    /// A length without memory, for runs that compute nothing.
    Meta(usize),
}

impl Storage {
    /// Zeroed host memory that belongs to `owner`. Errors if the host has not enough.
    pub fn host(bytes: usize, owner: StreamId) -> Result<Self, KernelError> {
        Ok(Self::Host(Arc::new(HostBuf::zeroed(bytes, owner, Zeroed::new(bytes, HOST_ALIGN))?)))
    }

    /// The same of which a page takes memory when it is first written.
    pub fn host_reserved(bytes: usize, owner: StreamId) -> Result<Self, KernelError> {
        Ok(Self::Host(Arc::new(HostBuf::zeroed(bytes, owner, Zeroed::reserved(bytes, HOST_ALIGN))?)))
    }

    /// Bytes that `keeper` owns, for reading by every stream. Nothing is copied.
    pub fn shared<K: AsRef<[u8]> + Send + Sync + 'static>(keeper: Arc<K>) -> Self {
        let bytes: &[u8] = (*keeper).as_ref();
        let (base, len) = (NonNull::from(bytes).cast::<u8>(), bytes.len());
        Self::Host(Arc::new(HostBuf { base, len, owner: StreamId::SHARED, _keeper: keeper }))
    }

    /// Bytes of this storage.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Host(buf) => buf.len,
            #[cfg(feature = "wgpu")]
            Self::Wgpu(buf) => buf.len(),
            #[cfg(feature = "cuda")]
            Self::Cuda(buf) => buf.len(),
            Self::Meta(len) => *len,
        }
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Name of the kind of memory, for errors.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Host(_) => "host",
            #[cfg(feature = "wgpu")]
            Self::Wgpu(_) => "wgpu",
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => "cuda",
            Self::Meta(_) => "meta",
        }
    }

    /// Whether both are the same memory.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Host(a), Self::Host(b)) => Arc::ptr_eq(a, b),
            #[cfg(feature = "wgpu")]
            (Self::Wgpu(a), Self::Wgpu(b)) => Arc::ptr_eq(a, b),
            #[cfg(feature = "cuda")]
            (Self::Cuda(a), Self::Cuda(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// A copy of all bytes, for comparisons.
    #[cfg(feature = "conformance")]
    pub(crate) fn snapshot(&self) -> Vec<u8> {
        match self {
            // SAFETY: the buffer holds `len` initialized bytes, and no op runs while conformance compares.
            Self::Host(buf) => unsafe { std::slice::from_raw_parts(buf.base.as_ptr(), buf.len) }.to_vec(),
            _ => Vec::new(),
        }
    }

    /// Writes back bytes of [`snapshot`](Self::snapshot).
    #[cfg(feature = "conformance")]
    pub(crate) fn restore(&self, bytes: &[u8]) {
        if let Self::Host(buf) = self
            && buf.owner != StreamId::SHARED
            && bytes.len() == buf.len
        {
            // SAFETY: the lengths are equal, and no op runs while conformance writes.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buf.base.as_ptr(), buf.len) }
        }
    }

    /// An identity that views of one memory share.
    #[must_use]
    pub fn id(&self) -> usize {
        match self {
            Self::Host(buf) => Arc::as_ptr(buf) as usize,
            #[cfg(feature = "wgpu")]
            Self::Wgpu(buf) => Arc::as_ptr(buf) as usize,
            #[cfg(feature = "cuda")]
            Self::Cuda(buf) => buf.address() as usize,
            Self::Meta(_) => 0,
        }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.kind(), self.len())
    }
}

/// A typed window into a [`Storage`]: what ops take and give.
#[derive(Clone)]
pub struct View {
    storage: Storage,
    /// Byte offset of the first element.
    offset: usize,
    layout: Layout,
    dtype: DType,
}

impl View {
    /// A view of `storage` from byte `offset` on. Errors if it reaches beyond the end or is not aligned to `dtype`.
    pub fn new(storage: Storage, offset: usize, layout: Layout, dtype: DType) -> Result<Self, ShapeError> {
        let end = layout.extent().checked_mul(dtype.size()).and_then(|bytes| bytes.checked_add(offset));
        if end.is_none_or(|end| end > storage.len()) {
            return Err(ShapeError::new(format!(
                "view: {layout:?} {dtype} at byte {offset} does not fit in {} bytes",
                storage.len()
            )));
        }
        let base = match &storage {
            Storage::Host(buf) => buf.base.as_ptr() as usize,
            _ => 0,
        };
        if !(base + offset).is_multiple_of(dtype.size()) {
            return Err(ShapeError::new(format!("view: byte {offset} is not aligned to {dtype}")));
        }
        Ok(Self { storage, offset, layout, dtype })
    }

    /// A dense view of a whole storage's beginning.
    pub fn dense(storage: Storage, shape: &[usize], dtype: DType) -> Result<Self, ShapeError> {
        Self::new(storage, 0, Layout::dense(shape)?, dtype)
    }

    /// The memory.
    #[must_use]
    pub const fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Byte offset of the first element in the storage.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// Shape and strides.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Sizes of the axes.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// Size of an axis; 1 beyond the rank.
    #[must_use]
    pub fn size(&self, axis: usize) -> usize {
        self.layout.size(axis)
    }

    /// Stride of an axis in elements; 0 beyond the rank.
    #[must_use]
    pub fn stride(&self, axis: usize) -> usize {
        self.layout.stride(axis)
    }

    /// Element type.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layout.len()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layout.is_empty()
    }

    /// Bytes of the elements, gaps left out.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.len() * self.dtype.size()) as u64
    }

    /// The sub-range `start..start + len` of an axis.
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<Self, ShapeError> {
        let (layout, skip) = self.layout.narrow(axis, start, len)?;
        let offset = if layout.is_empty() { self.offset } else { self.offset + skip * self.dtype.size() };
        Ok(Self { storage: self.storage.clone(), offset, layout, dtype: self.dtype })
    }

    /// The same elements in another shape, without a copy.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self, ShapeError> {
        Ok(Self { layout: self.layout.reshape(shape)?, ..self.clone() })
    }

    /// The same window into another storage of at least the same length.
    pub fn with_storage(&self, storage: Storage) -> Result<Self, ShapeError> {
        Self::new(storage, self.offset, self.layout, self.dtype)
    }

    /// Byte range of the storage that the view addresses, gaps included.
    #[must_use]
    pub fn byte_range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.layout.extent() * self.dtype.size()
    }

    /// Whether both views may address a common byte. Column ranges of rows of one length, such as the parts of a fused
    /// projection, are told apart; of other strided views the whole byte ranges are compared.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.byte_range(), other.byte_range());
        if !self.storage.same(&other.storage) || a.start >= b.end || b.start >= a.end {
            return false;
        }
        let row = |view: &Self| {
            let bytes = view.layout.extent() - (view.size(0).max(1) - 1) * view.stride(0);
            (view.stride(0) * view.dtype.size(), bytes * view.dtype.size())
        };
        let ((pitch, wide_a), (pitch_b, wide_b)) = (row(self), row(other));
        if pitch != pitch_b || pitch == 0 {
            return true;
        }
        let apart = (b.start % pitch + pitch - a.start % pitch) % pitch;
        apart < wide_a || apart + wide_b > pitch
    }

    /// Whether both views address the same elements in the same order.
    #[must_use]
    pub fn same_elements(&self, other: &Self) -> bool {
        self.storage.same(&other.storage)
            && self.offset == other.offset
            && self.layout == other.layout
            && self.dtype == other.dtype
    }

    fn host(&self) -> Result<&HostBuf, KernelError> {
        match &self.storage {
            Storage::Host(buf) => Ok(buf),
            other => Err(KernelError::WrongStorage { expected: "host", found: other.kind() }),
        }
    }

    fn typed<T: Element>(&self) -> Result<(), KernelError> {
        if self.dtype == T::DTYPE {
            Ok(())
        } else {
            Err(KernelError::WrongDType { expected: T::DTYPE, found: self.dtype })
        }
    }

    /// Pointer to the first element, for reading by ops of stream `by`: valid for `layout().extent()` elements while
    /// the view lives. Errors for memory of other devices, other streams or another type.
    pub fn read_ptr<T: Element>(&self, by: StreamId) -> Result<*const T, KernelError> {
        self.typed::<T>()?;
        self.read_bytes_ptr(by).map(<*const u8>::cast)
    }

    /// As [`read_ptr`](Self::read_ptr), for writing too; errors for read-only memory as well.
    pub fn write_ptr<T: Element>(&self, by: StreamId) -> Result<*mut T, KernelError> {
        self.typed::<T>()?;
        self.write_bytes_ptr(by).map(<*mut u8>::cast)
    }

    /// As [`write_ptr`](Self::write_ptr) for the first byte, whatever the type.
    fn write_bytes_ptr(&self, by: StreamId) -> Result<*mut u8, KernelError> {
        let host = self.host()?;
        match host.owner {
            StreamId::SHARED => Err(KernelError::ReadOnly),
            owner if owner != by => Err(KernelError::WrongStream),
            // SAFETY: `new` checked that the window lies within the buffer.
            _ => Ok(unsafe { host.base.as_ptr().add(self.offset) }),
        }
    }

    /// Pointer to the first byte whatever the type, for reading by ops of stream `by`.
    pub fn read_bytes_ptr(&self, by: StreamId) -> Result<*const u8, KernelError> {
        let host = self.host()?;
        if host.owner != StreamId::SHARED && host.owner != by {
            return Err(KernelError::WrongStream);
        }
        // SAFETY: `new` checked that the window lies within the buffer.
        Ok(unsafe { host.base.as_ptr().add(self.offset) })
    }

    /// Copies elements from dense host bytes. The length must be that of the view.
    pub(crate) fn fill_from(&self, bytes: &[u8], by: StreamId) -> Result<(), KernelError> {
        let size = self.check_bytes(bytes.len())?;
        // Every bit pattern is a value of each type, so a byte-wise copy is type-correct.
        let base = self.write_bytes_ptr(by)?;
        if self.layout.is_dense() {
            // SAFETY: a dense view has these bytes in a row from its first on, and `bytes` as many, which `check_bytes` checked.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), base, bytes.len()) }
            return Ok(());
        }
        let mut from = bytes.chunks_exact(size);
        self.layout.for_each_offset(|offset| {
            if let Some(chunk) = from.next() {
                // SAFETY: `offset` is within the layout's extent, which `new` checked.
                unsafe { std::ptr::copy_nonoverlapping(chunk.as_ptr(), base.add(offset * size), size) }
            }
        });
        Ok(())
    }

    /// Copies the elements to dense host bytes. The length must be that of the view.
    pub(crate) fn copy_to(&self, bytes: &mut [u8], by: StreamId) -> Result<(), KernelError> {
        let size = self.check_bytes(bytes.len())?;
        let base = self.read_bytes_ptr(by)?;
        if self.layout.is_dense() {
            // SAFETY: as in `fill_from`.
            unsafe { std::ptr::copy_nonoverlapping(base, bytes.as_mut_ptr(), bytes.len()) }
            return Ok(());
        }
        let mut to = bytes.chunks_exact_mut(size);
        self.layout.for_each_offset(|offset| {
            if let Some(chunk) = to.next() {
                // SAFETY: `offset` is within the layout's extent, which `new` checked.
                unsafe { std::ptr::copy_nonoverlapping(base.add(offset * size), chunk.as_mut_ptr(), size) }
            }
        });
        Ok(())
    }

    /// Calls `each` with the bytes of every row in `rows` of a host view `[rows, cols]` with contiguous rows.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    pub(crate) fn with_host_rows(
        &self,
        rows: std::ops::Range<usize>,
        mut each: impl FnMut(&[u8]) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let host = self.host()?;
        let size = self.dtype.size();
        if self.layout.rank() != 2 || !self.layout.rows_contiguous() || rows.end > self.size(0) {
            return Err(ShapeError::mismatch(
                "host rows",
                format!("{rows:?} of contiguous rows"),
                format!("{self:?}"),
            )
            .into());
        }
        for row in rows {
            // SAFETY: `new` checked that the row lies within the buffer, which nobody writes while it is placed.
            let bytes = unsafe {
                let start = host.base.as_ptr().add(self.offset + row * self.stride(0) * size);
                std::slice::from_raw_parts(start, self.size(1) * size)
            };
            each(bytes)?;
        }
        Ok(())
    }

    /// Calls `each` with the bytes of `rows` of a host view `[rows, cols]` whose rows follow each other without gaps.
    #[cfg(feature = "cuda")]
    pub(crate) fn with_host_bytes(
        &self,
        rows: std::ops::Range<usize>,
        each: impl FnOnce(&[u8]) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let host = self.host()?;
        if self.layout.rank() != 2
            || !self.layout.is_dense()
            || rows.end > self.size(0)
            || rows.start > rows.end
        {
            return Err(ShapeError::mismatch(
                "host rows",
                format!("{rows:?} of a dense view"),
                format!("{self:?}"),
            )
            .into());
        }
        let row = self.size(1) * self.dtype.size();
        // SAFETY: `new` checked that the view lies within the buffer, which nobody writes while it is placed.
        let bytes = unsafe {
            let start = host.base.as_ptr().add(self.offset + rows.start * row);
            std::slice::from_raw_parts(start, rows.len() * row)
        };
        each(bytes)
    }

    /// Element `index` of a dense host view of floats.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    pub(crate) fn host_value(&self, index: usize) -> Result<f32, KernelError> {
        let (host, size) = (self.host()?, self.dtype.size());
        if index >= self.len() || !self.layout.is_dense() {
            return Err(
                ShapeError::mismatch("host value", format!("element {index}"), format!("{self:?}")).into()
            );
        }
        let mut bytes = [0; 4];
        // SAFETY: an element of the view, which lies within the buffer.
        unsafe {
            let from = host.base.as_ptr().add(self.offset + index * size);
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), size);
        }
        let half_word = [bytes[0], bytes[1]];
        match self.dtype {
            DType::F32 => Ok(f32::from_le_bytes(bytes)),
            DType::BF16 => Ok(half::bf16::from_le_bytes(half_word).to_f32()),
            DType::F16 => Ok(half::f16::from_le_bytes(half_word).to_f32()),
            found => Err(KernelError::WrongDType { expected: DType::F32, found }),
        }
    }

    pub(crate) fn check_bytes(&self, found: usize) -> Result<usize, KernelError> {
        if found as u64 == self.bytes() {
            return Ok(self.dtype.size());
        }
        Err(ShapeError::mismatch("host copy", format!("{} bytes", self.bytes()), format!("{found} bytes"))
            .into())
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.layout)
    }
}

/// Rows of a weight matrix that lie together: one stored tensor.
#[derive(Clone, Debug)]
pub struct WeightPart {
    /// Rows of this part.
    pub rows: usize,
    /// The planes of the format, see [`Format`].
    pub planes: SmallVec<[View; 3]>,
    /// What every scale is multiplied with.
    pub factor: f32,
    /// Bias `[rows]`, added to the products of this part.
    pub bias: Option<View>,
}

/// A weight matrix `[n, k]`, stacked by rows from one or more stored tensors: query, key and value projections, or gate
/// and up, are one matrix without having been copied together.
#[derive(Clone, Debug)]
pub struct Weights {
    format: Format,
    n: usize,
    k: usize,
    parts: SmallVec<[WeightPart; 3]>,
}

impl Weights {
    /// One stored matrix `[n, k]`. Errors if a plane does not have the shape that the format asks for.
    pub fn new(
        format: Format,
        n: usize,
        k: usize,
        planes: impl IntoIterator<Item = View>,
        bias: Option<View>,
    ) -> Result<Self, ShapeError> {
        let planes: SmallVec<[View; 3]> = planes.into_iter().collect();
        let expected = format.planes(n, k);
        if planes.len() != expected.len() {
            return Err(ShapeError::mismatch(
                "weight",
                format!("{} planes of {format}", expected.len()),
                planes.len(),
            ));
        }
        for (plane, want) in planes.iter().zip(&expected) {
            if plane.shape() != [want.rows, want.cols]
                || plane.dtype() != want.dtype
                || !plane.layout().rows_contiguous()
            {
                return Err(ShapeError::mismatch(
                    &format!("weight {format} {}", want.name),
                    format!("{} [{}, {}] with contiguous rows", want.dtype, want.rows, want.cols),
                    format!("{plane:?}"),
                ));
            }
        }
        if let Some(bias) = &bias
            && (bias.shape() != [n] || !bias.dtype().is_float() || !bias.layout().is_dense())
        {
            return Err(ShapeError::mismatch("bias", format!("dense floats [{n}]"), format!("{bias:?}")));
        }
        let mut parts = SmallVec::new();
        parts.push(WeightPart { rows: n, planes, factor: 1.0, bias });
        Ok(Self { format, n, k, parts })
    }

    /// The same matrix with every scale `factor` times as large.
    #[must_use]
    pub fn times(mut self, factor: f32) -> Self {
        self.parts.iter_mut().for_each(|part| part.factor *= factor);
        self
    }

    /// A dense matrix from one view `[n, k]`.
    pub fn dense(view: View, bias: Option<View>) -> Result<Self, ShapeError> {
        let (n, k) = (view.size(0), view.size(1));
        Self::new(Format::Dense(view.dtype()), n, k, [view], bias)
    }

    /// Stacks matrices of one format and `k` by rows.
    pub fn stack(all: impl IntoIterator<Item = Self>) -> Result<Self, ShapeError> {
        let mut all = all.into_iter();
        let mut first = all.next().ok_or_else(|| ShapeError::new("weight: nothing to stack"))?;
        for next in all {
            if (next.format, next.k) != (first.format, first.k) {
                return Err(ShapeError::mismatch(
                    "weight rows to stack",
                    format!("{} with k {}", first.format, first.k),
                    format!("{} with k {}", next.format, next.k),
                ));
            }
            first.n += next.n;
            first.parts.extend(next.parts);
        }
        Ok(first)
    }

    /// Rows `first..first + n` as a matrix of their own. Errors if there are not as many, or packed zero points would begin or end
    /// inside a word.
    pub fn rows(&self, first: usize, n: usize) -> Result<Self, ShapeError> {
        let end = first.saturating_add(n);
        if end > self.n {
            return Err(ShapeError::mismatch("weight rows", format!("at most {}", self.n), end));
        }
        let mut parts = SmallVec::new();
        let mut start = 0;
        for part in &self.parts {
            let (from, to) = (first.max(start), end.min(start + part.rows));
            if from < to {
                parts.push(self.rows_of(part, from - start, to - from)?);
            }
            start += part.rows;
        }
        Ok(Self { format: self.format, n, k: self.k, parts })
    }

    fn rows_of(&self, part: &WeightPart, first: usize, rows: usize) -> Result<WeightPart, ShapeError> {
        if rows == part.rows {
            return Ok(part.clone());
        }
        let mut planes = SmallVec::new();
        for (plane, shape) in part.planes.iter().zip(self.format.planes(part.rows, self.k)) {
            if let Format::KMajor(grouped, kind) = self.format {
                // Rows lie across, some of them in words.
                let held = match (kind, shape.name) {
                    (_, "order") => {
                        planes.push(plane.clone());
                        continue;
                    }
                    (KMajor::Awq, "packed") => 32 / grouped.code.bits(),
                    (_, "zeros") if grouped.zero == Zero::Codes => 32 / grouped.code.bits(),
                    _ => 1,
                };
                if !first.is_multiple_of(held) || !rows.is_multiple_of(held) {
                    let wanted = format!("multiples of {held}");
                    return Err(ShapeError::mismatch(
                        "weight rows in words",
                        wanted,
                        format!("{first} and {rows}"),
                    ));
                }
                planes.push(plane.narrow(1, first / held, rows / held)?);
                continue;
            }
            // Only zero points that are codes are packed along rows.
            let held =
                self.format.grouped().filter(|grouped| shape.name == "zeros" && grouped.zero == Zero::Codes);
            let held = held.map_or(1, |grouped| 32 / grouped.code.bits());
            if !first.is_multiple_of(held) || !(rows.is_multiple_of(held) || first + rows == part.rows) {
                let wanted = format!("multiples of {held}");
                return Err(ShapeError::mismatch(
                    "weight rows with zero points",
                    wanted,
                    format!("{first} and {rows}"),
                ));
            }
            planes.push(plane.narrow(0, first / held, rows.div_ceil(held))?);
        }
        let bias = part.bias.as_ref().map(|bias| bias.narrow(0, first, rows)).transpose()?;
        Ok(WeightPart { rows, planes, bias, ..*part })
    }

    /// Storage format.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Rows: output features.
    #[must_use]
    pub const fn n(&self) -> usize {
        self.n
    }

    /// Columns: input features.
    #[must_use]
    pub const fn k(&self) -> usize {
        self.k
    }

    /// The stored tensors, top rows first.
    #[must_use]
    pub fn parts(&self) -> &[WeightPart] {
        &self.parts
    }

    /// Whether any part has a bias.
    #[must_use]
    pub fn has_bias(&self) -> bool {
        self.parts.iter().any(|part| part.bias.is_some())
    }

    /// Bytes of all planes and biases.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().flat_map(|part| part.planes.iter().chain(&part.bias)).map(View::bytes).sum()
    }

    /// Applies `change` to each view, biases included.
    pub fn for_each_view(&mut self, change: &mut dyn FnMut(&mut View)) {
        for part in &mut self.parts {
            part.planes.iter_mut().chain(&mut part.bias).for_each(&mut *change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_stacked_parts() -> Result<(), Box<dyn std::error::Error>> {
        let by = StreamId::fresh();
        let part = |rows: usize| {
            let view = View::dense(Storage::host(4 * rows * 3, by)?, &[rows, 3], DType::F32)?;
            Ok::<_, Box<dyn std::error::Error>>(Weights::dense(view, None)?)
        };
        let all = Weights::stack([part(4)?, part(2)?, part(5)?])?;
        let rows =
            |first, n| all.rows(first, n).map(|w| w.parts().iter().map(|p| p.rows).collect::<Vec<_>>());
        assert_eq!(rows(0, 4)?, [4]);
        assert_eq!(rows(3, 5)?, [1, 2, 2]);
        assert_eq!(rows(11, 0)?, [0usize; 0]);
        assert!(rows(7, 5).is_err() && rows(usize::MAX, 2).is_err());
        Ok(())
    }

    #[test]
    fn parts_of_fused_rows_do_not_overlap() -> Result<(), Box<dyn std::error::Error>> {
        let by = StreamId::fresh();
        let rows = View::dense(Storage::host(4 * 5 * 12, by)?, &[5, 12], DType::F32)?;
        let (q, k, v) = (rows.narrow(1, 0, 6)?, rows.narrow(1, 6, 4)?, rows.narrow(1, 10, 2)?);
        assert!(!q.overlaps(&k) && !k.overlaps(&q) && !k.overlaps(&v) && !v.overlaps(&q));
        // The last columns of one row and the first of the next are apart too, and shared columns are found.
        let (late, early) = (v.narrow(0, 0, 4)?, q.narrow(0, 1, 4)?);
        assert!(!late.overlaps(&early) && !early.overlaps(&late));
        assert!(q.overlaps(&rows.narrow(1, 5, 2)?) && rows.narrow(1, 5, 2)?.overlaps(&k));
        assert!(q.reshape(&[5, 2, 3])?.overlaps(&rows.narrow(0, 2, 1)?));
        assert!(!rows.narrow(0, 0, 2)?.overlaps(&rows.narrow(0, 2, 3)?));
        Ok(())
    }
}
