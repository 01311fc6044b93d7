//! Mutated files: no panic, no hang, no memory beyond a small multiple of the file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::{Checkpoint, TensorFile};

use super::alloc::peak;
use super::build::{f32s, i32s, i64s, valid};
use super::{TempDir, elements};

const FILES: u64 = 60_000;

/// A small generator, so that a seed names a file.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Valid files: dense, packed, with every kind of type, empty.
fn seeds() -> Vec<Vec<u8>> {
    let row = |values: usize| f32s(&vec![0.5; values]);
    vec![
        valid(
            &[
                ("a", "F32", &[2, 3], row(6)),
                ("b.weight", "BF16", &[4], vec![1; 8]),
                ("c", "U8", &[0], vec![]),
            ],
            0,
        ),
        valid(
            &[
                ("p.weight_shape", "I64", &[2], i64s(&[8, 32])),
                ("p.weight_packed", "I32", &[8, 4], i32s(&[0x1234_5678; 32])),
                ("p.weight_zero_point", "I32", &[1, 1], i32s(&[7])),
                ("p.weight_scale", "F32", &[8, 1], row(8)),
                ("p.bias", "F32", &[8], row(8)),
            ],
            3,
        ),
        valid(
            &[
                ("x", "F64", &[1], vec![0; 8]),
                ("y", "F8_E4M3", &[3], vec![0; 3]),
                ("z", "BOOL", &[1, 1, 1], vec![1]),
                ("w", "F4", &[4], vec![0; 2]),
                ("\\u00e9", "I16", &[2], vec![0; 4]),
            ],
            1,
        ),
        valid(&[], 0),
    ]
}

/// Words that a header is made of, and numbers at the edges.
const WORDS: [&str; 20] = [
    "0",
    "1",
    "-1",
    "18446744073709551615",
    "9223372036854775808",
    "4294967296",
    "1e99",
    "null",
    "[]",
    "{}",
    "\"F32\"",
    "\"I32\"",
    "\"data_offsets\"",
    "\"shape\"",
    "\"dtype\"",
    "\"__metadata__\":{\"a\":\"b\"},",
    ",",
    "\\u0000",
    "[[[[[[[[",
    "\"",
];

fn mutate(random: &mut Random, file: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        let at = random.below(file.len());
        let in_header = 8 + random.below(file.len().saturating_sub(8).min(500));
        match random.below(10) {
            0 if !file.is_empty() => file[at] ^= 1 << random.below(8),
            1 if !file.is_empty() => file[at] = random.next() as u8,
            2 => file.truncate(at),
            3 => file.extend((0..random.below(40)).map(|i| i as u8)),
            4 if file.len() >= 8 => {
                let length = match random.below(3) {
                    0 => random.next(),
                    1 => random.next() % 1024,
                    _ => file.len() as u64 - 8 - random.next() % 9,
                };
                file[..8].copy_from_slice(&length.to_le_bytes());
            }
            // A digit becomes another one: shapes, offsets.
            5 | 6 if file.len() > in_header => {
                let digit = file[in_header..].iter().position(u8::is_ascii_digit);
                if let Some(digit) = digit {
                    file[in_header + digit] = b'0' + random.below(10) as u8;
                }
            }
            // A word is put in, the header's length follows.
            7 | 8 if file.len() > in_header => {
                let word = WORDS[random.below(WORDS.len())].as_bytes();
                let over = if random.below(2) == 0 { 0 } else { word.len().min(file.len() - in_header) };
                file.splice(in_header..in_header + over, word.iter().copied());
                let length = u64::from_le_bytes(file[..8].try_into().unwrap_or_default());
                let length = length.wrapping_add((word.len() - over) as u64);
                file[..8].copy_from_slice(&length.to_le_bytes());
            }
            _ if file.len() > in_header => {
                let end = (in_header + random.below(60)).min(file.len());
                let copy = file[in_header..end].to_vec();
                file.splice(in_header..in_header, copy);
            }
            _ => {}
        }
    }
}

