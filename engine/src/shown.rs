//! What a request shows, before it is prepared: pictures and frames of videos, in the order of the prompt.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{PreparedImage, Rgb8Image};
use crate::parallel::try_map;
use crate::pipeline::Pipeline;
use crate::prompt::Prompt;
use crate::scheduler::Picture;
use crate::text::{ChatTemplate, Content, Message, Part};
use crate::video::{Placed, Video, VideoProcessor};

/// Pictures of a request as the tower sees them.
pub(crate) struct Shown<'a> {
    pictures: Vec<Unprepared<'a>>,
    /// Pictures that are no part of a video.
    images: usize,
    videos: Vec<Placed<'a>>,
}

enum Unprepared<'a> {
    Image(&'a Rgb8Image),
    Frames(&'a Video, Range<usize>),
}

impl<'a> Shown<'a> {
    /// Pictures alone.
    pub fn of_images(images: &'a [Rgb8Image]) -> Self {
        let pictures = images.iter().map(Unprepared::Image).collect();
        Self { pictures, images: images.len(), videos: Vec::new() }
    }

    /// Number of pictures that the tower sees.
    pub fn len(&self) -> usize {
        self.pictures.len()
    }
}

impl Pipeline {
    /// Pictures and those of videos in the order in which messages place them.
    ///
    /// # Errors
    /// If the messages place others than there are, and if the family takes no videos.
    pub(crate) fn shown<'a>(
        &self,
        messages: &[Message],
        images: &'a [Rgb8Image],
        videos: &'a [Video],
    ) -> Result<Shown<'a>> {
        if videos.is_empty() && !messages.iter().any(Message::shows_video) {
            return Ok(Shown::of_images(images));
        }
        let processor = self.videos()?;
        let mut shown = Shown { pictures: Vec::new(), images: images.len(), videos: Vec::new() };
        let (mut images, mut videos) = (images.iter(), videos.iter());
        let (given, mut placed) = ((images.len(), videos.len()), (0, 0));
        for message in messages {
            let Content::Parts(parts) = &message.content else { continue };
            for part in parts {
                match part {
                    Part::Image => {
                        placed.0 += 1;
                        shown.pictures.extend(images.next().map(Unprepared::Image));
                    }
                    Part::Video => {
                        placed.1 += 1;
                        let Some(video) = videos.next() else { continue };
                        let (first, frames) = (shown.pictures.len(), video.frames.len());
                        let each = processor.frames_of_picture(frames).max(1);
                        shown.pictures.extend(
                            (0..frames)
                                .step_by(each)
                                .map(|from| Unprepared::Frames(video, from..(from + each).min(frames))),
                        );
                        shown.videos.push(Placed { first, count: shown.pictures.len() - first, video });
                    }
                    Part::Text { .. } => {}
                }
            }
        }
        if placed != given {
            let ((images, videos), found) = (given, placed);
            return Err(Error::Request(format!(
                "messages: expected places for {images} pictures and {videos} videos, found {} and {}",
                found.0, found.1
            )));
        }
        Ok(shown)
    }

    fn videos(&self) -> Result<&dyn VideoProcessor> {
        self.processor.video().ok_or_else(|| {
            let family = self.model.info().family;
            Error::Request(format!("video: {family} takes none here: expected pictures or text alone"))
        })
    }

    /// Resizes and tiles what a request shows, several at once. `ready` is told of each as soon as it is prepared, on the thread that
    /// did it, in any order.
    pub(crate) fn prepare_shown(
        &self,
        shown: &Shown<'_>,
        ready: &(dyn Fn(usize, &Arc<Picture>) + Sync),
    ) -> Result<Vec<Arc<Picture>>> {
        let numbers: Vec<usize> = (0..shown.len()).collect();
        try_map(&numbers, self.threads, |&number, threads| {
            let prepared = match &shown.pictures[number] {
                Unprepared::Image(image) => self.processor.prepare_one_of(image, shown.images, threads)?,
                Unprepared::Frames(video, of) => {
                    self.videos()?.picture(&video.frames, of.clone(), threads)?
                }
            };
            let picture = Arc::new(Picture::from(prepared));
            ready(number, &picture);
            Ok(picture)
        })
    }

    /// Tokens of a conversation about what was prepared.
    pub(crate) fn lay_out_shown(
        &self,
        messages: &[Message],
        shown: &Shown<'_>,
        pictures: &[Arc<Picture>],
    ) -> Result<Prompt> {
        let pictures: Vec<&PreparedImage> = pictures.iter().map(|picture| &***picture).collect();
        if shown.videos.is_empty() {
            return self.lay_out(messages, &pictures);
        }
        let processor = self.videos()?;
        let rendered = match processor.template() {
            Some(source) => {
                let name = "the template for videos";
                ChatTemplate::new(source, name, &self.tokenizer)?.render(messages, &self.options)?
            }
            None => self.render(messages)?,
        };
        let pieces: Vec<&str> = rendered.split(processor.mark()).collect();
        if pieces.len() != shown.videos.len() + 1 {
            let (expected, found) = (shown.videos.len(), pieces.len() - 1);
            return Err(Error::Request(format!(
                "the chat template: expected places of {expected} videos, found {found}"
            )));
        }
        let texts = shown.videos.iter().map(|placed| {
            let video = placed.video;
            processor.text(&video.times, video.seconds)
        });
        let texts = texts.chain([String::new()]);
        let text: String =
            pieces.into_iter().zip(texts).flat_map(|(piece, text)| [piece.to_owned(), text]).collect();
        let mut prompt = self.laid_out(&text, &pictures)?;
        processor.place(&mut prompt, &pictures, &shown.videos);
        Ok(prompt)
    }
}
