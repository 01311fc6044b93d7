//! Decoding of every kind of picture against what the reference makes of it.

use ocelli_engine::image::{Alpha, DecodeOptions, Rgb8Image, decode_file};
use safetensors::SafeTensors;

#[test]
fn survey() {
    let bytes = std::fs::read(crate::golden("pictures/expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort();
    for key in names {
        let (name, alpha) = key.rsplit_once('.').unwrap();
        let alpha = if alpha == "white" { Alpha::White } else { Alpha::Drop };
        let tensor = file.tensor(key).unwrap();
        let got: Result<Rgb8Image, _> = decode_file(
            &crate::golden("pictures").join(name),
            &DecodeOptions { alpha, ..Default::default() },
        );
        match got {
            Err(e) => println!("{key}: {e}"),
            Ok(i) if [i.height(), i.width(), 3] != tensor.shape() => {
                println!("{key}: shape {}x{} {:?}", i.width(), i.height(), tensor.shape())
            }
            Ok(i) => {
                let d: Vec<u8> = i.data().iter().zip(tensor.data()).map(|(a, b)| a.abs_diff(*b)).collect();
                let n = d.iter().filter(|&&v| v > 0).count();
                if n > 0 {
                    println!(
                        "{key}: max {} changed {:.4}",
                        d.iter().max().unwrap(),
                        n as f64 / d.len() as f64
                    )
                }
            }
        }
    }
}
