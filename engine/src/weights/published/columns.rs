//! Integers that lie along `n`: AWQ (`gemm`) and GPTQ. CPUs read them where they lie; else they are stored anew.

use ocelli_kernels::{Code, DType, Format, Grouped, KMajor, View, Weights, Zero};
use safetensors::Dtype;

use super::super::{Quantization, Scope, WeightError};
use super::made::{
    Codes, FLOATS, Floats, Planes, Zeros, code, element, float, make, misfit, stored, widened, word,
};

/// Where AWQ's words have the eight columns that they hold: column `j` is nibble `NIBBLE[j]`.
const NIBBLE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// What GPTQModel calls the format of planes.
const PLANES: &str = "gptq_p";

/// Code `index` of blocks of 32 codes that lie in planes, as GPTQModel writes 5, 6 and 7 bits: `bits` words a block, first those of the
/// lower bits of all its codes, then those of the higher ones.
fn planar(bytes: &[u8], bits: usize, index: usize) -> u32 {
    let (mut first, at) = (index / 32 * bits, index % 32);
    let (mut value, mut low) = (0, 0);
    for width in [4, 2, 1] {
        if (bits - low) < width || bits == 3 && width == 4 {
            continue;
        }
        let per_word = 32 / width;
        let field = word(bytes, first + at / per_word) >> (at % per_word * width) & ((1 << width) - 1);
        value |= field << low;
        (first, low) = (first + width, low + width);
    }
    value
}

/// What AWQ and GPTQ have in common: scales `[groups, n]`, and the columns that share one.
struct Groups<'a> {
    bytes: &'a [u8],
    dtype: ocelli_kernels::DType,
    count: usize,
    group: usize,
}

impl<'a> Groups<'a> {
    fn of(here: &'a Scope<'_>, n: usize, k: usize) -> Result<Self, WeightError> {
        let path = here.path("scales");
        let Some(info) = here.info("scales") else { return Err(here.checkpoint().missing(&path, &path)) };
        let (count, dtype) = match (info.shape, float(info.dtype)) {
            (&[count, cols], Some(dtype)) if cols == n && count > 0 => (count, dtype),
            _ => {
                here.bytes("scales", &FLOATS, &[k.div_ceil(128).max(1), n])?;
                return Err(here.wrong_shape(&path, &[1, n], info.shape));
            }
        };
        let stated = here.checkpoint().quantization().and_then(|q| q.group);
        let even = k.is_multiple_of(count).then(|| k / count);
        let fits = |size: &usize| *size > 0 && k.div_ceil(*size) == count;
        let Some(group) = stated.into_iter().chain(even).find(fits) else {
            let reason =
                format!("shape: {count} groups of {k} weights fit no group size that config.json states");
            return Err(here.fault("scales", reason));
        };
        let bytes = here.bytes("scales", &FLOATS, &[count, n])?;
        Ok(Self { bytes, dtype, count, group: if count == 1 { 0 } else { group } })
    }
}

impl Groups<'_> {
    /// Whether kernels read the planes where they lie, and are to: whole words of rows, and groups of such.
    fn lie_well(&self, here: &Scope<'_>, n: usize, k: usize) -> bool {
        let whole = n.is_multiple_of(32) && k.is_multiple_of(32) && self.group.is_multiple_of(32);
        here.checkpoint().keeps_along_n() && !here.passing && whole
    }

    fn in_place(
        &self,
        here: &Scope<'_>,
        (n, k): (usize, usize),
        (code, zero, kind): (Code, Zero, KMajor),
        planes: Vec<View>,
        bias: Option<View>,
    ) -> Result<Weights, WeightError> {
        let grouped = Grouped { code, group: self.group as u32, zero, scale: self.dtype };
        let weights = Weights::new(Format::KMajor(grouped, kind), n, k, planes, bias);
        weights.map_err(|error| misfit(here, &error))
    }
}

