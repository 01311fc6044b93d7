//! Features of pictures that were encoded before.

use std::collections::HashMap;

use super::request::Picture;
use crate::ctx::Ctx;
use crate::image::Key;
use crate::prompt::Features;
use crate::store::FeatureStore;

struct Entry {
    features: Features,
    used: u64,
}

/// Features by what their pictures are known by, up to a number of bytes; those that were used least recently go first.
pub(super) struct Pictures {
    limit: u64,
    bytes: u64,
    entries: HashMap<Key, Entry>,
    now: u64,
    store: Option<FeatureStore>,
    /// Pictures that did not have to be encoded again.
    pub found: usize,
}

impl Pictures {
    pub fn new(limit: u64) -> Self {
        Self { limit, bytes: 0, entries: HashMap::new(), now: 0, store: None, found: 0 }
    }

    /// Looks for features in `store` too, and leaves there what is encoded.
    pub fn set_store(&mut self, store: FeatureStore) {
        self.store = Some(store);
    }

    /// Features that are in memory.
    pub fn get(&mut self, picture: &Picture) -> Option<Features> {
        let entry = self.entries.get_mut(&picture.key())?;
        self.now += 1;
        entry.used = self.now;
        self.found += 1;
        Some(entry.features.clone())
    }

    /// Features that are in the store.
    pub fn load(&mut self, cx: &mut Ctx, picture: &Picture) -> Option<Features> {
        let features = self.store.as_ref()?.load(cx, picture.key())?;
        self.remember(picture, &features);
        Some(features)
    }

    /// Keeps what was encoded.
    pub fn save(&mut self, cx: &mut Ctx, picture: &Picture, features: &Features) {
        if let Some(store) = &self.store {
            store.save(cx, picture.key(), features);
        }
        self.remember(picture, features);
    }

    fn remember(&mut self, picture: &Picture, features: &Features) {
        let bytes = features.bytes();
        if bytes > self.limit {
            return;
        }
        self.now += 1;
        let entry = Entry { features: features.clone(), used: self.now };
        if let Some(old) = self.entries.insert(picture.key(), entry) {
            self.bytes -= old.features.bytes();
        }
        self.bytes += bytes;
        while self.bytes > self.limit {
            let Some(key) = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key)
            else {
                return;
            };
            if let Some(old) = self.entries.remove(&key) {
                self.bytes -= old.features.bytes();
            }
        }
    }
}
