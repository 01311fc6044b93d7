//! Element types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Type of one element of a [`View`](crate::View).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE single precision.
    #[default]
    F32,
    /// bfloat16: the upper half of an f32.
    BF16,
    /// IEEE half precision.
    F16,
    /// Signed byte.
    I8,
    /// Unsigned byte.
    U8,
    /// Signed 32-bit integer; also the words of packed quantized weights.
    I32,
    /// 8-bit float without infinities, see [`e4m3`](crate::quant::e4m3): a scale of quantized weights.
    E4M3,
    /// A power of two by its exponent, `2^(byte - 127)`, 255 for NaN: a scale of quantized weights.
    E8M0,
}

impl DType {
    /// Every element type.
    pub const ALL: [Self; 8] =
        [Self::F32, Self::BF16, Self::F16, Self::I8, Self::U8, Self::I32, Self::E4M3, Self::E8M0];

    /// Size of one element in bytes, which is also its alignment.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::BF16 | Self::F16 => 2,
            Self::I8 | Self::U8 | Self::E4M3 | Self::E8M0 => 1,
        }
    }

    /// Whether activations can have this type.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::BF16 | Self::F16)
    }

    /// Whether scales of quantized weights can have this type.
    #[must_use]
    pub const fn is_scale(self) -> bool {
        self.is_float() || matches!(self, Self::E4M3 | Self::E8M0)
    }

    /// Spelling in specs, records and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::E4M3 => "e4m3",
            Self::E8M0 => "e8m0",
        }
    }

    /// Unit roundoff of storing a value as this type; zero for integers and types of which only stored values are read.
    #[must_use]
    pub const fn roundoff(self) -> f64 {
        match self {
            Self::F32 => 1.0 / 16_777_216.0,
            Self::BF16 => 1.0 / 256.0,
            Self::F16 => 1.0 / 2048.0,
            Self::I8 | Self::U8 | Self::I32 | Self::E4M3 | Self::E8M0 => 0.0,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| {
            format!("unknown dtype `{text}`; expected f32, bf16, f16, i8, u8, i32, e4m3 or e8m0")
        })
    }
}

impl Serialize for DType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for DType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A Rust type that is the in-memory form of one [`DType`].
///
/// # Safety
/// `Self` has the size and alignment that `DTYPE` states, and every bit pattern is a value of it.
pub unsafe trait Element: bytemuck::Pod + Send + Sync {
    /// The element type that `Self` stores.
    const DTYPE: DType;
}

// SAFETY: four bytes, aligned to four, plain data.
unsafe impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
// SAFETY: a transparent u16.
unsafe impl Element for half::bf16 {
    const DTYPE: DType = DType::BF16;
}
// SAFETY: a transparent u16.
unsafe impl Element for half::f16 {
    const DTYPE: DType = DType::F16;
}
// SAFETY: one byte, plain data.
unsafe impl Element for i8 {
    const DTYPE: DType = DType::I8;
}
// SAFETY: one byte, plain data.
unsafe impl Element for u8 {
    const DTYPE: DType = DType::U8;
}
// SAFETY: four bytes, aligned to four, plain data.
unsafe impl Element for i32 {
    const DTYPE: DType = DType::I32;
}
