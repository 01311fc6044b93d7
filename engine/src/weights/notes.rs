//! What a model took from a checkpoint, noted as it was loaded: parts, roles of matrices, formats.

use std::collections::BTreeMap;

use ocelli_kernels::{View, Weights};

use super::{Checkpoint, Fold, Role};
use crate::vlm::PartInfo;

/// Something that a model took.
#[derive(Clone, Debug)]
pub struct Note {
    /// Path of the module.
    pub module: String,
    /// What it is to the model.
    pub role: Option<Role>,
    /// Whether it is a matrix that may be stored quantized.
    pub matrix: bool,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes as stored.
    pub bytes: u64,
    /// Format of a matrix.
    pub format: Option<String>,
    /// Rows and columns of a matrix.
    pub size: Option<[usize; 2]>,
    /// How a matrix is published, if it is quantized: the name of a way to store it.
    pub source: Option<&'static str>,
}

impl Note {
    pub(super) fn of_weights(
        module: &str,
        role: Option<Role>,
        matrix: bool,
        w: &Weights,
        source: Option<&'static str>,
    ) -> Self {
        let biases: usize = w.parts().iter().filter_map(|part| part.bias.as_ref()).map(View::len).sum();
        Self {
            module: module.to_owned(),
            role,
            matrix,
            parameters: (w.n() * w.k() + biases) as u64,
            bytes: w.bytes(),
            format: Some(w.format().to_string()),
            size: Some([w.n(), w.k()]),
            source,
        }
    }

    pub(super) fn of_view(module: String, role: Option<Role>, view: &View) -> Self {
        let (parameters, bytes) = (view.len() as u64, view.bytes());
        Self { module, role, matrix: false, parameters, bytes, format: None, size: None, source: None }
    }
}

impl Role {
    /// The part of a model that matrices of this role belong to.
    #[must_use]
    pub const fn part(self) -> &'static str {
        match self {
            Self::Tower => "tower",
            Self::Connector => "connector",
            Self::Decoder => "decoder",
            Self::Text => "text tower",
            Self::Head | Self::Embedding => "embedding and head",
            Self::Painter => "painter",
        }
    }
}

impl Checkpoint {
    /// What was taken so far, in order.
    #[must_use]
    pub fn notes(&self) -> Vec<Note> {
        self.notes.lock().map(|notes| notes.clone()).unwrap_or_default()
    }

    pub(super) fn note(&self, note: Note) {
        if let Ok(mut notes) = self.notes.lock() {
            notes.push(note);
        }
    }

    /// Declares that matrices take what something gives and nothing else takes; see [`Fold`].
    pub fn fold(&self, fold: Fold) {
        if let Ok(mut folds) = self.folds.lock() {
            folds.push(fold);
        }
    }

    /// What was declared so far, in order.
    #[must_use]
    pub fn folds(&self) -> Vec<Fold> {
        self.folds.lock().map(|folds| folds.clone()).unwrap_or_default()
    }

    /// Parameters, bytes and formats of each part, of what was taken.
    #[must_use]
    pub fn parts(&self) -> Vec<PartInfo> {
        let mut parts: Vec<(PartInfo, BTreeMap<String, usize>)> = Vec::new();
        for note in self.notes() {
            let Some(name) = note.role.map(Role::part) else { continue };
            let place = parts.iter().position(|(part, _)| part.name == name).unwrap_or(parts.len());
            if place == parts.len() {
                let part = PartInfo { name, parameters: 0, bytes: 0, formats: Vec::new() };
                parts.push((part, BTreeMap::new()));
            }
            let (part, formats) = &mut parts[place];
            part.parameters += note.parameters;
            part.bytes += note.bytes;
            if let Some(format) = note.format {
                *formats.entry(format).or_default() += 1;
            }
        }
        let filled = |(part, formats): (PartInfo, BTreeMap<String, usize>)| PartInfo {
            formats: formats.into_iter().collect(),
            ..part
        };
        parts.into_iter().map(filled).collect()
    }
}
