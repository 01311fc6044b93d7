//! Pictures that are encoded before the request about them is there.

use std::sync::{Arc, Weak};

use super::Scheduler;
use super::request::{Live, Media, Picture};
use crate::ctx::Ctx;
use crate::image::{Key, PreparedImage};
use crate::prompt::Features;

/// A picture that a request is to ask about.
struct Expected {
    picture: Weak<Picture>,
    key: Key,
    features: Option<Features>,
}

/// Expected pictures, the oldest first, as long as somebody else holds them.
#[derive(Default)]
pub(super) struct Early(Vec<Expected>);

impl Early {
    fn trim(&mut self) {
        self.0.retain(|expected| expected.picture.strong_count() > 0);
    }

    /// Whether any is to be encoded.
    pub fn is_due(&self) -> bool {
        self.0.iter().any(|expected| expected.features.is_none() && expected.picture.strong_count() > 0)
    }

    /// Features of a picture that was expected and is encoded.
    pub fn get(&self, picture: &Picture) -> Option<Features> {
        let known = |expected: &&Expected| expected.key == picture.key() && expected.features.is_some();
        self.0.iter().find(known)?.features.clone()
    }

    /// Gives features to those that are this picture.
    fn place(&mut self, key: Key, features: &Features) {
        let same = self.0.iter_mut().filter(|expected| expected.key == key);
        same.for_each(|expected| expected.features = Some(features.clone()));
    }

    /// The next that are to be encoded, each once: `patches` at most, but one at least.
    fn next(&self, patches: usize) -> Vec<Arc<Picture>> {
        let (mut next, mut sum): (Vec<Arc<Picture>>, usize) = (Vec::new(), 0);
        for expected in self.0.iter().filter(|expected| expected.features.is_none()) {
            let Some(picture) = expected.picture.upgrade() else { continue };
            if next.iter().any(|other| other.key() == expected.key) {
                continue;
            }
            sum += picture.patches();
            if sum > patches && !next.is_empty() {
                break;
            }
            next.push(picture);
        }
        next
    }
}

impl Scheduler {
    /// Takes a picture that a request is to ask about: the tower runs for it as soon as no request waits for the tower. What it gives
    /// is kept until that request is there, or nobody else holds the picture.
    pub fn expect(&mut self, picture: &Arc<Picture>) {
        self.early.trim();
        let features = self.early.get(picture).or_else(|| self.pictures.get(picture));
        self.early.0.push(Expected { picture: Arc::downgrade(picture), key: picture.key(), features });
    }

    /// Whether expected pictures are to be encoded: a step is due, though there be no request.
    #[must_use]
    pub fn expects(&self) -> bool {
        self.early.is_due()
    }

    /// The request about these pictures is there.
    pub(super) fn met(&mut self, live: &Live) {
        let here = |expected: &Expected| {
            live.media.iter().any(|media| match media {
                Media::Picture(picture) => Arc::as_ptr(picture) == expected.picture.as_ptr(),
                Media::Features(_) => false,
            })
        };
        self.early.0.retain(|expected| !here(expected));
    }

    /// Runs the tower for expected pictures.
    pub(super) fn encode_expected(&mut self, cx: &mut Ctx) {
        self.early.trim();
        let mut next = self.early.next(self.limits.patches);
        next.retain(|picture| match self.pictures.load(cx, picture) {
            Some(features) => {
                self.pictures.found += 1;
                self.early.place(picture.key(), &features);
                false
            }
            None => true,
        });
        if next.is_empty() {
            return;
        }
        let all: Vec<&PreparedImage> = next.iter().map(|picture| &***picture).collect();
        match self.run_tower(cx, &all) {
            Ok(features) => {
                for (picture, features) in next.iter().zip(features) {
                    self.pictures.save(cx, picture, &features);
                    self.early.place(picture.key(), &features);
                }
            }
            Err(error) => {
                // Their requests meet it, each for itself.
                tracing::debug!(%error, "expected pictures are not encoded ahead");
                let failed = |expected: &Expected| next.iter().any(|picture| picture.key() == expected.key);
                self.early.0.retain(|expected| !failed(expected));
            }
        }
    }
}
