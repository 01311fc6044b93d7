//! Requests about several pictures whose tower runs while pictures are still prepared.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::image::{PreparedImage, Rgb8Image};
use crate::pipeline::Pipeline;
use crate::sample::SamplingParams;
use crate::scheduler::{Limits, Media, Picture, Request};
use crate::text::Message;
use crate::timing::Phase;
use crate::video::Video;

impl Pipeline {
    /// As [`request_with_videos`](Self::request_with_videos), with the features of pictures, and of those that videos give, in place of
    /// the pictures where there are several: the tower runs here, for the first picture while others are prepared, then for two, four and so on. Which go through it together depends on
    /// their sizes alone. Once all are prepared, the prompt is laid out before the tower goes on.
    pub fn request_ahead(
        &self,
        cx: &mut Ctx,
        messages: &[Message],
        images: &[Rgb8Image],
        videos: &[Video],
        params: SamplingParams,
    ) -> Result<Request> {
        params.validate()?;
        let shown = &self.shown(messages, images, videos)?;
        if shown.len() < 2 {
            let make = || self.request_with_videos(messages, images, videos, params);
            return cx.timings.measure(Phase::Resize, make);
        }
        let mut groups = Groups::new(shown.len());
        let (pictures, prompt) = std::thread::scope(|scope| {
            let (sender, ready) = channel();
            // Of the stage that this is part of, though on a thread of its own.
            let span = Phase::Resize.span();
            let preparing = scope.spawn(move || {
                let start = Instant::now();
                let tell = |number: usize, picture: &Arc<Picture>| {
                    // Nobody listens after an error.
                    let _ = sender.send((number, picture.clone()));
                };
                (span.in_scope(|| self.prepare_shown(shown, &tell)), start.elapsed())
            });
            for (number, picture) in ready {
                groups.slots[number] = Some(picture);
                while groups.encode_next(self, cx) {}
            }
            let (pictures, time) = preparing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let (pictures, start) = (pictures?, Instant::now());
            let prompt = self.lay_out_shown(messages, shown, &pictures)?;
            cx.timings.add(Phase::Resize, time + start.elapsed());
            Ok::<_, Error>((pictures, prompt))
        })?;
        while groups.encode_next(self, cx) {}
        let media = pictures.into_iter().zip(groups.media);
        let media = media.map(|(picture, media)| media.unwrap_or(Media::Picture(picture))).collect();
        Ok(Request { prompt, media, params })
    }
}

/// Pictures that go through the tower in turn: one, two, four and so on, as many as a pass takes.
struct Groups {
    slots: Vec<Option<Arc<Picture>>>,
    /// Features of those that are encoded.
    media: Vec<Option<Media>>,
    /// The first that is not encoded, and how many go next at most.
    next: usize,
    most: usize,
    /// Patches of a group.
    patches: usize,
}

impl Groups {
    fn new(count: usize) -> Self {
        let patches = Limits::default().patches;
        Self { slots: vec![None; count], media: vec![None; count], next: 0, most: 1, patches }
    }

    /// The next group, if all of it is there.
    fn group(&self) -> Option<&[Option<Arc<Picture>>]> {
        let rest = self.slots.get(self.next..).filter(|rest| !rest.is_empty())?;
        let mut sum = 0;
        for (number, slot) in rest.iter().take(self.most).enumerate() {
            sum += slot.as_ref()?.patches();
            if sum > self.patches && number > 0 {
                return Some(&rest[..number]);
            }
        }
        Some(&rest[..self.most.min(rest.len())])
    }

    /// Runs the tower for the next group; false if it is not there yet.
    fn encode_next(&mut self, pipeline: &Pipeline, cx: &mut Ctx) -> bool {
        let Some(group) = self.group() else { return false };
        let images: Vec<&PreparedImage> = group.iter().flatten().map(|picture| &***picture).collect();
        let count = images.len();
        let features = {
            let _span = tracing::info_span!("encode", pictures = count).entered();
            cx.scope(|cx| pipeline.model.encode(cx, &images))
        };
        match features {
            Ok(features) => {
                for (slot, features) in self.media[self.next..].iter_mut().zip(features) {
                    *slot = Some(features.into());
                }
            }
            // The scheduler tries them one by one.
            Err(error) => tracing::debug!(%error, "pictures are not encoded ahead"),
        }
        self.next += count;
        self.most *= 2;
        true
    }
}
