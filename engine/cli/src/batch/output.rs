//! The file of results. A row is whole once it is written: whatever ends the process, `--resume` finds it.
//!
//! Rows are written as lines of JSON, each with one call, and handed to the disk every few seconds and at the end. A Parquet file is
//! made of these lines at the end; until then they are in a file beside it.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::args::BatchArgs;
use super::input::parquet_rows;
use crate::fail::Failure;

/// Rows are handed to the disk at least so often.
const SYNC: Duration = Duration::from_secs(5);
/// Rows of a group of a Parquet file.
const GROUP: usize = 100_000;

/// A row of the results.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// What the row is called.
    pub id: String,
    /// Its picture, or a list of its pictures.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub image: Value,
    /// The prompt, where there are several for a picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What the model thought before, where it marks that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Why the answer ended: `stop` or `length`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// Tokens of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<i64>,
    /// Milliseconds from its picture's reading to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<f64>,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The file that results are written to.
pub struct Output {
    path: PathBuf,
    /// What is made of it at the end.
    table: Option<PathBuf>,
    file: File,
    /// Bytes of whole rows.
    len: u64,
    synced: Instant,
}

/// What there is already.
#[derive(Default)]
pub struct Done {
    /// Rows with an answer, or with an error that stands.
    pub ids: HashSet<String>,
}

impl Output {
    /// Where rows are written to, and whether a table is made of them at the end.
    fn place(args: &BatchArgs) -> (PathBuf, bool) {
        let is_table = args.out.extension().is_some_and(|end| end.eq_ignore_ascii_case("parquet"));
        (if is_table { beside(&args.out, "rows") } else { args.out.clone() }, is_table)
    }

    /// Errors if the file may not be written; touches nothing.
    pub fn check(args: &BatchArgs) -> Result<(), Failure> {
        let (path, _) = Self::place(args);
        for there in [&args.out, &path] {
            if there.is_dir() {
                return Err(Failure::new(format!("{}: is a folder", there.display())));
            }
            let has_rows = is_regular(there) && std::fs::metadata(there).is_ok_and(|file| file.len() > 0);
            if has_rows && !args.resume && !args.overwrite {
                return Err(Failure::new(format!("{}: is there already", there.display()))
                    .hint("--resume goes on with it, --overwrite replaces it"));
            }
        }
        Ok(())
    }

