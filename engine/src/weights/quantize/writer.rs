//! A safetensors file whose header is known before its data.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::QuantizeError;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub name: String,
    /// As the format spells it: `BF16`.
    pub dtype: String,
    pub align: u64,
    pub shape: Vec<usize>,
    pub bytes: u64,
}

/// A file in work. Tensors lie by falling alignment, so that each is aligned in the file.
pub(super) struct Shard {
    path: String,
    file: File,
    /// First byte and length of each tensor, by name.
    places: HashMap<String, (u64, u64)>,
}

impl Shard {
    /// Writes the header and reserves the data; `format` is what it says of itself.
    pub fn create<'a>(
        path: &Path,
        format: &str,
        items: impl Iterator<Item = &'a Item>,
    ) -> Result<Self, QuantizeError> {
        let mut items: Vec<&Item> = items.collect();
        items.sort_by(|a, b| b.align.cmp(&a.align).then_with(|| a.name.cmp(&b.name)));
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({"format": format}));
        let mut end = 0;
        for item in &items {
            let offsets = [end, end + item.bytes];
            end = offsets[1];
            let entry = json!({"dtype": item.dtype, "shape": item.shape, "data_offsets": offsets});
            header.insert(item.name.clone(), entry);
        }
        let mut text = Value::Object(header).to_string();
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        let base = 8 + text.len() as u64;
        let mut start = base;
        let mut places = HashMap::with_capacity(items.len());
        for item in items {
            places.insert(item.name.clone(), (start, item.bytes));
            start += item.bytes;
        }
        let path = path.display().to_string();
        let io = |source| QuantizeError::Io { path: path.clone(), source };
        let mut file = File::create_new(&path).map_err(io)?;
        file.set_len(base + end).map_err(io)?;
        file.write_all(&(text.len() as u64).to_le_bytes()).map_err(io)?;
        file.write_all(text.as_bytes()).map_err(io)?;
        Ok(Self { path, file, places })
    }

    /// Writes bytes of a tensor from `offset` in it on.
    pub fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), QuantizeError> {
        let io = |source| QuantizeError::Io { path: self.path.clone(), source };
        let place = self.places.get(name).filter(|(_, len)| offset + bytes.len() as u64 <= *len);
        let Some(&(start, _)) = place else {
            return Err(io(std::io::Error::other(format!("tensor `{name}` has no room for what it holds"))));
        };
        self.file.seek(SeekFrom::Start(start + offset)).map_err(io)?;
        self.file.write_all(bytes).map_err(io)
    }

    /// Waits until the data is on disk.
    pub fn finish(self) -> Result<(), QuantizeError> {
        self.file.sync_all().map_err(|source| QuantizeError::Io { path: self.path, source })
    }
}
