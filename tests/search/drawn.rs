//! Drawn pictures: a shape of a colour on a ground, all different.

use std::path::Path;

use ocelli_engine::image::{Rgb8Image, write_png};

/// Pixels of a side.
const SIDE: usize = 40;

/// Picture `number`: the numbers below 100,000 give different ones.
pub fn picture(number: usize) -> Rgb8Image {
    let mixed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let level = |shift: u32| ((mixed >> shift) & 0xff) as u8;
    let (ground, front) = ([level(0), level(8), level(16)], [level(24), level(32), level(40)]);
    let (x0, y0) = ((mixed >> 48) as usize % 20 + 8, (mixed >> 54) as usize % 20 + 8);
    let size = 4 + number % 9;
    let mut data = Vec::with_capacity(SIDE * SIDE * 3);
    for y in 0..SIDE {
        for x in 0..SIDE {
            let (dx, dy) = (x.abs_diff(x0), y.abs_diff(y0));
            let inside = match number % 3 {
                0 => dx.max(dy) <= size,
                1 => dx * dx + dy * dy <= size * size,
                _ => dx + dy <= size,
            };
            // The number itself in one row, so that no two are the same.
            let own = [number as u8, (number >> 8) as u8, 255];
            data.extend(if y == 0 && x < 2 {
                own
            } else if inside {
                front
            } else {
                ground
            });
        }
    }
    Rgb8Image::from_raw(SIDE, SIDE, data).unwrap()
}

/// Writes picture `number` to a file.
pub fn draw(path: &Path, number: usize) {
    write_png(path, &picture(number)).unwrap();
}

/// A folder of the pictures `0..count`: `0000.png` and so on.
pub fn folder(dir: &Path, count: usize) {
    std::fs::create_dir_all(dir).unwrap();
    for number in 0..count {
        draw(&dir.join(format!("{number:04}.png")), number);
    }
}
