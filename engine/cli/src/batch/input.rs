//! The rows of a batch: pictures of folders, or lists in files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use ocelli_engine::image::PictureSource;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value};

use super::args::ColumnArgs;
use crate::fail::Failure;
use crate::{open, vectors};

/// A row of the input.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is called in the results; no other row is called so.
    pub id: String,
    /// Its pictures, as the input names them.
    pub pictures: Vec<String>,
    /// The folder that these are relative to.
    pub folder: PathBuf,
    /// All of its fields, for prompts.
    pub fields: Map<String, Value>,
}

impl Row {
    /// Where its pictures are. Errors name the one that is nowhere.
    pub fn sources(&self) -> Result<Vec<PictureSource>, Failure> {
        let source = |address: &String| {
            let source = PictureSource::at(address, &self.folder)?;
            if let PictureSource::File(path) = &source {
                open::is_picture_name("the row", address, path)?;
            }
            Ok(source)
        };
        self.pictures.iter().map(source).collect()
    }

    /// The file of its only picture.
    pub fn file(&self) -> Option<PathBuf> {
        match &self.pictures[..] {
            [one] if !one.starts_with("data:") => {
                Some(self.folder.join(one.strip_prefix("file://").unwrap_or(one)))
            }
            _ => None,
        }
    }
}

/// The rows of all inputs, in order; several may have one id.
pub fn read_all(inputs: &[PathBuf], columns: &ColumnArgs) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for input in inputs {
        for path in expand(input)? {
            match kind(&path) {
                Some(list) => list(&path, columns, &mut rows)?,
                None => pictures(&path, &mut rows)?,
            }
        }
    }
    Ok(rows)
}

/// The rows of all inputs, in order.
pub fn read(inputs: &[PathBuf], columns: &ColumnArgs) -> Result<Vec<Row>, Failure> {
    let rows = read_all(inputs, columns)?;
    let mut seen = HashMap::with_capacity(rows.len());
    for (number, row) in rows.iter().enumerate() {
        if let Some(first) = seen.insert(row.id.as_str(), number) {
            let (id, first, second) = (&row.id, first + 1, number + 1);
            return Err(Failure::new(format!("rows {first} and {second} have the same id `{id}`"))
                .hint("--id-column NAME takes another field; inputs with paths or numbers alike go into runs of their own"));
        }
    }
    match rows.is_empty() {
        true => Err(Failure::new("the input has no rows")),
        false => Ok(rows),
    }
}

/// The files that a name with `*` or `?` stands for, in order; other names are themselves.
fn expand(input: &Path) -> Result<Vec<PathBuf>, Failure> {
    let text = input.to_string_lossy();
    if input.exists() || !text.contains(['*', '?']) {
        return Ok(vec![input.to_owned()]);
    }
    let bad = |error: &dyn std::fmt::Display| Failure::new(format!("{text}: {error}"));
    let found = glob::glob(&text).map_err(|error| bad(&error))?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|error| bad(&error))?;
    match found.is_empty() {
        true => Err(Failure::new(format!("{text}: no such file"))),
        false => Ok(found),
    }
}

type Reader = fn(&Path, &ColumnArgs, &mut Vec<Row>) -> Result<(), Failure>;

/// How a list is read; `None` of what is a picture or a folder.
fn kind(path: &Path) -> Option<Reader> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        _ if path.is_dir() => None,
        "jsonl" | "ndjson" | "json" => Some(json_lines),
        "csv" => Some(csv),
        "parquet" => Some(parquet),
        _ => None,
    }
}

/// Pictures of a folder, called by their path in it, or one by its name.
fn pictures(path: &Path, rows: &mut Vec<Row>) -> Result<(), Failure> {
    if !path.exists() {
        return Err(Failure::new(format!("{}: no such file or folder", path.display())));
    }
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    for picture in vectors::list(&[path.to_owned()])? {
        let name = picture.strip_prefix(folder).unwrap_or(&picture).to_string_lossy().replace('\\', "/");
        let fields = [("id", name.clone()), ("image", name.clone())];
        let fields = fields.map(|(key, value)| (key.to_owned(), Value::from(value))).into_iter().collect();
        rows.push(Row { id: name.clone(), pictures: vec![name], folder: folder.to_owned(), fields });
    }
    Ok(())
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}

