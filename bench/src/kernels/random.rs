//! Safetensors files with random values.

use std::sync::Arc;

use half::bf16;
use serde_json::{Map, Value, json};

/// What a tensor is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// bf16 of deviation 0.02.
    Normal,
    /// bf16 ones.
    Ones,
    /// bf16 of the same small size: scales of codes.
    Scales,
    /// 32-bit words of codes.
    Codes,
}

/// A tensor of the file.
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values.
    pub fill: Fill,
}

/// Values that repeat: a prime number of them, so that rows differ.
const PERIOD: usize = 1_000_003;

/// The file.
pub fn file(tensors: impl Iterator<Item = Tensor>) -> Arc<[u8]> {
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state
    };
    // Four uniform values make a nearly normal one.
    let normal: Vec<u8> = (0..PERIOD)
        .flat_map(|_| {
            let bits = random();
            let sum: u64 = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum();
            bf16::from_f32(0.02 * (sum as f32 / 37_837.0 - 3.464)).to_le_bytes()
        })
        .collect();
    let codes: Vec<u8> = (0..PERIOD).flat_map(|_| ((random() >> 32) as u32).to_le_bytes()).collect();
    let (ones, scales) = (bf16::ONE.to_le_bytes(), bf16::from_f32(0.004).to_le_bytes());
    let (mut header, mut data, mut turn) = (Map::new(), Vec::<u8>::new(), 0);
    for Tensor { name, shape, fill } in tensors {
        let (dtype, size, values) = match fill {
            Fill::Normal => ("BF16", 2, &normal[..]),
            Fill::Ones => ("BF16", 2, &ones[..]),
            Fill::Scales => ("BF16", 2, &scales[..]),
            Fill::Codes => ("I32", 4, &codes[..]),
        };
        let (start, end) = (data.len(), data.len() + size * shape.iter().product::<usize>());
        // Each tensor begins elsewhere in the values.
        turn += 7919;
        data.extend_from_slice(
            &values[size * turn % values.len()..]
                [..(end - start).min(values.len() - size * turn % values.len())],
        );
        while data.len() < end {
            data.extend_from_slice(&values[..values.len().min(end - data.len())]);
        }
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.append(&mut data);
    file.into()
}
