//! Places in a picture that an answer names, and how they are drawn.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::image::Rgb8Image;

/// A place in a picture, in pixels from its left upper corner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Left, top, right and bottom.
    Box([i64; 4]),
    /// Outlines, each of points across and down in turn.
    Outlines(Vec<Vec<i64>>),
}

/// A place with what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// What is there; may be empty.
    pub label: String,
    /// Where.
    pub shape: Shape,
}

/// What an answer says of places.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Regions {
    /// What was asked, as the model names it.
    pub task: String,
    /// Boxes, outlines and labels, as the reference's processor names them.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
    /// The same as shapes.
    #[serde(skip)]
    pub regions: Vec<Region>,
}

/// Colours of regions, one after the other.
const COLOURS: [[u8; 3]; 6] =
    [[230, 60, 50], [40, 160, 70], [50, 100, 220], [220, 140, 20], [150, 60, 200], [20, 160, 180]];

impl Regions {
    /// Draws outlines and labels onto a picture.
    #[must_use]
    pub fn drawn(&self, picture: &Rgb8Image) -> Rgb8Image {
        let mut canvas = Canvas::of(picture);
        for (number, region) in self.regions.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let mut corner = None;
            match &region.shape {
                Shape::Box([left, top, right, bottom]) => {
                    canvas.outline(&[*left, *top, *right, *top, *right, *bottom, *left, *bottom], colour);
                    corner = Some((*left, *top));
                }
                Shape::Outlines(outlines) => {
                    for outline in outlines {
                        canvas.outline(outline, colour);
                        if let (None, [x, y, ..]) = (corner, &outline[..]) {
                            corner = Some((*x, *y));
                        }
                    }
                }
            }
            if let Some(at) = corner {
                canvas.label(at, &region.label, colour);
            }
        }
        canvas.picture()
    }
}

struct Canvas {
    width: i64,
    height: i64,
    data: Vec<u8>,
    /// Width of lines, and pixels of a dot of letters.
    line: i64,
}

impl Canvas {
    fn of(picture: &Rgb8Image) -> Self {
        let (width, height) = (picture.width() as i64, picture.height() as i64);
        Self { width, height, data: picture.data().to_vec(), line: (width.max(height) / 400).max(1) }
    }

    fn picture(self) -> Rgb8Image {
        let (width, height) = (self.width as usize, self.height as usize);
        // As many bytes as the picture that it began with.
        Rgb8Image::from_raw(width, height, self.data).unwrap_or_else(|| unreachable!("the same size"))
    }

    /// Fills a square of pixels, those of it that are in the picture.
    fn dot(&mut self, x: i64, y: i64, size: i64, colour: [u8; 3]) {
        for row in y.max(0)..(y + size).min(self.height) {
            for col in x.max(0)..(x + size).min(self.width) {
                let at = ((row * self.width + col) * 3) as usize;
                self.data[at..at + 3].copy_from_slice(&colour);
            }
        }
    }

    /// A closed line through points.
    fn outline(&mut self, points: &[i64], colour: [u8; 3]) {
        let points: Vec<(i64, i64)> = points.chunks_exact(2).map(|point| (point[0], point[1])).collect();
        for (i, &from) in points.iter().enumerate() {
            self.segment(from, points[(i + 1) % points.len()], colour);
        }
    }

    fn segment(&mut self, (x0, y0): (i64, i64), (x1, y1): (i64, i64), colour: [u8; 3]) {
        // Bins name places beyond a picture at most in damaged answers: such lines are cut to a sensible length.
        let clamp = |x: i64, y: i64| (x.clamp(-16, self.width + 16), y.clamp(-16, self.height + 16));
        let ((x0, y0), (x1, y1)) = (clamp(x0, y0), clamp(x1, y1));
        let steps = (x1 - x0).abs().max((y1 - y0).abs()).max(1);
        let half = self.line / 2;
        for step in 0..=steps {
            let at = |from: i64, to: i64| from + ((to - from) * step * 2 + steps).div_euclid(2 * steps);
            self.dot(at(x0, x1) - half, at(y0, y1) - half, self.line, colour);
        }
    }