/// Whether `qweight` has AWQ's shape, `[k, n / 8]` beside zero points `[groups, n / 8]`, and no order of columns.
pub(super) fn is_awq(here: &Scope<'_>) -> bool {
    if here.has("g_idx") {
        return false;
    }
    let named = here.checkpoint().quantization().map_or("", |q| &*q.method);
    let shape = |name| here.info(name).map_or(&[][..], |info| info.shape);
    // GPTQ's has as many columns as there are scales.
    named == "awq" || (named != "gptq" && shape("qweight").get(1) != shape("scales").get(1))
}

/// AWQ's `gemm` layout.
pub(super) fn awq(here: &Scope<'_>, n: usize, k: usize, bias: Option<View>) -> Result<Weights, WeightError> {
    if let Some(q) = here.checkpoint().quantization() {
        let version = q.version.to_ascii_lowercase();
        if !matches!(&*version, "" | "gemm") {
            return Err(here.unsupported(format!("AWQ in the layout `{version}`; expected `gemm`")));
        }
        if q.bits.is_some_and(|bits| bits != 4) {
            return Err(here.unsupported(format!("AWQ of {} bits; expected 4", q.bits.unwrap_or(0))));
        }
    }
    if !n.is_multiple_of(8) {
        return Err(here.unsupported(format!("AWQ of {n} rows; expected whole words of 8")));
    }
    let words = n / 8;
    let codes = here.bytes("qweight", &[Dtype::I32], &[k, words])?;
    let groups = Groups::of(here, n, k)?;
    let zeros = here.bytes("qzeros", &[Dtype::I32], &[groups.count, words])?;
    if groups.lie_well(here, n, k) {
        let symmetric = centred(here, || zeros.iter().all(|byte| *byte == 0x88));
        let zero = if symmetric { Zero::None } else { Zero::Codes };
        let mut planes =
            vec![here.tensor("qweight", &[k, words])?, here.tensor("scales", &[groups.count, n])?];
        if !symmetric {
            planes.push(here.tensor("qzeros", &[groups.count, words])?);
        }
        return groups.in_place(here, (n, k), (Code::Int4, zero, KMajor::Awq), planes, bias);
    }
    let nibble = |bytes: &[u8], line: usize, col: usize| {
        word(bytes, line * words + col / 8) >> (4 * NIBBLE[col % 8]) & 15
    };
    made(here, n, k, bias, &groups, 4, &|row, group| nibble(zeros, group, row), &|row, out| {
        let (place, shift) = (row / 8, 4 * NIBBLE[row % 8]);
        for (i, line) in codes.chunks_exact(4 * words).enumerate() {
            out[i / 8] |= (word(line, place) >> shift & 15) << (i % 8 * 4);
        }
    })
}