fn json_lines(path: &Path, columns: &ColumnArgs, rows: &mut Vec<Row>) -> Result<(), Failure> {
    let file = File::open(path).map_err(|error| failed(path, error))?;
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|error| failed(path, error))?;
        if line.trim().is_empty() {
            continue;
        }
        let place = format!("{}: line {}", path.display(), number + 1);
        match serde_json::from_str(&line) {
            Ok(Value::Object(fields)) => add(path, &place, number + 1, fields, columns, rows)?,
            Ok(_) => return Err(Failure::new(format!("{place}: expected a JSON object"))),
            Err(error) => {
                return Err(Failure::new(format!("{place}: not JSON: {error}"))
                    .hint("a list has one JSON object a line, such as {\"image\": \"a.png\"}"));
            }
        }
    }
    Ok(())
}

fn csv(path: &Path, columns: &ColumnArgs, rows: &mut Vec<Row>) -> Result<(), Failure> {
    let mut reader = ::csv::Reader::from_path(path).map_err(|error| failed(path, error))?;
    let header = reader.headers().map_err(|error| failed(path, error))?.clone();
    for (number, record) in reader.records().enumerate() {
        let record = record.map_err(|error| failed(path, error))?;
        let pairs =
            header.iter().zip(&record).map(|(key, value)| (key.trim().to_owned(), Value::from(value)));
        let place = format!("{}: row {}", path.display(), number + 1);
        add(path, &place, number + 1, pairs.collect(), columns, rows)?;
    }
    Ok(())
}

fn parquet(path: &Path, columns: &ColumnArgs, rows: &mut Vec<Row>) -> Result<(), Failure> {
    for (number, fields) in parquet_rows(path)?.into_iter().enumerate() {
        let place = format!("{}: row {}", path.display(), number + 1);
        add(path, &place, number + 1, fields, columns, rows)?;
    }
    Ok(())
}

/// The rows of a Parquet file as JSON objects.
pub fn parquet_rows(path: &Path) -> Result<Vec<Map<String, Value>>, Failure> {
    let file = File::open(path).map_err(|error| failed(path, error))?;
    let reader = SerializedFileReader::new(file).map_err(|error| failed(path, error))?;
    let mut rows = Vec::new();
    for row in reader.get_row_iter(None).map_err(|error| failed(path, error))? {
        if let Value::Object(fields) = row.map_err(|error| failed(path, error))?.to_json_value() {
            rows.push(fields);
        }
    }
    Ok(rows)
}

/// A row of a list. `number` counts from 1.
fn add(
    path: &Path,
    place: &str,
    number: usize,
    fields: Map<String, Value>,
    columns: &ColumnArgs,
    rows: &mut Vec<Row>,
) -> Result<(), Failure> {
    let there = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let named = |name: &String| {
        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
        there(name)
            .ok_or_else(|| Failure::new(format!("{place}: no field `{name}`; found {}", names.join(", "))))
    };
    let pictures = match &columns.image_column {
        Some(name) => Some(named(name)?),
        None => there("image").or_else(|| there("images")),
    };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let pictures = match pictures {
        None => Some(Vec::new()),
        Some(Value::Array(all)) => all.iter().map(text).collect(),
        Some(one) => text(one).map(|one| if one.is_empty() { Vec::new() } else { vec![one] }),
    };
    let Some(pictures) = pictures else {
        return Err(Failure::new(format!("{place}: pictures: expected a path or a list of paths")));
    };
    let id = match &columns.id_column {
        Some(name) => Some(named(name)?),
        None => there("id"),
    };
    let id = match id {
        None => number.to_string(),
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        Some(_) => return Err(Failure::new(format!("{place}: id: expected a text or a number"))),
    };
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    rows.push(Row { id, pictures, folder, fields });
    Ok(())
}