/// Reads whatever an accepted file offers.
fn use_all(checkpoint: &Checkpoint) -> usize {
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    let mut read = 0;
    for name in &names {
        if let Ok(view) = checkpoint.tensor(name) {
            read += match view.dtype().size() {
                4 if view.dtype().is_float() => elements::<f32>(&view).len() * 4,
                _ => view.bytes() as usize,
            };
        }
        read += checkpoint.ints(name).map_or(0, |all| all.len());
        read += checkpoint.floats(name).map_or(0, |all| all.len());
    }
    for (prefix, n, k) in [("p", 8, 32), ("p", 8, 16), ("b", 4, 1), ("a", 0, usize::MAX)] {
        let _ = checkpoint.at(prefix).linear(n, k, false);
    }
    let _ = checkpoint.at("a").patch_embed(2, usize::MAX, false);
    checkpoint.unused().count() + read
}

#[test]
fn mutated_files_are_refused_or_read() {
    let (seeds, start) = (seeds(), Instant::now());
    let (mut accepted, mut slowest) = (0u64, Duration::ZERO);
    for seed in 0..FILES {
        let mut random = Random(seed);
        let mut bytes = seeds[random.below(seeds.len())].clone();
        mutate(&mut random, &mut bytes);
        let (len, shared) = (bytes.len(), Arc::<[u8]>::from(bytes));
        let began = Instant::now();
        let (opened, held) = peak(|| TensorFile::in_memory("m", shared).map(Checkpoint::of_file));
        slowest = slowest.max(began.elapsed());
        assert!(held <= 16 * 1024 + 64 * len, "seed {seed}: {held} bytes held for a file of {len}");
        match opened {
            Ok(checkpoint) => {
                accepted += 1;
                let (read, held) = peak(|| use_all(&checkpoint));
                assert!(
                    read <= 16 * len && held <= 16 * 1024 + 64 * len,
                    "seed {seed}: read {read}, held {held}"
                );
            }
            Err(e) => {
                let text = e.to_string();
                assert!(text.starts_with("m: ") && text.len() < 2000 + len, "seed {seed}: {text}");
            }
        }
    }
    // Both outcomes must be common, else the mutations test one side only.
    assert!(accepted > FILES / 50 && accepted < FILES * 9 / 10, "{accepted} of {FILES} accepted");
    assert!(start.elapsed() < Duration::from_secs(60) && slowest < Duration::from_secs(5), "{slowest:?}");
}

#[test]
fn mutated_files_on_disk() {
    let (seeds, dir) = (seeds(), TempDir::new());
    let mut opened = 0;
    for seed in 0..400 {
        let mut random = Random(seed);
        let mut bytes = seeds[random.below(seeds.len())].clone();
        mutate(&mut random, &mut bytes);
        dir.write("model.safetensors", &bytes);
        if let Ok(checkpoint) = Checkpoint::open(&ModelFiles::dir(&dir.0)) {
            opened += usize::from(use_all(&checkpoint) < usize::MAX);
        }
    }
    assert!(opened > 0 && opened < 400, "{opened} of 400 accepted");
}

#[test]
fn mutated_indexes_and_configurations() {
    let dir = TempDir::new();
    dir.write("one.safetensors", &seeds()[0]);
    dir.write("two.safetensors", &seeds()[1]);
    let index = r#"{"metadata":{"total_size":9},"weight_map":{"a":"one.safetensors","p.weight_packed":"two.safetensors","p.weight_scale":"two.safetensors"}}"#;
    let config = r#"{"quantization_config":{"quant_method":"compressed-tensors","format":"pack-quantized","ignore":["re:.*x"],"config_groups":{"g":{"targets":["re:(a|p)$","Linear"],"weights":{"num_bits":4,"group_size":32,"symmetric":true,"strategy":"group"}}}}}"#;
    let mut opened = 0;
    for seed in 0..1500 {
        let mut random = Random(seed);
        let (mut one, mut two) = (index.as_bytes().to_vec(), config.as_bytes().to_vec());
        let changed = if seed % 2 == 0 { &mut one } else { &mut two };
        for _ in 0..=random.below(3) {
            let at = random.below(changed.len());
            match random.below(3) {
                0 => changed[at] = b' ' + random.below(95) as u8,
                1 => changed.truncate(at.max(1)),
                _ => drop(changed.splice(at..at, WORDS[random.below(WORDS.len())].bytes())),
            }
        }
        dir.write("model.safetensors.index.json", &one);
        dir.write("config.json", &two);
        if let Ok(checkpoint) = Checkpoint::open(&ModelFiles::dir(&dir.0)) {
            opened += usize::from(use_all(&checkpoint) < usize::MAX);
        }
    }
    assert!(opened > 10 && opened < 1490, "{opened} of 1500 accepted");
}
