//! Instruction-set levels: what this machine has and what a kernel may use.
//!
//! An [`Isa`] can only be obtained for a level that the machine has, so holding one is the proof that kernels need
//! before they enter code compiled for that level.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// The environment variable that caps the level: `scalar`, `avx2`, `avx512` or `neon`.
pub const ISA_ENV: &str = "OCELLI_ISA";

/// An instruction-set level for which every kernel is instantiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Portable code: what the compiler makes of plain arrays.
    #[default]
    Scalar,
    /// AVX2 with FMA and F16C: 8 f32 lanes, 16 registers.
    Avx2,
    /// AVX-512 F, BW, VL, DQ, with FMA and F16C: 16 f32 lanes, 32 registers.
    Avx512,
    /// AArch64 NEON: 4 f32 lanes, 32 registers.
    Neon,
}

impl Level {
    /// Every level, whether or not this machine has it.
    pub const ALL: [Level; 4] = [Level::Scalar, Level::Avx2, Level::Avx512, Level::Neon];

    /// The spelling used in `OCELLI_ISA` and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Neon => "neon",
        }
    }

    fn present(self) -> bool {
        match self {
            Level::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.present()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(target_arch = "aarch64")]
            Level::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[allow(unreachable_patterns, reason = "which levels can be present depends on the architecture")]
            _ => false,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = IsaError;

    fn from_str(s: &str) -> Result<Self, IsaError> {
        Level::ALL
            .into_iter()
            .find(|l| l.name() == s)
            .ok_or_else(|| IsaError::Unknown { found: s.to_owned() })
    }
}

/// Why an instruction-set level cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The name is not one of the known levels.
    #[error("OCELLI_ISA: expected one of scalar, avx2, avx512, neon, found {found:?}")]
    Unknown {
        /// What was given.
        found: String,
    },
    /// The level exists, but not on this machine.
    #[error("instruction set {level}: expected a level that this machine has ({}), found {level}", names())]
    Missing {
        /// The level asked for.
        level: Level,
    },
}

fn names() -> String {
    Isa::available().iter().map(|i| i.level().name()).collect::<Vec<_>>().join(", ")
}

/// A level that this machine has, with the optional extensions usable at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isa {
    level: Level,
    vnni: bool,
    bf16: bool,
    amx: bool,
}

impl Isa {
    /// The level that kernels should use: the machine's best, or the one that `OCELLI_ISA` names.
    ///
    /// Errors: `OCELLI_ISA` holds an unknown name, or a level that the machine lacks.
    pub fn detect() -> Result<Isa, IsaError> {
        static DETECTED: OnceLock<Result<Isa, IsaError>> = OnceLock::new();
        DETECTED
            .get_or_init(|| match std::env::var_os(ISA_ENV) {
                None => Ok(Isa::best()),
                Some(v) if v.is_empty() => Ok(Isa::best()),
                Some(v) => Isa::named(&v.to_string_lossy()),
            })
            .clone()
    }

    /// The level called `name`, as `OCELLI_ISA` spells it.
    pub fn named(name: &str) -> Result<Isa, IsaError> {
        Isa::at(name.trim().to_ascii_lowercase().parse()?)
    }

    /// `level`, if this machine has it.
    pub fn at(level: Level) -> Result<Isa, IsaError> {
        if !level.present() {
            return Err(IsaError::Missing { level });
        }
        let (vnni, bf16) = extensions(level);
        Ok(Isa { level, vnni, bf16, amx: bf16 && tiles_granted() })
    }

    /// The machine's best level, whatever `OCELLI_ISA` says.
    pub fn best() -> Isa {
        Isa::available().pop().unwrap_or(Isa::SCALAR)
    }

    /// Every level that this machine has, from the narrowest to the widest.
    pub fn available() -> Vec<Isa> {
        Level::ALL.into_iter().filter_map(|l| Isa::at(l).ok()).collect()
    }

