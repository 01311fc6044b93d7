//! Storage formats of weight matrices.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smallvec::{SmallVec, smallvec};

use super::DType;
use crate::quant::Code;

/// How a weight matrix `[n, k]` lies in memory.
///
/// The text form is the spelling used everywhere: `bf16`, `int8g128`, `int4g32`, `int4g128z` (with zero points),
/// `int8row` (one scale a row), `fp8g128`; `zf` and `zo` are the other kinds of [`Zero`]; scales that are not bf16 follow a dot: `int4g128.f16`,
/// `fp4g32.e8m0`; planes along `n` follow an at sign: `int4g128z.f16@awq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// One plane `[n, k]` of floats.
    Dense(DType),
    /// Codes of a few bits, packed into words, in groups along `k` that share a scale.
    Grouped(Grouped),
    /// The same, with planes that lie along `n`.
    KMajor(Grouped, KMajor),
}

/// Weights `w = q s`, `q` what a code stands for, `s` the scale of its group times the factor of the tensor
/// ([`WeightPart::factor`](crate::WeightPart)); see [`Zero`] for what else a group may have.
///
/// Planes: `packed` i32 `[n, ceil(k * bits / 32)]`, low bits first along `k`; `scales` `[n, groups]`; with zero points that are codes also
/// `zeros` i32 `[ceil(n * bits / 32), groups]`, codes packed along `n`, with others `zeros` `[n, groups]` of the scales' type. Integers
/// lie as in the compressed-tensors `pack-quantized` layout. Where a file has one scale for several rows, each of them has it here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grouped {
    /// What codes stand for.
    pub code: Code,
    /// Weights along `k` that share a scale; 0 is the whole row.
    pub group: u32,
    /// What each group has beside a scale; of integers alone.
    pub zero: Zero,
    /// Type of the scales: f32, bf16, f16, or without floats in `zero` also e4m3 and e8m0.
    pub scale: DType,
}

impl Grouped {
    /// Whether there are such weights.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        let zeros = match self.zero {
            Zero::None => true,
            Zero::Codes => self.code.is_int(),
            Zero::Float | Zero::Offset => self.code.is_int() && self.scale.is_float(),
        };
        zeros && self.scale.is_scale()
    }
}

/// What a group of codes has beside its scale `s`, `q` what a code stands for and `u` its stored field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Zero {
    /// Nothing: `w = q s`.
    #[default]
    None,
    /// A zero point that is a code as well: `w = (u - z) s`.
    Codes,
    /// A zero point that is a float, in units of codes: `w = (u - z) s`.
    Float,
    /// A float in units of weights: `w = u s + z`.
    Offset,
}

impl Zero {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::None, Self::Codes, Self::Float, Self::Offset];

    /// Spelling in formats, after the group.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Codes => "z",
            Self::Float => "zf",
            Self::Offset => "zo",
        }
    }

    /// Spelling in kernels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Codes => "codes",
            Self::Float => "float",
            Self::Offset => "offset",
        }
    }
}

/// How planes of integers lie that run along `n`: in the files of two libraries. CPUs read them where they lie; other backends have
/// them as [`Format::Grouped`].
///
/// Scales are `[groups, n]`, and so are zero points that are floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KMajor {
    /// GPTQ's: `packed` i32 `[ceil(k * bits / 32), n]`, low bits first along `k`; `zeros` that are codes i32
    /// `[groups, ceil(n * bits / 32)]`, low bits first along `n`.
    Gptq,
    /// The same, with a plane `order` i32 `[1, k]` behind the others: the group of each column.
    ActOrder,
    /// AWQ's: `packed` i32 `[k, n / 8]` and `zeros` i32 `[groups, n / 8]`: of 8 neighbours along `n` field `j` is number
    /// [`AWQ_ORDER`]`[j]`.
    Awq,
}

/// Which of 8 neighbours each field of a word of AWQ's is, low bits first.
pub const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

impl KMajor {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Gptq, Self::ActOrder, Self::Awq];

    /// Spelling in formats.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gptq => "gptq",
            Self::ActOrder => "act-order",
            Self::Awq => "awq",
        }
    }

    /// Whether there are such weights with planes of this kind.
    #[must_use]
    pub const fn takes(self, grouped: Grouped) -> bool {
        let code = match self {
            Self::Awq => grouped.code.is_int() && grouped.code.bits() == 4,
            Self::Gptq | Self::ActOrder => grouped.code.is_int(),
        };
        code && grouped.scale.is_float() && !matches!(grouped.zero, Zero::Offset) && grouped.is_valid()
    }
}

/// Shape and type of one plane of a stored matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneShape {
    /// Name of the plane, as errors show it.
    pub name: &'static str,
    /// Rows of the plane.
    pub rows: usize,
    /// Columns of the plane.
    pub cols: usize,
    /// Element type of the plane.
    pub dtype: DType,
}

