//! Numbers for people.

/// Bytes in decimal units: `512 B`, `3.20 MB`.
pub fn bytes(bytes: u64) -> String {
    if bytes < 1000 { format!("{bytes} B") } else { format!("{}B", scaled(bytes)) }
}

/// A count: `950`, `3.20 M`, `214 G`.
pub fn count(count: u64) -> String {
    if count < 1000 { count.to_string() } else { scaled(count) }
}

fn scaled(value: u64) -> String {
    let mut scaled = value as f64;
    let mut unit = "";
    for next in ["k", "M", "G", "T", "P", "E"] {
        if scaled < 999.5 {
            break;
        }
        scaled /= 1e3;
        unit = next;
    }
    let digits = if scaled < 9.995 { 2 } else { usize::from(scaled < 99.95) };
    format!("{scaled:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.00 kB");
        assert_eq!(bytes(12_345_678), "12.3 MB");
        assert_eq!(count(999_600), "1.00 M");
        assert_eq!(count(214_000_000_000), "214 G");
        assert_eq!(count(7), "7");
    }
}
