//! The instruction set level that roofs are measured for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A level of CPU instructions, in the spelling of `OCELLI_ISA`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isa {
    /// What every processor of the target has.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ; VNNI and BF16 where the machine has them.
    Avx512,
    /// NEON of aarch64; the dot product where the machine has it.
    Neon,
}

impl Isa {
    /// The spelling in `OCELLI_ISA`, records and tables.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }

    /// The level of this spelling, if it is one.
    pub fn parse(name: &str) -> Option<Isa> {
        [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Neon].into_iter().find(|l| l.name() == name)
    }

    /// Every level that this machine runs, lowest first.
    pub fn available() -> Vec<Isa> {
        let mut levels = vec![Isa::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                levels.push(Isa::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                {
                    levels.push(Isa::Avx512);
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        levels.push(Isa::Neon);
        levels
    }

    /// The highest level that this machine runs and that `OCELLI_ISA` allows.
    ///
    /// A value of `OCELLI_ISA` that is no level of this machine caps at the highest level below it.
    pub fn current() -> Isa {
        let available = Isa::available();
        let best = available.last().copied().unwrap_or(Isa::Scalar);
        match std::env::var("OCELLI_ISA").ok().as_deref().and_then(Isa::parse) {
            None => best,
            Some(Isa::Scalar) => Isa::Scalar,
            Some(Isa::Avx2) if best == Isa::Avx512 => Isa::Avx2,
            Some(_) => best,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Isa;

    #[test]
    fn spellings_round_trip() {
        for level in [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Neon] {
            assert_eq!(Isa::parse(level.name()), Some(level));
            assert_eq!(serde_json::to_string(&level).unwrap(), format!("\"{level}\""));
        }
        assert_eq!(Isa::parse("sse2"), None);
    }

    #[test]
    fn current_is_available() {
        assert!(Isa::available().contains(&Isa::current()));
    }
}