impl Default for Format {
    fn default() -> Self {
        Self::Dense(DType::F32)
    }
}

impl Format {
    /// Groups along an axis of `k` weights.
    #[must_use]
    pub fn groups(self, k: usize) -> usize {
        match self {
            Self::Dense(_) => 0,
            Self::Grouped(grouped) | Self::KMajor(grouped, _) => match grouped.group {
                0 => usize::from(k > 0),
                group => k.div_ceil(group as usize),
            },
        }
    }

    /// Weights along `k` that share a scale: `k` itself where a row has one.
    #[must_use]
    pub fn group_len(self, k: usize) -> usize {
        match self {
            Self::Dense(_) => k,
            Self::Grouped(grouped) | Self::KMajor(grouped, _) => match grouped.group {
                0 => k,
                group => group as usize,
            },
        }
    }

    /// The planes that store a matrix `[n, k]`.
    #[must_use]
    pub fn planes(self, n: usize, k: usize) -> SmallVec<[PlaneShape; 3]> {
        match self {
            Self::Dense(dtype) => smallvec![PlaneShape { name: "weight", rows: n, cols: k, dtype }],
            Self::Grouped(Grouped { code, zero, scale, .. }) => {
                let words = |count: usize| (count * code.bits()).div_ceil(32);
                let groups = self.groups(k);
                let mut planes: SmallVec<[PlaneShape; 3]> = smallvec![
                    PlaneShape { name: "packed", rows: n, cols: words(k), dtype: DType::I32 },
                    PlaneShape { name: "scales", rows: n, cols: groups, dtype: scale },
                ];
                match zero {
                    Zero::None => {}
                    Zero::Codes => {
                        planes.push(PlaneShape {
                            name: "zeros",
                            rows: words(n),
                            cols: groups,
                            dtype: DType::I32,
                        });
                    }
                    Zero::Float | Zero::Offset => {
                        planes.push(PlaneShape { name: "zeros", rows: n, cols: groups, dtype: scale });
                    }
                }
                planes
            }
            Self::KMajor(Grouped { code, zero, scale, .. }, kind) => {
                let words = |count: usize| (count * code.bits()).div_ceil(32);
                let groups = self.groups(k);
                let plane = |name, rows, cols, dtype| PlaneShape { name, rows, cols, dtype };
                let mut planes: SmallVec<[PlaneShape; 3]> = smallvec![
                    match kind {
                        KMajor::Awq => plane("packed", k, words(n), DType::I32),
                        KMajor::Gptq | KMajor::ActOrder => plane("packed", words(k), n, DType::I32),
                    },
                    plane("scales", groups, n, scale),
                ];
                match zero {
                    Zero::None => {}
                    Zero::Codes => planes.push(plane("zeros", groups, words(n), DType::I32)),
                    Zero::Float | Zero::Offset => planes.push(plane("zeros", groups, n, scale)),
                }
                if kind == KMajor::ActOrder {
                    planes.push(plane("order", 1, k, DType::I32));
                }
                planes
            }
        }
    }

    /// Bytes of a stored matrix `[n, k]`, all planes together.
    #[must_use]
    pub fn bytes(self, n: usize, k: usize) -> u64 {
        self.planes(n, k).iter().map(|p| (p.rows * p.cols * p.dtype.size()) as u64).sum()
    }

    /// The element type of a dense format.
    #[must_use]
    pub const fn dense(self) -> Option<DType> {
        match self {
            Self::Dense(dtype) => Some(dtype),
            Self::Grouped(_) | Self::KMajor(..) => None,
        }
    }

    /// The parts of a grouped format whose planes lie along `k`.
    #[must_use]
    pub const fn grouped(self) -> Option<Grouped> {
        match self {
            Self::Dense(_) | Self::KMajor(..) => None,
            Self::Grouped(grouped) => Some(grouped),
        }
    }

    /// What codes stand for and how groups are made, however planes lie.
    #[must_use]
    pub const fn codes(self) -> Option<Grouped> {
        match self {
            Self::Dense(_) => None,
            Self::Grouped(grouped) | Self::KMajor(grouped, _) => Some(grouped),
        }
    }

    /// Why a kernel that reads planes along `k` cannot run this, if so.
    pub(crate) fn reject_k_major(self) -> Option<crate::select::Reject> {
        let why = "takes no planes along n: weights are reordered where they are uploaded";
        matches!(self, Self::KMajor(..)).then(|| why.into())
    }

