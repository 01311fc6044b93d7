//! Architectures of NVIDIA GPUs that kernels are compiled for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A target of the CUDA compiler, oldest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Arch {
    /// Ampere: A100.
    #[default]
    #[serde(rename = "sm_80")]
    Sm80,
    /// Ampere: RTX 30.
    #[serde(rename = "sm_86")]
    Sm86,
    /// Ada: RTX 40, L4, L40S.
    #[serde(rename = "sm_89")]
    Sm89,
    /// Hopper with its own instructions: H100, H200.
    #[serde(rename = "sm_90a")]
    Sm90a,
    /// Blackwell: RTX 50.
    #[serde(rename = "sm_120")]
    Sm120,
}

impl Arch {
    /// Every architecture.
    pub const ALL: [Self; 5] = [Self::Sm80, Self::Sm86, Self::Sm89, Self::Sm90a, Self::Sm120];

    /// The compiler's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm86 => "sm_86",
            Self::Sm89 => "sm_89",
            Self::Sm90a => "sm_90a",
            Self::Sm120 => "sm_120",
        }
    }

    /// What `__CUDA_ARCH__` is in its kernels.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Sm80 => 800,
            Self::Sm86 => 860,
            Self::Sm89 => 890,
            Self::Sm90a => 900,
            Self::Sm120 => 1200,
        }
    }

    /// The architecture whose machine code a GPU of this compute capability runs; `None` below 8.0, and where none fits.
    #[must_use]
    pub const fn of(major: u32, minor: u32) -> Option<Self> {
        match (major, minor) {
            (8, 9) => Some(Self::Sm89),
            (8, 6..=8) => Some(Self::Sm86),
            (8, _) => Some(Self::Sm80),
            (9, 0) => Some(Self::Sm90a),
            (12, _) => Some(Self::Sm120),
            _ => None,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|arch| arch.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|arch| arch.name()).collect();
            format!("unknown architecture `{text}`; expected {}", names.join(", "))
        })
    }
}
