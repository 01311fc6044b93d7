//! Pictures as they are learnt from: parts of them, mirrored, in other colours.

use std::sync::Arc;

use ocelli_engine::image::{DecodeOptions, Filter, PreparedImage, Rgb8Image, resize};
use ocelli_engine::{Processor, Result};

use crate::data::TrainRow;
use crate::learner::Draw;
use crate::random::Random;

/// How pictures are changed before they are learnt from. What is drawn follows from seed, epoch and line of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Augment {
    /// Least share of a picture's area that is cut out and resized to the picture's size, so that its tokens stay as many; `None`: all of
    /// it is seen.
    pub crop: Option<f64>,
    /// Whether every other picture is mirrored left to right.
    pub flip: bool,
    /// By how much brightness, contrast and saturation may be off: factors from `1 - colour` to `1 + colour`.
    pub colour: f64,
}

/// Sides of a part are to each other as those of the picture, but for a factor of so much either way.
const STRETCH: f64 = 4.0 / 3.0;

impl Augment {
    /// Whether pictures stay as they are.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// A picture with what is drawn for it.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn apply(&self, image: Rgb8Image, random: &mut Random) -> Result<Rgb8Image> {
        let mut image = image;
        if let Some(least) = self.crop {
            image = cropped(image, least, random)?;
        }
        if self.flip && random.bits() & 1 == 1 {
            image = mirrored(image);
        }
        if self.colour > 0.0 {
            let mut factor = || random.between(1.0 - self.colour, 1.0 + self.colour) as f32;
            image = coloured(image, [factor(), factor(), factor()]);
        }
        Ok(image)
    }

    /// The pictures of a row, with what is drawn for them; as they are where nothing is drawn.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn pictures(&self, row: &TrainRow, draw: Option<Draw>) -> Result<Vec<Rgb8Image>> {
        let mut random = draw.filter(|_| !self.is_none()).map(Random::of);
        let one = |picture: &ocelli_engine::image::PictureSource| {
            let image = picture.decode(&DecodeOptions::default())?;
            match &mut random {
                Some(random) => self.apply(image, random),
                None => Ok(image),
            }
        };
        row.pictures.iter().map(one).collect()
    }
}

/// The pictures of a row, ready for the tower.
///
/// # Errors
/// If one cannot be prepared.
pub fn prepared(processor: &dyn Processor, images: &[Rgb8Image]) -> Result<Vec<Arc<PreparedImage>>> {
    images.iter().map(|image| processor.prepare_one_of(image, images.len(), 1).map(Arc::new)).collect()
}

fn cropped(image: Rgb8Image, least: f64, random: &mut Random) -> Result<Rgb8Image> {
    let (width, height) = (image.width(), image.height());
    let area = random.between(least, 1.0);
    let stretch = random.between(-STRETCH.ln(), STRETCH.ln()).exp().sqrt();
    let side = |whole: usize, share: f64| ((whole as f64 * share).round() as usize).clamp(1, whole);
    // A side that would be longer than the picture's is that; the other one makes up for it.
    let wide = (area.sqrt() * stretch).clamp(area, 1.0);
    let (w, h) = (side(width, wide), side(height, area / wide));
    let (x, y) = (random.below(width - w + 1), random.below(height - h + 1));
    match image.crop(x, y, w, h) {
        Some(part) if (w, h) != (width, height) => Ok(resize(&part, width, height, Filter::Bicubic, 1)?),
        _ => Ok(image),
    }
}

fn mirrored(image: Rgb8Image) -> Rgb8Image {
    let (width, height) = (image.width(), image.height());
    let mut data = Vec::with_capacity(image.data().len());
    for row in image.data().chunks_exact(3 * width) {
        data.extend(row.rchunks_exact(3).flatten());
    }
    Rgb8Image::from_raw(width, height, data).unwrap_or(image)
}

/// Brightness, then contrast about the mean grey, then saturation about each pixel's grey; levels stay between 0 and 255.
fn coloured(image: Rgb8Image, [brightness, contrast, saturation]: [f32; 3]) -> Rgb8Image {
    let (width, height) = (image.width(), image.height());
    let mut levels: Vec<f32> =
        image.data().iter().map(|&level| (f32::from(level) * brightness).min(255.0)).collect();
    let gray = |pixel: &[f32]| 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2];
    let sum: f64 = levels.chunks_exact(3).map(|pixel| f64::from(gray(pixel))).sum();
    let mean = (sum / (width * height) as f64) as f32;
    for pixel in levels.chunks_exact_mut(3) {
        pixel.iter_mut().for_each(|level| *level = (mean + contrast * (*level - mean)).clamp(0.0, 255.0));
        let gray = gray(pixel);
        pixel.iter_mut().for_each(|level| *level = gray + saturation * (*level - gray));
    }
    let data = levels.into_iter().map(|level| level.clamp(0.0, 255.0).round() as u8).collect();
    Rgb8Image::from_raw(width, height, data).unwrap_or(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Rgb8Image {
        let data = (0..12 * 8 * 3).map(|i| (i * 37 % 251) as u8).collect();
        Rgb8Image::from_raw(12, 8, data).expect("a picture")
    }

    fn drawn(augment: &Augment, epoch: u64) -> Rgb8Image {
        let mut random = Random::of(Draw { seed: 3, epoch, line: 5 });
        augment.apply(picture(), &mut random).expect("a picture")
    }

    #[test]
    fn what_is_drawn_follows_from_the_row() {
        let all = Augment { crop: Some(0.3), flip: true, colour: 0.4 };
        let (first, second) = (drawn(&all, 0), drawn(&all, 1));
        assert_eq!((first.width(), first.height()), (12, 8));
        assert_eq!(first, drawn(&all, 0));
        assert_ne!(first, second);
        assert!(Augment::default().is_none() && !all.is_none());
        assert_eq!(drawn(&Augment::default(), 0), picture());
    }

    #[test]
    fn parts_are_as_large_as_is_asked() {
        let whole = Augment { crop: Some(1.0), ..Augment::default() };
        for epoch in 0..20 {
            assert_eq!(drawn(&whole, epoch), picture());
        }
        // Of a picture whose levels grow to the right, a part has fewer of them.
        let ramp = |w: usize| (0..8 * w * 3).map(|i| (i / 3 % w) as u8).collect();
        let ramp = Rgb8Image::from_raw(200, 8, ramp(200)).expect("a picture");
        let mut least = 200;
        for state in 0..64 {
            let part = cropped(ramp.clone(), 0.25, &mut Random::new(state)).expect("a part");
            let row = &part.data()[..600];
            let seen = usize::from(*row.iter().max().expect("some") - *row.iter().min().expect("some"));
            least = least.min(seen);
            // A quarter of the area, and no more than a third narrower than it would be of the same shape.
            assert!((48..200).contains(&seen), "{seen}");
        }
        assert!(least < 140, "{least}");
    }

    #[test]
    fn mirrors_and_colours() {
        let image = picture();
        let other = mirrored(image.clone());
        assert_eq!(other.data()[..3], image.data()[33..36]);
        assert_eq!(mirrored(other), image);
        assert_eq!(coloured(image.clone(), [1.0; 3]), image);
        let gray = coloured(image.clone(), [1.0, 1.0, 0.0]);
        assert!(gray.data().chunks(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
        let flat = coloured(image.clone(), [1.0, 0.0, 1.0]);
        assert!(flat.data().iter().all(|&level| level == flat.data()[0]));
        let dark = coloured(image, [0.0, 1.0, 1.0]);
        assert!(dark.data().iter().all(|&level| level == 0));
    }
}
