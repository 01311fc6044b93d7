//! A matrix that is rounded by what its inputs are, through all that writing a copy does.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::{
    Anatomy, Calibration, Event, Inputs, QuantizeOptions, QuantizeScheme, Role, Rounding, Seen, quantize_with,
};

use super::TempDir;
use super::build::valid;

/// Inputs of a matrix, and how long they took to be summed up.
struct Known {
    x: Vec<f32>,
    k: usize,
    seconds: f64,
}

impl Calibration for Known {
    fn identity(&self) -> String {
        "these".into()
    }

    fn inputs(&mut self, modules: &HashSet<&str>, _: u64) -> ocelli_engine::Result<Seen> {
        let begun = Instant::now();
        let inputs = Arc::new(Inputs::of(&self.x, self.k)?);
        self.seconds += begun.elapsed().as_secs_f64();
        let inputs = modules.iter().map(|&module| (module.to_owned(), inputs.clone())).collect();
        Ok(Seen { inputs, ..Seen::default() })
    }
}

/// Numbers from -1 to 1.
fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// One matrix whose inputs are of a few causes: outputs are off by less than by rounding to nearest. `OCELLI_ROUNDED` gives other sizes,
/// `rows,columns`, for how long they take.
#[test]
fn one_matrix_is_rounded_by_its_inputs() {
    let sizes = std::env::var("OCELLI_ROUNDED").unwrap_or_else(|_| "48,392".into());
    let sizes: Vec<usize> = sizes.split(',').map(|size| size.parse().expect("a size")).collect();
    let &[n, k] = &*sizes else { panic!("OCELLI_ROUNDED: expected rows and columns, found {sizes:?}") };
    let (mut next, rows, causes) = (noise(3), k.clamp(64, 1024), 9);
    let mix: Vec<f32> = (0..causes * k).map(|_| next()).collect();
    let mut x = Vec::with_capacity(rows * k);
    for _ in 0..rows {
        let cause: Vec<f32> = (0..causes).map(|_| next()).collect();
        for col in 0..k {
            let value: f32 = (0..causes).map(|c| cause[c] * mix[c * k + col]).sum();
            x.push(value + 0.2 * next());
        }
    }
    let w: Vec<u8> = (0..n * k).flat_map(|_| half::bf16::from_f32(0.1 * next()).to_le_bytes()).collect();
    let dir = TempDir::new();
    let source = dir.join("source");
    std::fs::create_dir_all(&source).expect("a folder");
    std::fs::write(source.join("config.json"), "{}").expect("a file");
    let bytes = valid(&[("m.weight", "BF16", &[n, k], w)], 0);
    std::fs::write(source.join("model.safetensors"), bytes).expect("a file");
    let role = |_: &str| Some(Role::Decoder);
    let anatomy = Anatomy { role: &role, folds: &[], banks: &[] };
    let off = [Rounding::Nearest, Rounding::Gptq].map(|rounding| {
        let mut known = Known { x: x.clone(), k, seconds: 0.0 };
        let options = QuantizeOptions { rounding, head: false, ..QuantizeOptions::new(QuantizeScheme::Int4) };
        let (out, mut blocks) = (dir.join(rounding.name()), HashSet::new());
        // When the first block of columns was told of, and the last.
        let (mut told, begun) = ([0.0; 2], Instant::now());
        let files = ModelFiles::dir(&source);
        let done = quantize_with(&files, &out, anatomy, &options, Some(&mut known), &mut |event| {
            if let Event::At(at) = event
                && at.name.contains(": inputs, ")
            {
                told[usize::from(!blocks.is_empty())] = begun.elapsed().as_secs_f64();
                blocks.insert(at.name.to_owned());
            }
            ControlFlow::Continue(())
        });
        let (done, all) = (done.expect("a copy"), begun.elapsed().as_secs_f64());
        println!(
            "[{n}, {k}] {}: {all:.2} s: {:.2} s for sums of {rows} inputs, {:.2} s for corrections, {:.2} s after that",
            rounding.name(),
            known.seconds,
            told[1] - told[0],
            all - told[1].max(known.seconds)
        );
        // Blocks of columns, twice, are told of as they are done.
        let expected = if rounding == Rounding::Gptq { 2 * k.div_ceil(128) } else { 0 };
        assert_eq!(blocks.len(), expected, "{blocks:?}");
        assert_eq!(done.modules[0].rounding, rounding);
        done.modules[0].output_error.expect("inputs were seen")
    });
    println!("outputs off by {:.3}% and {:.3}%", 100.0 * off[0], 100.0 * off[1]);
    assert!(off[1] < 0.8 * off[0], "{off:?}");
}
