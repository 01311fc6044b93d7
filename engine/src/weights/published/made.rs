//! Planes of grouped weights: as they lie in a file, or made from what it has.

use std::ops::Range;
use std::sync::Arc;

use ocelli_kernels::spec::PlaneShape;
use ocelli_kernels::{Code, DType, Format, Grouped, Storage, View, Weights, Zero};
use safetensors::Dtype;
use smallvec::SmallVec;

use super::super::{Scope, WeightError};

/// Where the stored codes `[n, k]` come from.
#[derive(Clone)]
pub(super) enum Codes<'a> {
    /// From the file, as kernels want them.
    Stored(View),
    /// Each row is written, packed into words, which are zeros before.
    Rows(&'a (dyn Fn(usize, &mut [u32]) + Sync)),
}

/// Where floats `[n, groups]` come from.
#[derive(Clone)]
pub(super) enum Floats<'a> {
    /// From the file, as kernels want them.
    Stored(View),
    /// Each is written for its row and group, little-endian, of this type.
    Each(DType, &'a (dyn Fn(usize, usize, &mut [u8]) + Sync)),
}

/// What groups have beside scales, see [`Zero`].
#[derive(Clone)]
pub(super) enum Zeros<'a> {
    None,
    /// The stored zero point of a row and group: what is taken off a code. Left out if they are all the code's centre: kernels do without them.
    Codes(&'a (dyn Fn(usize, usize) -> u32 + Sync)),
    /// Zero points in units of codes.
    Float(Floats<'a>),
    /// What is added.
    Offset(Floats<'a>),
}

/// What the planes of a matrix are.
#[derive(Clone)]
pub(super) struct Planes<'a> {
    /// What codes stand for.
    pub code: Code,
    /// Weights along `k` that share a scale; 0 is the whole row.
    pub group: usize,
    pub codes: Codes<'a>,
    pub scales: Floats<'a>,
    /// What every scale is multiplied with.
    pub factor: f32,
    pub zeros: Zeros<'a>,
}

/// Words that are made, as memory of a storage.
struct Words(Vec<u32>);

impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Floats<'_> {
    fn dtype(&self) -> DType {
        match self {
            Self::Stored(view) => view.dtype(),
            Self::Each(dtype, _) => *dtype,
        }
    }

    fn plane(&self, scope: &Scope<'_>, n: usize, groups: usize) -> Result<View, WeightError> {
        match self {
            Self::Stored(view) => Ok(view.clone()),
            Self::Each(dtype, value) => make(scope, [n, groups], *dtype, |words| {
                let places = (0..n).flat_map(|row| (0..groups).map(move |group| (row, group)));
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
                for (to, (row, group)) in bytes.chunks_exact_mut(dtype.size()).zip(places) {
                    value(row, group, to);
                }
            }),
        }
    }
}

impl Planes<'_> {
    /// The weights `[n, k]`.
    pub fn weights(
        self,
        scope: &Scope<'_>,
        n: usize,
        k: usize,
        bias: Option<View>,
    ) -> Result<Weights, WeightError> {
        let Self { code, group, codes, scales, factor, zeros } = self;
        let bits = code.bits();
        let group = if group >= k { 0 } else { group };
        let groups = if group == 0 { usize::from(k > 0) } else { k.div_ceil(group) };
        let centre = u32::from(code.centre().unwrap_or_default());
        let zeros = match zeros {
            Zeros::Codes(zero) if (0..n).all(|row| (0..groups).all(|group| zero(row, group) == centre)) => {
                Zeros::None
            }
            zeros => zeros,
        };
        let zero = match zeros {
            Zeros::None => Zero::None,
            Zeros::Codes(_) => Zero::Codes,
            Zeros::Float(_) => Zero::Float,
            Zeros::Offset(_) => Zero::Offset,
        };
        let format = Format::Grouped(Grouped { code, group: group as u32, zero, scale: scales.dtype() });
        let mut planes = vec![
            match codes {
                Codes::Stored(view) => view,
                Codes::Rows(row) => {
                    let words = (k * bits).div_ceil(32);
                    make(scope, [n, words], DType::I32, |to| fill_rows(to, words, row))?
                }
            },
            scales.plane(scope, n, groups)?,
        ];
        match zeros {
            Zeros::None => {}
            Zeros::Codes(zero) => {
                let per_word = 32 / bits;
                planes.push(make(scope, [n.div_ceil(per_word), groups], DType::I32, |words| {
                    for row in 0..n {
                        for group in 0..groups {
                            words[row / per_word * groups + group] |=
                                zero(row, group) << (row % per_word * bits);
                        }
                    }
                })?);
            }
            Zeros::Float(floats) | Zeros::Offset(floats) => planes.push(floats.plane(scope, n, groups)?),
        }
        Weights::new(format, n, k, planes, bias)
            .map(|weights| weights.times(factor))
            .map_err(|error| misfit(scope, &error))
    }
}

/// A matrix `[n, k]` of f32 whose rows are written: for what no kernel multiplies as it is stored.
pub(super) fn decoded(
    scope: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
    row: &(dyn Fn(usize, &mut [f32]) + Sync),
) -> Result<Weights, WeightError> {
    let write = |i: usize, words: &mut [u32]| row(i, bytemuck::cast_slice_mut(words));
    let view = make(scope, [n, k], DType::F32, |words| fill_rows(words, k, &write))?;
    Weights::dense(view, bias).map_err(|error| misfit(scope, &error))
}

