//! What machine a benchmark ran on.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use ocelli_kernels::cpu::isa::Isa;

/// One cache of the first core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// 1 is the nearest to the core.
    pub level: u32,
    /// `data`, `instruction` or `unified`.
    pub kind: String,
    /// Size in bytes.
    pub bytes: u64,
    /// The processors that share it, as the system spells the list.
    pub shared: String,
}

/// A GPU that a run was on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adapter {
    /// The GPU as its vendor names it.
    pub name: String,
    /// The API that drives it: Vulkan, Metal, Dx12.
    pub api: String,
    /// The driver and its version.
    pub driver: String,
    /// Whether the host's CPU does the work.
    pub software: bool,
    /// What measured the time: `device` (its own clock) or `host`.
    pub clock: String,
    /// Microseconds from a submission of almost no work until the host knows that it is done.
    pub submit_us: f64,
}

/// The machine, as far as its figures depend on it. What the system does not tell is empty or absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Model name of the processor.
    pub cpu: String,
    /// Target architecture, e.g. `x86_64`.
    pub arch: String,
    /// The instruction set level in use: `scalar`, `avx2`, `avx512` or `neon`.
    pub isa: String,
    /// Instruction set extensions beyond the level that kernels ask for.
    pub features: Vec<String>,
    /// Threads in use.
    pub threads: usize,
    /// Processors that the system has online.
    pub processors: usize,
    /// Caches of the first core.
    pub caches: Vec<Cache>,
    /// Size of the memory in bytes; 0 where unknown.
    pub memory_bytes: u64,
    /// Operating system and kernel version.
    pub os: String,
    /// Clock of the first core at the start of the run in MHz, where the system tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_mhz: Option<u32>,
    /// Load average of the last minute when the run started, times 100: what else ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_percent: Option<u32>,
    /// Commit that the binary was built from.
    pub commit: String,
    /// The GPU, where the kernels ran on one; the rest describes its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Adapter>,
}

impl Machine {
    /// Describes this machine for a run at level `isa` with `threads` threads.
    pub fn describe(isa: Isa, threads: usize) -> Machine {
        Machine {
            cpu: cpu_model(),
            arch: std::env::consts::ARCH.to_owned(),
            isa: isa.level().name().to_owned(),
            features: features(isa),
            threads,
            processors: std::thread::available_parallelism().map_or(1, |n| n.get()),
            caches: caches(),
            memory_bytes: memory_bytes().unwrap_or(0),
            os: os(),
            clock_mhz: cpuinfo("cpu MHz").and_then(|s| s.parse::<f64>().ok()).map(|mhz| mhz as u32),
            load_percent: load_percent(),
            commit: env!("OCELLI_COMMIT").to_owned(),
            adapter: None,
        }
    }
}

/// What else happened on the machine while something was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Disturbed {
    /// Share of the time of all processors that other processes took, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_percent: Option<f64>,
    /// Share that the host of a virtual machine gave to others while this one had work, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stolen_percent: Option<f64>,
    /// How often cores were slowed down for heat, where the system counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttled: Option<u64>,
}

/// Shares above which a machine is called busy, in percent.
const BUSY: f64 = 5.0;

impl Disturbed {
    /// What is to be said, if anything.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if let Some(share) = self.foreign_percent.filter(|share| *share > BUSY) {
            words.push(format!("the machine was busy: other processes took {share:.0}% of its processors"));
        }
        if let Some(share) = self.stolen_percent.filter(|share| *share > BUSY) {
            words
                .push(format!("the machine was busy: its host kept {share:.0}% of the processors to itself"));
        }
        if let Some(count) = self.throttled.filter(|count| *count > 0) {
            words.push(format!("cores were slowed down for heat {count} times"));
        }
        words
    }
}

/// Watches what else happens on the machine.
pub struct Watch {
    begin: Times,
}

/// Clock ticks so far of all processors and of this process, and how often cores were slowed down.
#[derive(Clone, Copy, Default)]
struct Times {
    all: Option<Ticks>,
    own: Option<u64>,
    throttled: Option<u64>,
}