/// GPTQ, of 2 to 8 bits, both versions of zero points. Codes of 3 bits cross words, but in files that state the format of planes; those of 5,
/// 6 and 7 bits lie in planes, see [`planar`].
pub(super) fn gptq(here: &Scope<'_>, n: usize, k: usize, bias: Option<View>) -> Result<Weights, WeightError> {
    let quantization = here.checkpoint().quantization();
    let groups = Groups::of(here, n, k)?;
    let lines = here.info("qweight").and_then(|info| info.shape.first().copied()).unwrap_or(0);
    let fits = |bits: &usize| (k * bits).div_ceil(32) == lines;
    let stated = quantization.and_then(|q| q.bits).and_then(|bits| usize::try_from(bits).ok());
    let Some(bits) = stated.into_iter().chain([4, 8, 3, 2, 5, 6, 7]).find(fits) else {
        let most = stated.unwrap_or(4);
        let found = here.info("qweight").map_or(vec![], |info| info.shape.to_vec());
        return Err(here.wrong_shape(&here.path("qweight"), &[(k * most).div_ceil(32), n], &found));
    };
    if !matches!(bits, 2..=8) {
        return Err(here.unsupported(format!("GPTQ of {bits} bits; expected 2 to 8")));
    }
    let in_planes = quantization.is_some_and(|q| q.checkpoint_format == PLANES || q.format == PLANES);
    let planes = matches!(bits, 5..=7) || in_planes && bits == 3;
    if planes && !(n.is_multiple_of(32) && k.is_multiple_of(32)) {
        return Err(here.unsupported(format!(
            "GPTQ of {bits} bits in planes: {n} x {k} weights; expected multiples of 32"
        )));
    }
    let field: fn(&[u8], usize, usize) -> u32 = if planes { planar } else { code };
    let order = sorted(here, "g_idx", k)?;
    let codes = here.bytes("qweight", &[Dtype::I32], &[lines, n])?;
    let zero_words = (n * bits).div_ceil(32);
    let stored = here.bytes("qzeros", &[Dtype::I32], &[groups.count, zero_words])?;
    // Files of the first version hold one less: of whole words, or of fields that cross them.
    let second = planes || in_planes || quantization.is_some_and(Quantization::zeros_are_whole);
    let less: u32 = match (second, bits) {
        (true, _) => 0,
        (_, 2) => 0x5555_5555,
        (_, 4) => 0x1111_1111,
        (_, 8) => 0x0101_0101,
        _ => 0,
    };
    let add = u32::from(!second && bits == 3);
    let mut zeros = Vec::with_capacity(stored.len());
    for i in 0..stored.len() / 4 {
        zeros.extend_from_slice(&word(stored, i).wrapping_add(less).to_le_bytes());
    }
    let (wide, up) = widened(bits);
    if matches!(bits, 4 | 8) && groups.lie_well(here, n, k) {
        let codes = (zeros.as_slice(), zero_words, bits);
        return gptq_in_place(here, (n, k), &groups, codes, second, order.is_some(), bias);
    }
    let zero = |row: usize, group: usize| {
        let line = &zeros[group * zero_words * 4..][..zero_words * 4];
        (field(line, bits, row) + add) % (1 << bits) + up
    };
    made(here, n, k, bias, &groups, bits, &zero, &|row, out| {
        if order.is_none() && matches!(bits, 4 | 8) {
            for (out, line) in out.iter_mut().zip(codes.chunks_exact(4 * n)) {
                *out = word(line, row);
            }
            return;
        }
        // A column is a stream of its own.
        let column: Vec<u8> =
            codes.chunks_exact(4 * n).flat_map(|line| word(line, row).to_le_bytes()).collect();
        let place = |i: usize| order.as_ref().map_or(i, |order| order[i]);
        super::made::pack(out, wide.bits(), (0..k).map(|i| field(&column, bits, place(i)) + up));
    })
}

/// Whether all zero points are in the middle of the codes: as `read` finds them, or, of a file that is planned alone, as its configuration
/// states.
fn centred(here: &Scope<'_>, read: impl FnOnce() -> bool) -> bool {
    match here.checkpoint().is_planned() {
        true => here.checkpoint().quantization().is_some_and(|stated| stated.centred),
        false => read(),
    }
}