/// Integers as those of `format`, which differs by planes that these do without: zero points, which are all the centre, and the
/// groups of columns.
pub(in super::super) fn with_planes(
    scope: &Scope<'_>,
    w: &Weights,
    format: Format,
) -> Result<Weights, WeightError> {
    let (n, k, group) = (w.n(), w.k(), format.group_len(w.k()));
    let (Some(part), Some(grouped)) = (w.parts().first(), format.codes()) else { return Ok(w.clone()) };
    let (centre, bits) = (grouped.code.centre().unwrap_or_default(), grouped.code.bits());
    let mut own = part.planes.iter().cloned();
    let known: Vec<&str> = w.format().planes(n, k).iter().map(|plane| plane.name).collect();
    let plane = |plane: PlaneShape| match plane.name {
        name if known.contains(&name) => {
            own.next().ok_or_else(|| scope.unsupported(format!("weights without their {name}")))
        }
        "order" => make(scope, [1, k], DType::I32, |to| {
            to.iter_mut().enumerate().for_each(|(column, to)| *to = (column / group.max(1)) as u32);
        }),
        _ if plane.dtype == DType::I32 => {
            let word = (0..32 / bits).fold(0, |word, i| word | u32::from(centre) << (i * bits));
            make(scope, [plane.rows, plane.cols], DType::I32, |words| words.fill(word))
        }
        _ => make(scope, [plane.rows, plane.cols], plane.dtype, |words| {
            let (to, value): (&mut [u8], _) =
                (bytemuck::cast_slice_mut(words), stored(plane.dtype, centre.into()));
            to.chunks_exact_mut(value.len()).for_each(|to| to.copy_from_slice(&value));
        }),
    };
    let planes = format.planes(n, k).into_iter().map(plane).collect::<Result<Vec<View>, WeightError>>()?;
    Weights::new(format, n, k, planes, part.bias.clone())
        .map(|weights| weights.times(part.factor))
        .map_err(|error| misfit(scope, &error))
}

/// A matrix `[n, k]` of f32 of these values.
pub(in super::super) fn of_values(
    scope: &Scope<'_>,
    n: usize,
    k: usize,
    values: &[f32],
) -> Result<View, WeightError> {
    make(scope, [n, k], DType::F32, |words| {
        words.iter_mut().zip(values).for_each(|(word, value)| *word = value.to_bits());
    })
}

/// Filters `[n, k / 3, 3]` of `weight` as `[n, 3, k / 3]`.
pub(in super::super) fn colours_first(scope: &Scope<'_>, n: usize, k: usize) -> Result<View, WeightError> {
    let info = scope.info("weight");
    let Some(dtype) = info.and_then(|info| float(info.dtype)) else {
        let found = info.map_or_else(String::new, |info| info.dtype.to_string());
        return Err(scope.unsupported(format!("filters of {found} with colours last; F32, BF16 and F16 are")));
    };
    let (bytes, size, places) = (scope.raw("weight")?, dtype.size(), k / 3);
    make(scope, [n, k], dtype, |words| {
        let to: &mut [u8] = bytemuck::cast_slice_mut(words);
        for (i, to) in to.chunks_exact_mut(size).take(n * k).enumerate() {
            let (filter, at) = (i / k, i % k);
            to.copy_from_slice(element(bytes, size, filter * k + at % places * 3 + at / places));
        }
    })
}

pub(super) fn misfit(scope: &Scope<'_>, error: &ocelli_kernels::ShapeError) -> WeightError {
    WeightError::shape(scope.checkpoint().path(), scope.prefix(), error)
}

/// A plane that `fill` writes, unless the checkpoint is planned alone.
pub(super) fn make(
    scope: &Scope<'_>,
    [rows, cols]: [usize; 2],
    dtype: DType,
    fill: impl FnOnce(&mut [u32]),
) -> Result<View, WeightError> {
    let (checkpoint, bytes) = (scope.checkpoint(), rows * cols * dtype.size());
    let storage = if checkpoint.is_planned() {
        Storage::Meta(bytes)
    } else {
        let mut words = vec![0; bytes.div_ceil(4)];
        fill(&mut words);
        Storage::shared(Arc::new(Words(words)))
    };
    if !scope.passing {
        checkpoint.count_made(bytes);
    }
    View::dense(storage, &[rows, cols], dtype).map_err(|error| misfit(scope, &error))
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

/// The narrowest integers that have a range of bits.
pub(super) fn wide(bits: usize) -> Code {
    if bits <= 4 { Code::Int4 } else { Code::Int8 }
}

/// Integers of so many bits that are stored with half of their range added, as the narrowest code that has them: the code, and what is added.
pub(super) fn widened(bits: usize) -> (Code, u32) {
    let code = wide(bits);
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

/// A float as it is stored.
pub(super) fn stored(dtype: DType, value: f32) -> SmallVec<[u8; 4]> {
    match dtype {
        DType::BF16 => SmallVec::from_slice(&half::bf16::from_f32(value).to_le_bytes()),
        DType::F16 => SmallVec::from_slice(&half::f16::from_f32(value).to_le_bytes()),
        _ => SmallVec::from_slice(&value.to_le_bytes()),
    }
}

/// A stored float of a type of [`float`].
pub(super) fn number(dtype: DType, bytes: &[u8]) -> f32 {
    match dtype {
        DType::BF16 => half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        DType::F16 => half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        _ => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
    }
}