    /// Portable code, which every machine has.
    pub const SCALAR: Isa = Isa { level: Level::Scalar, vnni: false, bf16: false, amx: false };

    /// The level.
    pub const fn level(self) -> Level {
        self.level
    }

    /// Whether `vpdpbusd` is there at this level: AVX512_VNNI under AVX-512, AVX-VNNI under AVX2.
    pub const fn vnni(self) -> bool {
        self.vnni
    }

    /// Whether AVX512_BF16 (`vdpbf16ps`) is there; only ever true under AVX-512.
    pub const fn bf16(self) -> bool {
        self.bf16
    }

    /// Whether matrix tiles (AMX) multiply bf16 and the system lets this process use them; only ever true where [`bf16`](Self::bf16) is.
    pub const fn amx(self) -> bool {
        self.amx
    }

    /// Whether lines that are read once are best asked for past the second-level cache. On the Xeon that it was tried on, that took more than
    /// half of the bandwidth of memory away.
    pub fn reads_once(self) -> bool {
        !is_intel()
    }

    /// Whether `vdpbf16ps` has a higher rate than f32 FMA. Intel's cores start one every other cycle, which halves the FMA
    /// rate; AMD's double it.
    pub fn bf16_gains(self) -> bool {
        self.bf16 && !is_intel()
    }

    /// The same level with the optional extensions switched off, for tests of the code that does without them.
    pub const fn without_extensions(self) -> Isa {
        Isa { vnni: false, bf16: false, amx: false, ..self }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.level.name())?;
        if self.vnni {
            f.write_str("+vnni")?;
        }
        if self.bf16 {
            f.write_str("+bf16")?;
        }
        if self.amx {
            f.write_str("+amx")?;
        }
        Ok(())
    }
}

/// Whether the CPU names Intel as its vendor. Asked once: choosing a kernel must not cost the microseconds that `cpuid` takes in a
/// virtual machine.
fn is_intel() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static INTEL: OnceLock<bool> = OnceLock::new();
        *INTEL.get_or_init(|| {
            let id = std::arch::x86_64::__cpuid(0);
            [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether there are matrix tiles that multiply bf16, and the system lets this process use them, which it has to be asked for: their
/// registers make each thread's state larger.
fn tiles_granted() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        /// AMX-BF16 and AMX-TILE in `edx` of leaf 7.
        const TILES: u32 = 1 << 22 | 1 << 24;
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XTILEDATA: libc::c_long = 18;
        static GRANTED: OnceLock<bool> = OnceLock::new();
        *GRANTED.get_or_init(|| {
            __cpuid(0).eax >= 7
                && __cpuid_count(7, 0).edx & TILES == TILES
                // SAFETY: the call asks for a permission and touches no memory.
                && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
        })
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

/// (vnni, bf16) at `level`.
fn extensions(level: Level) -> (bool, bool) {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => (is_x86_feature_detected!("avxvnni"), false),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => (is_x86_feature_detected!("avx512vnni"), is_x86_feature_detected!("avx512bf16")),
        _ => (false, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_names_are_refused() {
        for l in Level::ALL {
            assert_eq!(l.name().parse::<Level>(), Ok(l));
        }
        let e = Isa::named("sse9").unwrap_err();
        assert!(e.to_string().contains("sse9") && e.to_string().contains("avx512"), "{e}");
    }

    #[test]
    fn missing_levels_are_refused_and_present_ones_listed() {
        let have: Vec<Level> = Isa::available().iter().map(|i| i.level()).collect();
        assert_eq!(have[0], Level::Scalar);
        assert_eq!(Isa::best().level(), *have.last().unwrap());
        for l in Level::ALL {
            match Isa::at(l) {
                Ok(i) => assert!(have.contains(&l) && i.level() == l),
                Err(e) => {
                    assert!(!have.contains(&l));
                    assert!(e.to_string().contains(l.name()), "{e}");
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        assert_eq!(Isa::at(Level::Neon), Err(IsaError::Missing { level: Level::Neon }));
    }
}