/// GPTQ's planes as they lie. Of zero points `zeros` has the codes, in lines of so many words; files of the first version, which hold one
/// less, have them made as floats.
fn gptq_in_place(
    here: &Scope<'_>,
    (n, k): (usize, usize),
    groups: &Groups<'_>,
    (zeros, words, bits): (&[u8], usize, usize),
    second: bool,
    ordered: bool,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    let zero = |group: usize, row: usize| code(&zeros[4 * group * words..][..4 * words], bits, row);
    let centre = 1 << (bits - 1);
    let symmetric =
        centred(here, || (0..groups.count).all(|group| (0..n).all(|row| zero(group, row) == centre)));
    let mut planes =
        vec![here.tensor("qweight", &[k * bits / 32, n])?, here.tensor("scales", &[groups.count, n])?];
    let kind = match (symmetric, second) {
        (true, _) => Zero::None,
        (_, true) => {
            planes.push(here.tensor("qzeros", &[groups.count, words])?);
            Zero::Codes
        }
        _ => {
            planes.push(make(here, [groups.count, n], groups.dtype, |to| {
                let places = (0..groups.count).flat_map(|group| (0..n).map(move |row| (group, row)));
                let (to, size) = (bytemuck::cast_slice_mut(to), groups.dtype.size());
                let to: &mut [u8] = to;
                for (to, (group, row)) in to.chunks_exact_mut(size).zip(places) {
                    to.copy_from_slice(&stored(groups.dtype, zero(group, row) as f32));
                }
            })?);
            Zero::Float
        }
    };
    let lie = if ordered { KMajor::ActOrder } else { KMajor::Gptq };
    if ordered {
        // Not where it lies: kernels take groups for granted that were checked.
        let order = here.bytes("g_idx", &[Dtype::I32], &[k])?;
        let known = |column: &usize| (word(order, *column) as usize) < groups.count;
        if let Some(column) = (0..k).find(|column| !known(column)) {
            let found = word(order, column) as i32;
            let reason = format!("column {column}: expected a group below {}, found {found}", groups.count);
            return Err(here.fault("g_idx", reason));
        }
        planes.push(make(here, [1, k], DType::I32, |to| {
            for (column, to) in to.iter_mut().enumerate() {
                *to = word(order, column);
            }
        })?);
    }
    let code = if bits == 4 { Code::Int4 } else { Code::Int8 };
    groups.in_place(here, (n, k), (code, kind, lie), planes, bias)
}

/// As [`sorted`], where columns of the matrix are to be in another order: weights in place have it as a part of their own.
pub(super) fn order(
    here: &Scope<'_>,
    name: &str,
    (n, k): (usize, usize),
) -> Result<Option<Vec<usize>>, WeightError> {
    let bits = here.info("qweight").map_or(0, |info| 32 * info.shape.first().unwrap_or(&0) / k.max(1));
    if matches!(bits, 4 | 8) && here.has("scales") && Groups::of(here, n, k)?.lie_well(here, n, k) {
        return Ok(None);
    }
    sorted(here, name, k)
}

/// The columns of a file sorted by the groups that `name`, i32 `[k]`, gives them, where that is another order: act-order writes columns
/// where they were, and their scales apart.
///
/// Errors: groups without a number, or of different sizes, but a shorter last one.
pub(super) fn sorted(here: &Scope<'_>, name: &str, k: usize) -> Result<Option<Vec<usize>>, WeightError> {
    if !here.has(name) {
        return Ok(None);
    }
    let groups = here.bytes(name, &[Dtype::I32], &[k])?;
    // Files without an order may have one of zeros; plans have no values.
    if here.checkpoint().is_planned() || groups.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let group = |column: usize| word(groups, column) as i32;
    let mut all: Vec<usize> = (0..k).collect();
    all.sort_by_key(|&column| group(column));
    let size = all.iter().take_while(|&&column| group(column) == 0).count();
    let fits = |(at, &column): (usize, &usize)| size > 0 && usize::try_from(group(column)) == Ok(at / size);
    if let Some((at, &column)) = all.iter().enumerate().find(|&pair| !fits(pair)) {
        return Err(here.fault(
            name,
            format!(
                "expected groups of one size, {size}, found column {column} in group {} at place {at}",
                group(column)
            ),
        ));
    }
    Ok((!all.is_sorted()).then_some(all))
}

fn made(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
    groups: &Groups<'_>,
    bits: usize,
    zero: &(dyn Fn(usize, usize) -> u32 + Sync),
    row: &(dyn Fn(usize, &mut [u32]) + Sync),
) -> Result<Weights, WeightError> {
    let (size, stored) = (groups.dtype.size(), groups.bytes);
    let scale = |row: usize, group: usize, to: &mut [u8]| {
        to.copy_from_slice(element(stored, size, group * n + row));
    };
    Planes {
        code: widened(bits).0,
        group: groups.group,
        codes: Codes::Rows(row),
        scales: Floats::Each(groups.dtype, &scale),
        factor: 1.0,
        zeros: Zeros::Codes(zero),
    }
    .weights(here, n, k, bias)
}