/// Ticks of all processors.
#[derive(Clone, Copy)]
struct Ticks {
    busy: u64,
    stolen: u64,
    total: u64,
}

impl Times {
    fn now() -> Self {
        let all = fs::read_to_string("/proc/stat").ok().and_then(|text| ticks(&text));
        let own = fs::read_to_string("/proc/self/stat").ok().and_then(|text| own_ticks(&text));
        let count = |cpu: usize| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count");
            fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()
        };
        let throttled = count(0).map(|_| (0..).map_while(count).sum());
        Self { all, own, throttled }
    }
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
fn ticks(text: &str) -> Option<Ticks> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let of: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).take(8).collect();
    let &[user, nice, system, idle, iowait, irq, softirq, stolen] = &of[..] else { return None };
    let busy = user + nice + system + irq + softirq;
    Some(Ticks { busy, stolen, total: busy + stolen + idle + iowait })
}

/// `utime` and `stime` of `/proc/self/stat`; the name before them may have blanks and brackets.
fn own_ticks(text: &str) -> Option<u64> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

impl Watch {
    /// From now on.
    #[must_use]
    pub fn begin() -> Self {
        Self { begin: Times::now() }
    }

    /// What happened since.
    #[must_use]
    pub fn end(&self) -> Disturbed {
        let (now, begin) = (Times::now(), self.begin);
        let all = now.all.zip(begin.all).filter(|(now, begin)| now.total > begin.total);
        let share = |part: u64, all: (Ticks, Ticks)| 100.0 * part as f64 / (all.0.total - all.1.total) as f64;
        let own = now.own.zip(begin.own).map(|(now, begin)| now.saturating_sub(begin));
        Disturbed {
            foreign_percent: all
                .zip(own)
                .map(|(all, own)| share((all.0.busy - all.1.busy).saturating_sub(own), all)),
            stolen_percent: all.map(|all| share(all.0.stolen.saturating_sub(all.1.stolen), all)),
            throttled: now.throttled.zip(begin.throttled).map(|(now, begin)| now.saturating_sub(begin)),
        }
    }
}

/// Joules that the packages of the machine have taken since some moment, where the system tells it to this process. The counters wrap.
#[must_use]
pub fn energy_joules() -> Option<f64> {
    let domains = fs::read_dir("/sys/class/powercap").ok()?;
    let mut total = None;
    for domain in domains.flatten() {
        let name = domain.file_name().to_string_lossy().into_owned();
        // Packages alone: what is inside them has a second colon.
        if !name.starts_with("intel-rapl:") || name.matches(':').count() != 1 {
            continue;
        }
        let Ok(text) = fs::read_to_string(domain.path().join("energy_uj")) else { continue };
        let Ok(micro) = text.trim().parse::<f64>() else { continue };
        total = Some(total.unwrap_or(0.0) + micro / 1e6);
    }
    total
}

/// Size of the memory in bytes.
pub fn memory_bytes() -> Option<u64> {
    let text = match fs::read_to_string("/proc/meminfo") {
        Ok(text) => text,
        Err(_) => return sysctl("hw.memsize")?.parse().ok(),
    };
    let kib = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?.trim();
    Some(kib.parse::<u64>().ok()? * 1024)
}

/// Size in bytes of the cache that is the last before memory.
pub fn last_cache_bytes() -> Option<u64> {
    caches().into_iter().max_by_key(|c| c.level).map(|c| c.bytes)
}