    /// A text on a bar of the colour, above the point where there is room.
    fn label(&mut self, (x, y): (i64, i64), text: &str, colour: [u8; 3]) {
        let letters: Vec<char> = text.chars().take(64).collect();
        if letters.is_empty() {
            return;
        }
        let size = self.line;
        let (width, height) = ((letters.len() as i64 * 6 + 1) * size, 9 * size);
        let top = if y >= height { y - height } else { y };
        let left = x.min(self.width - width).max(0);
        for row in 0..9 {
            for col in 0..letters.len() as i64 * 6 + 1 {
                self.dot(left + col * size, top + row * size, size, colour);
            }
        }
        for (number, letter) in letters.into_iter().enumerate() {
            for (col, bits) in glyph(letter).into_iter().enumerate() {
                for row in (0..7).filter(|row| bits >> row & 1 == 1) {
                    let across = number as i64 * 6 + 1 + col as i64;
                    self.dot(left + across * size, top + (row + 1) * size, size, [255; 3]);
                }
            }
        }
    }
}

/// Columns of a letter, five of seven dots each, the topmost the lowest bit; a box for what is not ASCII.
fn glyph(letter: char) -> [u8; 5] {
    let index = (letter as usize).wrapping_sub(0x20);
    FONT.get(index).copied().unwrap_or([0x7f, 0x41, 0x41, 0x41, 0x7f])
}

