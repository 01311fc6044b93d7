//! Times the exact search of an index, for `bench/peers/vectors.py`: what it prints is one JSON object.
//!
//! ```text
//! cargo run --release -p ocelli-search --example nearest -- INDEX QUERIES K THREADS ROUNDS
//! ```
//!
//! QUERIES is a file of unit vectors, 32-bit floats one after the other. Each is asked for ROUNDS times.

use std::path::Path;
use std::time::Instant;

use ocelli_search::Index;
use serde_json::json;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [index, queries, k, threads, rounds] = &args[..] else {
        return Err("expected INDEX QUERIES K THREADS ROUNDS".into());
    };
    let (k, threads, rounds): (usize, usize, usize) = (k.parse()?, threads.parse()?, rounds.parse()?);
    let start = Instant::now();
    let index = Index::open(Path::new(index))?;
    let matrix = index.matrix()?;
    let load_s = start.elapsed().as_secs_f64();
    let d = index.about().dimension;
    let bytes = std::fs::read(queries)?;
    let values: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let (mut ms, mut hits) = (Vec::new(), Vec::new());
    for query in values.chunks_exact(d) {
        let mut found = Vec::new();
        for _ in 0..rounds {
            let start = Instant::now();
            found = matrix.nearest(query, k, threads);
            ms.push(start.elapsed().as_secs_f64() * 1e3);
        }
        hits.push(found.iter().map(|hit| hit.place).collect::<Vec<_>>());
    }
    println!(
        "{}",
        json!({"pictures": matrix.len(), "dimension": d, "load_s": load_s, "ms": ms, "hits": hits})
    );
    Ok(())
}