    /// Opens the file, and reads what it has where that is to go on.
    pub fn open(args: &BatchArgs) -> Result<(Self, Done), Failure> {
        Self::check(args)?;
        let (path, is_table) = Self::place(args);
        let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::new(format!("{}: another process writes to it", path.display())));
            }
            Err(TryLockError::Error(error)) => tracing::debug!("{}: not locked: {error}", path.display()),
        }
        let mut done = Done::default();
        let mut rows = Vec::new();
        if args.resume {
            rows = read_rows(&path, &mut file)?;
            if rows.is_empty() && is_table && args.out.is_file() {
                rows = from_table(&args.out)?;
            }
            rows.retain(|row| !args.retry_errors || row.error.is_none());
            done.ids = rows.iter().map(|row| row.id.clone()).collect();
        }
        let table = is_table.then(|| args.out.clone());
        let mut output = Self { path, table, file, len: 0, synced: Instant::now() };
        output.begin_with(&rows)?;
        Ok((output, done))
    }

    /// Writes these rows and no others, unless the file has them as they are.
    fn begin_with(&mut self, rows: &[Record]) -> Result<(), Failure> {
        let failed =
            |path: &Path, error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
        let mut bytes = Vec::new();
        rows.iter().try_for_each(|row| line(row, &mut bytes))?;
        self.len = bytes.len() as u64;
        if !is_regular(&self.path) {
            return Ok(());
        }
        let there = std::fs::read(&self.path).map_err(|error| failed(&self.path, error))?;
        if there != bytes {
            // What is lost of a row at the end is cut off; another change goes by way of a new file.
            match there.starts_with(&bytes) {
                true => self.file.set_len(self.len).map_err(|error| failed(&self.path, error))?,
                false => {
                    let new = beside(&self.path, "new");
                    let write = || -> std::io::Result<File> {
                        let mut file = File::create(&new)?;
                        file.write_all(&bytes)?;
                        file.sync_all()?;
                        std::fs::rename(&new, &self.path)?;
                        OpenOptions::new().read(true).write(true).open(&self.path)
                    };
                    self.file = write().map_err(|error| failed(&new, error))?;
                    let _ = self.file.try_lock();
                }
            }
        }
        self.file.seek(SeekFrom::Start(self.len)).map(drop).map_err(|error| failed(&self.path, error))
    }

    /// Adds a row.
    pub fn write(&mut self, row: &Record) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        line(row, &mut bytes)?;
        if let Err(error) = self.file.write_all(&bytes) {
            // What is there of it would be in the way of the next.
            let _ = self.file.set_len(self.len);
            return Err(Failure::new(format!("{}: {error}", self.path.display()))
                .hint("the rows before are whole; --resume goes on after them"));
        }
        self.len += bytes.len() as u64;
        if self.synced.elapsed() > SYNC {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Failure> {
        self.synced = Instant::now();
        match self.file.sync_data() {
            Err(error) if is_regular(&self.path) => {
                Err(Failure::new(format!("{}: {error}", self.path.display())))
            }
            _ => Ok(()),
        }
    }

    /// Hands everything to the disk; if the run is complete, makes the table.
    pub fn finish(mut self, complete: bool) -> Result<(), Failure> {
        self.sync()?;
        let Some(table) = self.table.as_ref().filter(|_| complete) else { return Ok(()) };
        self.file.rewind().map_err(|error| Failure::new(format!("{}: {error}", self.path.display())))?;
        let rows = read_rows(&self.path, &mut self.file)?;
        let new = beside(table, "new");
        let failed = |error: &dyn std::fmt::Display| Failure::new(format!("{}: {error}", new.display()));
        write_table(&new, &rows).map_err(|error| failed(&error))?;
        std::fs::rename(&new, table).map_err(|error| failed(&error))?;
        std::fs::remove_file(&self.path)
            .map_err(|error| Failure::new(format!("{}: {error}", self.path.display())))
    }
}

/// Whether a file is there that has a length: not a device or a pipe.
fn is_regular(path: &Path) -> bool {
    path.is_file()
}

/// A file beside another: `FILE.end`.
pub fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}

fn line(row: &Record, bytes: &mut Vec<u8>) -> Result<(), Failure> {
    serde_json::to_writer(&mut *bytes, row)?;
    bytes.push(b'\n');
    Ok(())
}

/// The whole rows of a file. A last line without an end is what a killed process left of a row.
fn read_rows(path: &Path, file: &mut File) -> Result<Vec<Record>, Failure> {
    let mut rows = Vec::new();
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let failed = |error| Failure::new(format!("{}: {error}", path.display()));
        reader.read_until(b'\n', &mut bytes).map_err(failed)?;
        if bytes.pop() != Some(b'\n') {
            return Ok(rows);
        }
        let row = serde_json::from_slice(&bytes).map_err(|error| {
            let number = rows.len() + 1;
            Failure::new(format!("{}: line {number}: no row of results: {error}", path.display()))
                .hint("--resume goes on with files that `ocelli batch` wrote")
        })?;
        rows.push(row);
    }
}

fn from_table(path: &Path) -> Result<Vec<Record>, Failure> {
    let rows = parquet_rows(path)?.into_iter().map(|mut fields| {
        // A list of pictures is a text there.
        let list =
            fields.get("image").and_then(Value::as_str).and_then(|text| serde_json::from_str(text).ok());
        if let Some(list @ Value::Array(_)) = list {
            fields.insert("image".into(), list);
        }
        let row = serde_json::from_value(Value::Object(fields));
        row.map_err(|error| Failure::new(format!("{}: no row of results: {error}", path.display())))
    });
    rows.collect()
}

