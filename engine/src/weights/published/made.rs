//! Planes of grouped weights that are made from what a file has.

use std::ops::Range;
use std::sync::Arc;

use ocelli_kernels::{Code, DType, Format, Grouped, Storage, View, Weights};
use safetensors::Dtype;

use super::super::{Scope, WeightError};

/// Integers with scales, and maybe zero points: what is to be stored.
pub(super) struct Made<'a> {
    /// What codes stand for: [`Code::Int4`] or [`Code::Int8`].
    pub code: Code,
    /// Weights along `k` that share a scale; 0 is the whole row.
    pub group: usize,
    /// Type of the scales `[n, groups]`.
    pub scale_type: DType,
    /// Writes the scale of a row and group, little-endian.
    pub scale: &'a (dyn Fn(usize, usize, &mut [u8]) + Sync),
    /// The stored zero point of a row and group: what is taken off a code.
    pub zero: Option<&'a (dyn Fn(usize, usize) -> u32 + Sync)>,
    /// Writes the stored codes of a row, packed into words, which are zeros before.
    pub row: &'a (dyn Fn(usize, &mut [u32]) + Sync),
}

/// Words that are made, as memory of a storage.
struct Words(Vec<u32>);

impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Made<'_> {
    /// The weights `[n, k]`. Zero points that are all the code's centre are left out: kernels do without them.
    pub fn weights(
        &self,
        scope: &Scope<'_>,
        n: usize,
        k: usize,
        bias: Option<View>,
    ) -> Result<Weights, WeightError> {
        let checkpoint = scope.checkpoint();
        let bits = self.code.bits();
        let groups = if self.group == 0 { usize::from(k > 0) } else { k.div_ceil(self.group) };
        let centre = 1u32 << (bits - 1);
        let zero =
            self.zero.filter(|zero| (0..n).any(|row| (0..groups).any(|group| zero(row, group) != centre)));
        let format = Format::Grouped(Grouped {
            code: self.code,
            group: self.group as u32,
            zero: zero.is_some(),
            scale: self.scale_type,
        });
        let mut planes = Vec::with_capacity(3);
        for plane in format.planes(n, k) {
            let bytes = plane.rows * plane.cols * plane.dtype.size();
            let storage = match checkpoint.is_planned() {
                true => Storage::Meta(bytes),
                false => {
                    let mut words = vec![0; bytes.div_ceil(4)];
                    match plane.name {
                        "packed" => fill_rows(&mut words, plane.cols, self.row),
                        "scales" => self.fill_scales(bytemuck::cast_slice_mut(&mut words), n, groups),
                        _ => {
                            let per_word = 32 / bits;
                            for row in 0..n {
                                for group in 0..groups {
                                    let code = zero.map_or(0, |zero| zero(row, group));
                                    words[row / per_word * groups + group] |= code << (row % per_word * bits);
                                }
                            }
                        }
                    }
                    Storage::shared(Arc::new(Words(words)))
                }
            };
            checkpoint.count_made(bytes);
            planes.push(
                View::dense(storage, &[plane.rows, plane.cols], plane.dtype)
                    .map_err(|error| WeightError::shape(checkpoint.path(), scope.prefix(), &error))?,
            );
        }
        Weights::new(format, n, k, planes, bias)
            .map_err(|error| WeightError::shape(checkpoint.path(), scope.prefix(), &error))
    }

    fn fill_scales(&self, bytes: &mut [u8], n: usize, groups: usize) {
        let places = (0..n).flat_map(|row| (0..groups).map(move |group| (row, group)));
        for (to, (row, group)) in bytes.chunks_exact_mut(self.scale_type.size()).zip(places) {
            (self.scale)(row, group, to);
        }
    }
}

/// Fills rows of `words` words, on all cores.
fn fill_rows(all: &mut [u32], words: usize, row: &(dyn Fn(usize, &mut [u32]) + Sync)) {
    if words == 0 {
        return;
    }
    let rows = all.len() / words;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(rows.div_ceil(64)).max(1);
    let each = rows.div_ceil(threads).max(1);
    let fill = |first: usize, part: &mut [u32]| {
        for (i, words) in part.chunks_exact_mut(words).enumerate() {
            row(first + i, words);
        }
    };
    std::thread::scope(|scope| {
        let mut parts = all.chunks_mut(each * words).enumerate();
        let own = parts.next();
        for (i, part) in parts {
            scope.spawn(move || fill(i * each, part));
        }
        if let Some((_, part)) = own {
            fill(0, part);
        }
    });
}

/// Writes codes of `bits` bits into words that are zeros, low bits first.
pub(super) fn pack(words: &mut [u32], bits: usize, codes: impl Iterator<Item = u32>) {
    let per_word = 32 / bits;
    for (i, code) in codes.enumerate() {
        words[i / per_word] |= code << (i % per_word * bits);
    }
}

/// The word at an index of little-endian words.
pub(super) fn word(bytes: &[u8], index: usize) -> u32 {
    let at = &bytes[4 * index..];
    u32::from_le_bytes([at[0], at[1], at[2], at[3]])
}

/// Code `index` of a stream of codes of `bits` bits, at most 8, low bits first, in little-endian words.
pub(super) fn code(bytes: &[u8], bits: usize, index: usize) -> u32 {
    let first = index * bits;
    let low = u32::from(bytes[first / 8]);
    let high = bytes.get(first / 8 + 1).map_or(0, |byte| u32::from(*byte));
    (low | high << 8) >> (first % 8) & ((1 << bits) - 1)
}

/// The integers of a range of bits, moved to the narrowest code that has them: the code, and what is added.
pub(super) fn widened(bits: usize) -> (Code, u32) {
    let code = if bits <= 4 { Code::Int4 } else { Code::Int8 };
    (code, (1 << (code.bits() - 1)) - (1 << (bits - 1)))
}

/// The kernels' type of a stored float type.
pub(super) fn float(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F16 => Some(DType::F16),
        _ => None,
    }
}

/// The types of [`float`].
pub(super) const FLOATS: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];

/// Bytes of element `index` of a tensor with elements of `size` bytes.
pub(super) fn element(bytes: &[u8], size: usize, index: usize) -> &[u8] {
    let at: Range<usize> = index * size..(index + 1) * size;
    &bytes[at]
}