    /// The format that the weights have once they are reordered along `k`.
    #[must_use]
    pub const fn reordered(self) -> Self {
        match self {
            Self::KMajor(grouped, _) => Self::Grouped(grouped),
            other => other,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Dense(dtype) => dtype.fmt(f),
            Self::KMajor(grouped, kind) => write!(f, "{}@{}", Self::Grouped(grouped), kind.name()),
            Self::Grouped(Grouped { code, group, zero, scale }) => {
                f.write_str(code.name())?;
                if group == 0 {
                    f.write_str("row")?;
                } else {
                    write!(f, "g{group}")?;
                }
                f.write_str(zero.suffix())?;
                if scale == DType::BF16 { Ok(()) } else { write!(f, ".{scale}") }
            }
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let codes: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
            format!(
                "unknown format `{text}`; expected f32, bf16, f16, or one of {} with g<group> or row, then of integers z, zf or zo \
                 for zero points (codes, floats, offsets), then .f32, .f16, .e4m3 or .e8m0 for scales that are not bf16, then @gptq, \
                 @act-order or @awq for integers that lie along n (int4g128, int8row, int4g32z.f16, fp8g128.f32, fp4g32.e8m0, \
                 int4g128z.f16@awq)",
                codes.join(", ")
            )
        };
        if let Some((planes, kind)) = text.split_once('@') {
            let grouped = planes.parse::<Self>()?.grouped().ok_or_else(wrong)?;
            let kind = KMajor::ALL.into_iter().find(|known| known.name() == kind).ok_or_else(wrong)?;
            return if kind.takes(grouped) { Ok(Self::KMajor(grouped, kind)) } else { Err(wrong()) };
        }
        if let Ok(dtype) = text.parse::<DType>() {
            return if dtype.is_float() { Ok(Self::Dense(dtype)) } else { Err(wrong()) };
        }
        let (head, scale) = match text.split_once('.') {
            Some((head, scale)) => (head, scale.parse::<DType>().map_err(|_| wrong())?),
            None => (text, DType::BF16),
        };
        let (head, zero) = Zero::ALL
            .into_iter()
            .rev()
            .find_map(|zero| Some((head.strip_suffix(zero.suffix())?, zero)))
            .ok_or_else(wrong)?;
        let (code, rest) = Code::ALL
            .iter()
            .find_map(|&code| Some((code, head.strip_prefix(code.name())?)))
            .ok_or_else(wrong)?;
        let group = match rest {
            "row" => 0,
            _ => rest
                .strip_prefix('g')
                .and_then(|g| g.parse::<u32>().ok())
                .filter(|&g| g > 0)
                .ok_or_else(wrong)?,
        };
        let grouped = Grouped { code, group, zero, scale };
        if grouped.is_valid() { Ok(Self::Grouped(grouped)) } else { Err(wrong()) }
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        for text in [
            "f32",
            "bf16",
            "f16",
            "int8g128",
            "int4g32",
            "int4g128z",
            "int8row",
            "int4g64z.f16",
            "int8row.f32",
            "fp8row",
            "fp8g128.f32",
            "fp4g16.e4m3",
            "fp4g32.e8m0",
            "nf4g64.f32",
            "bnb4g64.f32",
            "int4g64zo",
            "int8g64zf.f16",
            "int4g128z.f16@awq",
            "int8row@gptq",
            "int4g32zf.f16@act-order",
        ] {
            assert_eq!(text.parse::<Format>().map(|f| f.to_string()).as_deref(), Ok(text));
        }
        for text in [
            "",
            "i8",
            "int4",
            "int4g0",
            "int3g32",
            "int4g128.i8",
            "int4g12x",
            "bf16z",
            "fp8g128z",
            "fp8",
            "int4g64zo.e4m3",
            "e4m3",
            "int8g32@awq",
            "fp8g32@gptq",
            "int4g32zo@gptq",
            "int4g32@",
            "bf16@awq",
            "int4g32@gptq@awq",
        ] {
            assert!(text.parse::<Format>().is_err(), "{text}");
        }
    }

    #[test]
    fn planes_follow_the_published_layout() {
        let format =
            Format::Grouped(Grouped { code: Code::Int4, group: 128, zero: Zero::Codes, scale: DType::F16 });
        let planes = format.planes(10, 300);
        assert_eq!((planes[0].rows, planes[0].cols), (10, 38));
        assert_eq!((planes[1].rows, planes[1].cols), (10, 3));
        assert_eq!((planes[2].rows, planes[2].cols), (2, 3));
        assert_eq!(format.bytes(10, 300), 10 * 38 * 4 + 10 * 3 * 2 + 2 * 3 * 4);
        let shapes = |text: &str| {
            let format: Format = text.parse().expect("a format");
            format.planes(16, 300).iter().map(|plane| [plane.rows, plane.cols]).collect::<Vec<_>>()
        };
        assert_eq!(shapes("int4g128z.f16@awq"), [[300, 2], [3, 16], [3, 2]]);
        assert_eq!(shapes("int4g128z.f16@gptq"), [[38, 16], [3, 16], [3, 2]]);
        assert_eq!(shapes("int8g128@act-order"), [[75, 16], [3, 16], [1, 300]]);
    }
}