/// A column of texts.
type Text<'a> = &'a dyn Fn(&Record) -> Option<String>;

fn write_table(path: &Path, rows: &[Record]) -> parquet::errors::Result<()> {
    let text = |name: &str, repetition| {
        let field = Type::primitive_type_builder(name, Physical::BYTE_ARRAY);
        field.with_logical_type(Some(LogicalType::String)).with_repetition(repetition).build()
    };
    let number = |name: &str, kind| {
        Type::primitive_type_builder(name, kind).with_repetition(Repetition::OPTIONAL).build()
    };
    let (needed, perhaps) = (Repetition::REQUIRED, Repetition::OPTIONAL);
    let fields = vec![
        text("id", needed)?,
        text("image", perhaps)?,
        text("prompt", perhaps)?,
        text("text", perhaps)?,
        text("reasoning", perhaps)?,
        text("finish_reason", perhaps)?,
        number("tokens", Physical::INT64)?,
        number("ms", Physical::DOUBLE)?,
        text("error", perhaps)?,
    ];
    let schema = Type::group_type_builder("results")
        .with_fields(fields.into_iter().map(Arc::new).collect())
        .build()?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let file = File::create(path)?;
    let mut writer = SerializedFileWriter::new(file.try_clone()?, Arc::new(schema), Arc::new(properties))?;
    for rows in rows.chunks(GROUP) {
        let image = |row: &Record| match &row.image {
            Value::Null => None,
            Value::String(one) => Some(one.clone()),
            list => Some(list.to_string()),
        };
        let texts: [Text<'_>; 6] = [
            &image,
            &|row| row.prompt.clone(),
            &|row| row.text.clone(),
            &|row| row.reasoning.clone(),
            &|row| row.finish_reason.clone(),
            &|row| row.error.clone(),
        ];
        let mut group = writer.next_row_group()?;
        let ids: Vec<ByteArray> = rows.iter().map(|row| row.id.as_str().into()).collect();
        column::<ByteArrayType>(&mut group, &ids, None)?;
        let optional = |value: Text<'_>| -> (Vec<ByteArray>, Vec<i16>) {
            let values: Vec<Option<String>> = rows.iter().map(value).collect();
            let levels = values.iter().map(|value| i16::from(value.is_some())).collect();
            (values.iter().flatten().map(|value| value.as_str().into()).collect(), levels)
        };
        for value in &texts[..5] {
            let (values, levels) = optional(value);
            column::<ByteArrayType>(&mut group, &values, Some(&levels))?;
        }
        let tokens: Vec<i64> = rows.iter().filter_map(|row| row.tokens).collect();
        let levels: Vec<i16> = rows.iter().map(|row| row.tokens.is_some().into()).collect();
        column::<Int64Type>(&mut group, &tokens, Some(&levels))?;
        let ms: Vec<f64> = rows.iter().filter_map(|row| row.ms).collect();
        let levels: Vec<i16> = rows.iter().map(|row| row.ms.is_some().into()).collect();
        column::<DoubleType>(&mut group, &ms, Some(&levels))?;
        let (values, levels) = optional(texts[5]);
        column::<ByteArrayType>(&mut group, &values, Some(&levels))?;
        group.close()?;
    }
    writer.close()?;
    Ok(file.sync_all()?)
}

/// Writes the next column of a group.
fn column<T: parquet::data_type::DataType>(
    group: &mut parquet::file::writer::SerializedRowGroupWriter<'_, File>,
    values: &[T::T],
    levels: Option<&[i16]>,
) -> parquet::errors::Result<()> {
    let Some(mut column) = group.next_column()? else { return Ok(()) };
    column.typed::<T>().write_batch(values, levels, None)?;
    column.close()
}
