//! Logits of a teacher in a file: a student learns from them without the teacher.
//!
//! A safetensors file. Of the row in line N of the data, with L learnt tokens and a vocabulary of V tokens:
//!
//! | tensor | what |
//! | --- | --- |
//! | `ocelli.logits.v1` | I32 `[1]`: V; once |
//! | `N.labels` | I32 `[L]`: the learnt tokens |
//! | `N.logits` | F32 `[L, V]`: logits of the row before each; of a file with all of them |
//! | `N.tokens` | I32 `[L, K]`: the K likeliest tokens there; of a file with the likeliest alone |
//! | `N.logprobs` | F32 `[L, K]`: logarithms of their probabilities |
//!
//! What the likeliest leave of the probability is taken to be spread evenly over the other tokens.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use ocelli_engine::weights::TensorFile;
use ocelli_engine::{Error, Result};
use serde_json::{Map, Value, json};

/// The tensor that only files of this kind have.
const FORMAT: &str = "ocelli.logits.v1";

/// Logits of learnt tokens, row-major `[labels, vocab]`.
pub struct Logits {
    /// The learnt tokens.
    pub labels: Vec<i32>,
    /// Logits of all tokens at the place before each.
    pub values: Vec<f32>,
}

/// Writes a file, row by row: first beside it, as its head comes before everything else.
pub struct Writer {
    path: PathBuf,
    spool: PathBuf,
    data: BufWriter<File>,
    entries: Map<String, Value>,
    end: usize,
    vocab: usize,
    top: Option<usize>,
}

impl Writer {
    /// Begins a file of logits of `vocab` tokens, or of the `top` likeliest alone.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(path: &Path, vocab: usize, top: Option<usize>) -> Result<Self> {
        let mut spool = path.as_os_str().to_owned();
        spool.push(".part");
        let spool = PathBuf::from(spool);
        let file = File::create(&spool).map_err(|error| store(&spool, error))?;
        let data = BufWriter::with_capacity(1 << 20, file);
        let top = top.filter(|&top| top < vocab);
        let mut writer = Self { path: path.to_owned(), spool, data, entries: Map::new(), end: 0, vocab, top };
        writer.tensor(FORMAT, "I32", &[1], &mut std::iter::once((vocab as i32).to_le_bytes()))?;
        Ok(writer)
    }

    /// Adds the logits of a row.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn row(&mut self, line: usize, logits: &Logits) -> Result<()> {
        let rows = logits.labels.len();
        let name = |what: &str| format!("{line}.{what}");
        self.tensor(&name("labels"), "I32", &[rows], &mut logits.labels.iter().map(|v| v.to_le_bytes()))?;
        let Some(top) = self.top else {
            let shape = [rows, self.vocab];
            let mut bytes = logits.values.iter().map(|value| value.to_le_bytes());
            return self.tensor(&name("logits"), "F32", &shape, &mut bytes);
        };
        let (mut tokens, mut chances) = (Vec::new(), Vec::new());
        for row in logits.values.chunks_exact(self.vocab) {
            let norm = norm(row);
            for token in likeliest(row, top) {
                tokens.push(token as i32);
                chances.push((f64::from(row[token]) - norm) as f32);
            }
        }
        let shape = [rows, top];
        self.tensor(&name("tokens"), "I32", &shape, &mut tokens.iter().map(|v| v.to_le_bytes()))?;
        self.tensor(&name("logprobs"), "F32", &shape, &mut chances.iter().map(|v| v.to_le_bytes()))
    }

    fn tensor(
        &mut self,
        name: &str,
        dtype: &str,
        shape: &[usize],
        bytes: &mut dyn Iterator<Item = [u8; 4]>,
    ) -> Result<()> {
        for four in bytes {
            self.data.write_all(&four).map_err(|error| store(&self.spool, error))?;
        }
        let end = self.end + 4 * shape.iter().product::<usize>();
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [self.end, end]});
        self.entries.insert(name.to_owned(), entry);
        self.end = end;
        Ok(())
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self) -> Result<()> {
        self.data.flush().map_err(|error| store(&self.spool, error))?;
        let mut head = Value::Object(std::mem::take(&mut self.entries)).to_string();
        while !(8 + head.len()).is_multiple_of(64) {
            head.push(' ');
        }
        let mut fresh = self.path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let written = (|| {
            let mut file = File::create(&fresh)?;
            file.write_all(&(head.len() as u64).to_le_bytes())?;
            file.write_all(head.as_bytes())?;
            std::io::copy(&mut File::open(&self.spool)?, &mut file)?;
            file.sync_all()?;
            std::fs::rename(&fresh, &self.path)
        })();
        if written.is_err() {
            let _ = std::fs::remove_file(&fresh);
        }
        written.map_err(|error| store(&self.path, error))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.spool);
    }
}

fn store(path: &Path, error: std::io::Error) -> Error {
    Error::Store { path: path.display().to_string(), error }
}

/// Logarithm of the sum of the powers of logits.
fn norm(row: &[f32]) -> f64 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let most = f64::from(most);
    most + row.iter().map(|&logit| (f64::from(logit) - most).exp()).sum::<f64>().ln()
}

/// Places of the `top` largest numbers, the largest first.
fn likeliest(row: &[f32], top: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..row.len()).collect();
    let larger = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
    if top < all.len() && top > 0 {
        all.select_nth_unstable_by(top - 1, larger);
    }
    all.truncate(top);
    all.sort_unstable_by(larger);
    all
}

/// A file that was written.
pub struct Stored {
    file: TensorFile,
    vocab: usize,
}