/// Asks for huge pages for `bytes` from `start` on; a wish that the system may ignore.
///
/// Only whole pages inside the range are advised, so a range of any alignment may be passed.
pub fn advise_huge_pages(start: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let skip = start.align_offset(PAGE).min(bytes);
        let whole = (bytes - skip) / PAGE * PAGE;
        if whole > 0 {
            // SAFETY: the pages lie inside the caller's allocation, and the advice changes no contents.
            unsafe { libc::madvise(start.wrapping_add(skip).cast(), whole, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

fn cpuinfo(key: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn sysctl(name: &str) -> Option<String> {
    let output = Command::new("sysctl").args(["-n", name]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn cpu_model() -> String {
    cpuinfo("model name")
        .or_else(|| sysctl("machdep.cpu.brand_string"))
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn features(isa: Isa) -> Vec<String> {
    let known = [("vnni", isa.vnni()), ("bf16", isa.bf16()), ("amx", isa.amx())];
    known.iter().filter(|(_, has)| *has).map(|(name, _)| (*name).to_owned()).collect()
}

fn caches() -> Vec<Cache> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/cpu0/cache") else {
        return vec![];
    };
    let mut caches: Vec<Cache> = entries.filter_map(|e| cache(&e.ok()?.path())).collect();
    caches.sort_by(|a, b| (a.level, &a.kind).cmp(&(b.level, &b.kind)));
    caches
}

fn cache(folder: &Path) -> Option<Cache> {
    let read = |name: &str| Some(fs::read_to_string(folder.join(name)).ok()?.trim().to_owned());
    Some(Cache {
        level: read("level")?.parse().ok()?,
        kind: read("type")?.to_lowercase(),
        bytes: size_bytes(&read("size")?)?,
        shared: read("shared_cpu_list").unwrap_or_default(),
    })
}

/// Bytes of a size as the system spells it: `48K`, `2M` or plain bytes.
fn size_bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 1 << 10),
        b'M' => (&text[..text.len() - 1], 1 << 20),
        b'G' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    Some(digits.parse::<u64>().ok()? * unit)
}

fn os() -> String {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease").ok().or_else(|| sysctl("kern.osrelease"));
    format!("{} {}", std::env::consts::OS, version.unwrap_or_default().trim()).trim().to_owned()
}

fn load_percent() -> Option<u32> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    Some((text.split_whitespace().next()?.parse::<f64>().ok()? * 100.0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size_bytes("48K"), Some(48 << 10));
        assert_eq!(size_bytes("2M"), Some(2 << 20));
        assert_eq!(size_bytes("512"), Some(512));
        assert_eq!(size_bytes("big"), None);
        assert_eq!(size_bytes(""), None);
    }

    #[test]
    fn describes_this_machine() {
        let machine = Machine::describe(Isa::SCALAR, 3);
        assert!(!machine.cpu.is_empty() && !machine.commit.is_empty());
        assert_eq!((machine.isa.as_str(), machine.threads), ("scalar", 3));
        let text = serde_json::to_string(&machine).unwrap();
        assert_eq!(serde_json::from_str::<Machine>(&text).unwrap(), machine);
    }

    #[test]
    fn other_work_is_told_from_ours() {
        let found = ticks("cpu  100 5 20 900 10 1 2 30 0 0\ncpu0 1").expect("ticks");
        assert_eq!((found.busy, found.stolen, found.total), (128, 30, 1068));
        assert!(ticks("intr 1").is_none() && ticks("cpu  1 2").is_none());
        let stat = "7 (a (b) c) R 1 7 7 0 -1 4194304 99 0 0 0 250 50 0 0 20 0 2 0 100";
        assert_eq!(own_ticks(stat), Some(300));
        let quiet = Disturbed { foreign_percent: Some(1.0), stolen_percent: Some(0.0), throttled: Some(0) };
        assert!(quiet.words().is_empty());
        let busy = Disturbed { foreign_percent: Some(40.0), stolen_percent: Some(20.0), throttled: Some(3) };
        assert_eq!(busy.words().len(), 3);
    }

    #[test]
    fn any_range_may_be_advised() {
        let mut bytes = vec![7_u8; 3 << 20];
        advise_huge_pages(bytes.as_mut_ptr().wrapping_add(1), bytes.len() - 1);
        advise_huge_pages(bytes.as_mut_ptr(), 10);
        assert!(bytes.iter().all(|&b| b == 7));
    }
}