/// ASCII from the space on.
#[rustfmt::skip]
const FONT: [[u8; 5]; 95] = [
    [0x00, 0x00, 0x00, 0x00, 0x00], [0x00, 0x00, 0x5f, 0x00, 0x00], [0x00, 0x07, 0x00, 0x07, 0x00], [0x14, 0x7f, 0x14, 0x7f, 0x14],
    [0x24, 0x2a, 0x7f, 0x2a, 0x12], [0x23, 0x13, 0x08, 0x64, 0x62], [0x36, 0x49, 0x55, 0x22, 0x50], [0x00, 0x05, 0x03, 0x00, 0x00],
    [0x00, 0x1c, 0x22, 0x41, 0x00], [0x00, 0x41, 0x22, 0x1c, 0x00], [0x14, 0x08, 0x3e, 0x08, 0x14], [0x08, 0x08, 0x3e, 0x08, 0x08],
    [0x00, 0x50, 0x30, 0x00, 0x00], [0x08, 0x08, 0x08, 0x08, 0x08], [0x00, 0x60, 0x60, 0x00, 0x00], [0x20, 0x10, 0x08, 0x04, 0x02],
    [0x3e, 0x51, 0x49, 0x45, 0x3e], [0x00, 0x42, 0x7f, 0x40, 0x00], [0x42, 0x61, 0x51, 0x49, 0x46], [0x21, 0x41, 0x45, 0x4b, 0x31],
    [0x18, 0x14, 0x12, 0x7f, 0x10], [0x27, 0x45, 0x45, 0x45, 0x39], [0x3c, 0x4a, 0x49, 0x49, 0x30], [0x01, 0x71, 0x09, 0x05, 0x03],
    [0x36, 0x49, 0x49, 0x49, 0x36], [0x06, 0x49, 0x49, 0x29, 0x1e], [0x00, 0x36, 0x36, 0x00, 0x00], [0x00, 0x56, 0x36, 0x00, 0x00],
    [0x08, 0x14, 0x22, 0x41, 0x00], [0x14, 0x14, 0x14, 0x14, 0x14], [0x00, 0x41, 0x22, 0x14, 0x08], [0x02, 0x01, 0x51, 0x09, 0x06],
    [0x32, 0x49, 0x79, 0x41, 0x3e], [0x7e, 0x11, 0x11, 0x11, 0x7e], [0x7f, 0x49, 0x49, 0x49, 0x36], [0x3e, 0x41, 0x41, 0x41, 0x22],
    [0x7f, 0x41, 0x41, 0x22, 0x1c], [0x7f, 0x49, 0x49, 0x49, 0x41], [0x7f, 0x09, 0x09, 0x09, 0x01], [0x3e, 0x41, 0x49, 0x49, 0x7a],
    [0x7f, 0x08, 0x08, 0x08, 0x7f], [0x00, 0x41, 0x7f, 0x41, 0x00], [0x20, 0x40, 0x41, 0x3f, 0x01], [0x7f, 0x08, 0x14, 0x22, 0x41],
    [0x7f, 0x40, 0x40, 0x40, 0x40], [0x7f, 0x02, 0x0c, 0x02, 0x7f], [0x7f, 0x04, 0x08, 0x10, 0x7f], [0x3e, 0x41, 0x41, 0x41, 0x3e],
    [0x7f, 0x09, 0x09, 0x09, 0x06], [0x3e, 0x41, 0x51, 0x21, 0x5e], [0x7f, 0x09, 0x19, 0x29, 0x46], [0x46, 0x49, 0x49, 0x49, 0x31],
    [0x01, 0x01, 0x7f, 0x01, 0x01], [0x3f, 0x40, 0x40, 0x40, 0x3f], [0x1f, 0x20, 0x40, 0x20, 0x1f], [0x3f, 0x40, 0x38, 0x40, 0x3f],
    [0x63, 0x14, 0x08, 0x14, 0x63], [0x07, 0x08, 0x70, 0x08, 0x07], [0x61, 0x51, 0x49, 0x45, 0x43], [0x00, 0x7f, 0x41, 0x41, 0x00],
    [0x02, 0x04, 0x08, 0x10, 0x20], [0x00, 0x41, 0x41, 0x7f, 0x00], [0x04, 0x02, 0x01, 0x02, 0x04], [0x40, 0x40, 0x40, 0x40, 0x40],
    [0x00, 0x01, 0x02, 0x04, 0x00], [0x20, 0x54, 0x54, 0x54, 0x78], [0x7f, 0x48, 0x44, 0x44, 0x38], [0x38, 0x44, 0x44, 0x44, 0x20],
    [0x38, 0x44, 0x44, 0x48, 0x7f], [0x38, 0x54, 0x54, 0x54, 0x18], [0x08, 0x7e, 0x09, 0x01, 0x02], [0x0c, 0x52, 0x52, 0x52, 0x3e],
    [0x7f, 0x08, 0x04, 0x04, 0x78], [0x00, 0x44, 0x7d, 0x40, 0x00], [0x20, 0x40, 0x44, 0x3d, 0x00], [0x7f, 0x10, 0x28, 0x44, 0x00],
    [0x00, 0x41, 0x7f, 0x40, 0x00], [0x7c, 0x04, 0x18, 0x04, 0x78], [0x7c, 0x08, 0x04, 0x04, 0x78], [0x38, 0x44, 0x44, 0x44, 0x38],
    [0x7c, 0x14, 0x14, 0x14, 0x08], [0x08, 0x14, 0x14, 0x18, 0x7c], [0x7c, 0x08, 0x04, 0x04, 0x08], [0x48, 0x54, 0x54, 0x54, 0x20],
    [0x04, 0x3f, 0x44, 0x40, 0x20], [0x3c, 0x40, 0x40, 0x20, 0x7c], [0x1c, 0x20, 0x40, 0x20, 0x1c], [0x3c, 0x40, 0x30, 0x40, 0x3c],
    [0x44, 0x28, 0x10, 0x28, 0x44], [0x0c, 0x50, 0x50, 0x50, 0x3c], [0x44, 0x64, 0x54, 0x4c, 0x44], [0x00, 0x08, 0x36, 0x41, 0x00],
    [0x00, 0x00, 0x7f, 0x00, 0x00], [0x00, 0x41, 0x36, 0x08, 0x00], [0x08, 0x04, 0x08, 0x10, 0x08],
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_drawn_where_they_are() {
        let picture = Rgb8Image::from_raw(20, 20, vec![0; 1200]).expect("as many bytes as pixels");
        let region = |label: &str, shape| Region { label: label.into(), shape };
        let regions = vec![
            region("", Shape::Box([2, 3, 10, 12])),
            // Beyond the picture, and no points at all.
            region("x", Shape::Box([-500, -500, 5000, 5000])),
            region("", Shape::Outlines(vec![vec![], vec![4]])),
        ];
        let drawn = Regions { task: "<OD>".into(), fields: Map::new(), regions }.drawn(&picture);
        let at = |x: usize, y: usize| &drawn.data()[(y * 20 + x) * 3..(y * 20 + x) * 3 + 3];
        for (x, y) in [(2, 3), (10, 3), (2, 12), (10, 12), (6, 12), (10, 7)] {
            assert_eq!(at(x, y), COLOURS[0], "{x} {y}");
        }
        assert_eq!(at(15, 15), [0; 3]);
    }
}
