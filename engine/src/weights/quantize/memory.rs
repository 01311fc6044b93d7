//! Memory of the host that is free.

/// Bytes that the operating system has left, where it says.
pub fn free() -> Option<u64> {
    of(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn of(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

/// What is wanted and what there is, in words, where the one is more than the other; a system that does not say has enough.
pub fn lacks(wanted: u64, free: Option<u64>) -> Option<String> {
    let free = free.filter(|free| *free < wanted)?;
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    Some(format!("{} MB, {} MB are free", megabytes(wanted), megabytes(free)))
}

#[cfg(test)]
mod tests {
    use super::super::gptq::Corrections;
    use super::*;

    #[test]
    fn what_is_free_is_compared_with_what_is_wanted() {
        assert_eq!(of("MemTotal: 9 kB\nMemAvailable:    1024 kB\n"), Some(1 << 20));
        assert_eq!((of("MemTotal: 9 kB\n"), of("MemAvailable: many kB\n")), (None, None));
        assert_eq!((lacks(5, Some(5)), lacks(5, None)), (None, None));
        // The matrix of a row of 11008 weights, and some of its columns.
        let bytes = Corrections::bytes(11_008);
        assert!(bytes > 4 * 11_008 * 11_008 && bytes < 510_000_000, "{bytes}");
        let text = lacks(bytes, Some(100_000_000)).unwrap();
        assert_eq!(text, format!("{} MB, 100 MB are free", bytes.div_ceil(1_000_000)));
    }
}