impl Stored {
    /// Opens a file of logits of `vocab` tokens.
    ///
    /// # Errors
    /// If it is none, or is of a model with another vocabulary.
    pub fn open(path: &Path, vocab: usize) -> Result<Self> {
        let file = TensorFile::open(path)?;
        if file.info(FORMAT).is_none() {
            return Err(Error::Train(format!(
                "{}: expected a file of logits (a tensor `{FORMAT}`), found none: --store-logits writes them",
                path.display()
            )));
        }
        let found = file.ints(FORMAT)?;
        if found != [vocab as i64] {
            return Err(Error::Train(format!(
                "{}: expected logits of {vocab} tokens, found {found:?}: teacher and student are to have one vocabulary",
                path.display()
            )));
        }
        Ok(Self { file, vocab })
    }

    /// Lines that it has logits of.
    #[must_use]
    pub fn lines(&self) -> HashSet<usize> {
        let of = |name: &str| name.strip_suffix(".labels")?.parse().ok();
        self.file.names().filter_map(of).collect()
    }

    /// The logits of a row whose learnt tokens are `labels`.
    ///
    /// # Errors
    /// If there are none, or they are of other tokens.
    pub fn row(&self, line: usize, labels: &[i32]) -> Result<Logits> {
        let path = self.file.path();
        let name = |what: &str| format!("{line}.{what}");
        if self.file.info(&name("labels")).is_none() {
            return Err(Error::Train(format!("{path}: no logits of line {line}")));
        }
        let found = self.file.ints(&name("labels"))?;
        if !found.iter().copied().eq(labels.iter().map(|&label| i64::from(label))) {
            return Err(Error::Train(format!(
                "{path}: line {line}: the logits are of {} other tokens, not of the {} learnt ones: they were stored for other data",
                found.len(),
                labels.len()
            )));
        }
        let wrong = |what: &str| Error::Train(format!("{path}: tensor `{}`: not as it is to be", name(what)));
        let rows = labels.len();
        let values = if self.file.info(&name("logits")).is_some() {
            let values = self.file.floats(&name("logits"))?;
            if values.len() != rows * self.vocab {
                return Err(wrong("logits"));
            }
            values
        } else {
            let (tokens, chances) = (self.file.ints(&name("tokens"))?, self.file.floats(&name("logprobs"))?);
            let fits = |token: &i64| (0..self.vocab as i64).contains(token);
            if tokens.len() != chances.len()
                || !tokens.len().is_multiple_of(rows.max(1))
                || !tokens.iter().all(fits)
            {
                return Err(wrong("tokens"));
            }
            let top = tokens.len() / rows.max(1);
            let mut values = Vec::with_capacity(rows * self.vocab);
            for row in 0..rows {
                let range = row * top..(row + 1) * top;
                spread(&tokens[range.clone()], &chances[range], self.vocab, &mut values);
            }
            values
        };
        Ok(Logits { labels: labels.to_vec(), values })
    }
}

/// Logits of all tokens whose probabilities are those of the likeliest, and equal ones of the others.
fn spread(tokens: &[i64], chances: &[f32], vocab: usize, out: &mut Vec<f32>) {
    let known: f64 = chances.iter().map(|&chance| f64::from(chance).exp()).sum();
    let others = vocab.saturating_sub(tokens.len()).max(1);
    // Rounding may leave nothing; the others are never impossible.
    let rest = ((1.0 - known).max(1e-12) / others as f64).ln() as f32;
    let start = out.len();
    out.resize(start + vocab, rest);
    for (&token, &chance) in tokens.iter().zip(chances) {
        out[start + token as usize] = chance;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_come_back() {
        let folder = std::env::temp_dir().join(format!("ocelli-logits-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let logits = Logits { labels: vec![2, 0], values: vec![0.5, 3.0, -1.0, 0.0, 1.0, 2.0, 8.0, -2.0] };
        let whole = folder.join("whole.safetensors");
        let mut writer = Writer::new(&whole, 4, None).expect("a file");
        writer.row(3, &logits).expect("a row");
        writer.finish().expect("a file");
        let stored = Stored::open(&whole, 4).expect("the file");
        assert_eq!(stored.lines(), HashSet::from([3]));
        assert_eq!(stored.row(3, &[2, 0]).expect("a row").values, logits.values);
        let why = |found: Result<Logits>| found.err().expect("an error").to_string();
        assert!(why(stored.row(4, &[2, 0])).ends_with("no logits of line 4"));
        assert!(why(stored.row(3, &[2, 1])).contains("they were stored for other data"));
        let other = Stored::open(&whole, 5).err().expect("an error").to_string();
        assert!(other.contains("expected logits of 5 tokens, found [4]"), "{other}");

        let part = folder.join("part.safetensors");
        let mut writer = Writer::new(&part, 4, Some(2)).expect("a file");
        writer.row(1, &logits).expect("a row");
        writer.finish().expect("a file");
        let found = Stored::open(&part, 4).expect("the file").row(1, &[2, 0]).expect("a row").values;
        for (row, known) in found.chunks(4).zip(logits.values.chunks(4)) {
            let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-6, "{sum}");
            let (best, norm) = (likeliest(known, 2), norm(known));
            for token in 0..4 {
                let exact = f64::from(known[token]) - norm;
                let held = best.contains(&token);
                assert_eq!((f64::from(row[token]) - exact).abs() < 1e-6, held, "{token}: {row:?} {known:?}");
            }
        }
        assert!(std::fs::read_dir(&folder).expect("a folder").count() == 2, "nothing else is left");
        std::fs::remove_dir_all(&folder).expect("its end");
    }
}
