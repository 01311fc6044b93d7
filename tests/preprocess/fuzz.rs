//! Damaged pictures: an answer or an error for each, in bounded time and memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ocelli_engine::image::{DecodeOptions, decode_bytes};

/// Counts live heap bytes and their peak, and refuses allocations over [`MOST`].
struct Counting;

thread_local! {
    /// Most bytes that one allocation of this thread gets.
    static MOST: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Runs `f` while no allocation of this thread gets more than `bytes` bytes.
pub(crate) fn at_most<T>(bytes: usize, f: impl FnOnce() -> T) -> T {
    MOST.set(bytes);
    let result = f();
    MOST.set(usize::MAX);
    result
}

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > MOST.get() {
            return std::ptr::null_mut();
        }
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `at` came from `alloc` above with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The checksum of PNG chunks.
pub(crate) fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    })
}

/// Makes the checksums of a damaged PNG right again, so that the damage reaches the decoder.
fn repair_png(bytes: &mut [u8]) {
    let mut at = 8;
    while let Some(length) = bytes.get(at..at + 4) {
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let Some(end) = at.checked_add(8 + length).filter(|end| end + 4 <= bytes.len()) else { return };
        let crc = crc32(&bytes[at + 4..end]);
        bytes[end..end + 4].copy_from_slice(&crc.to_be_bytes());
        at = end + 4;
    }
}

/// xorshift64*: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

fn damage(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        // Headers are where sizes and counts are.
        let at = if random.below(4) > 0 { at } else { at % 64.min(bytes.len()) };
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 => bytes[at..].iter_mut().take(4).for_each(|b| *b = 0xff),
            3 => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let from = random.below(other.len());
                let piece = &other[from..(from + 1 + random.below(64)).min(other.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
            _ => bytes.truncate(bytes.len() - random.below(bytes.len() / 2)),
        }
        if bytes.len() < 32 {
            bytes.resize(32, 0);
        }
    }
}

#[test]
fn damaged_pictures() {
    const SEED: u64 = 0x0ce1_1100;
    const ROUNDS: usize = 150;
    let mut seeds: Vec<(String, Vec<u8>)> = ["pictures", "faults"]
        .into_iter()
        .flat_map(|folder| std::fs::read_dir(crate::golden(folder)).unwrap())
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().extension().is_some_and(|e| e != "safetensors"))
        .filter(|entry| !entry.file_name().to_str().unwrap().ends_with(".ref.png"))
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    seeds.sort();
    let options = DecodeOptions { max_pixels: 1_000_000, ..Default::default() };
    let mut random = Random(SEED);
    let (mut decoded, mut refused) = (0, 0);
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    for round in 0..ROUNDS {
        for i in 0..seeds.len() {
            let mut bytes = seeds[i].1.clone();
            let other = &seeds[random.below(seeds.len())].1;
            damage(&mut bytes, other, &mut random);
            if bytes.starts_with(b"\x89PNG") && random.below(4) > 0 {
                repair_png(&mut bytes);
            }
            let name = format!("{} (seed {SEED:#x}, round {round})", seeds[i].0);
            let start = Instant::now();
            match decode_bytes(&name, &bytes, &options) {
                Ok(image) => {
                    assert!(image.width() * image.height() <= 1_000_000);
                    assert_eq!(image.data().len(), image.width() * image.height() * 3);
                    decoded += 1;
                }
                Err(error) => {
                    assert!(error.to_string().starts_with(&name));
                    refused += 1;
                }
            }
            assert!(start.elapsed() < Duration::from_secs(5), "{name} took {:?}", start.elapsed());
        }
    }
    assert!(
        decoded + refused >= 2000 && decoded > 200 && refused > 200,
        "{decoded} decoded, {refused} refused"
    );
    // One million pixels of 8 bytes, their conversion, the decoders' tables and the allowance for metadata; other
    // tests of this binary run at the same time.
    let peak = PEAK.load(Relaxed).saturating_sub(before) >> 20;
    assert!(peak < 256, "{peak} MiB");
    println!("{decoded} decoded, {refused} refused, at most {peak} MiB");
}
