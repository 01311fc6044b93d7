//! Decoded pixels of any colour type to 8-bit RGB, by the rules of the reference (Pillow's mode conversions and
//! transformers' `convert_to_rgb`), and the EXIF orientations.

use image::ColorType;
use image::metadata::Orientation;

use super::decode::Alpha;
use super::error::{ImageError, try_zeroed};

/// `value` over white with opacity `alpha`, rounded as Pillow's `alpha_composite` does.
#[inline(always)]
fn over_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let sum = (value * alpha + 255 * (255 - alpha)) * 128 + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

#[inline(always)]
fn blend(alpha: Alpha, value: u8, opacity: u8) -> u8 {
    match alpha {
        Alpha::White => over_white(value, opacity),
        Alpha::Drop => value,
    }
}

/// Packs pixels of `SRC` bytes to 3 bytes in place (`SRC >= 3`, so a write never overtakes the reads).
#[inline(always)]
fn pack<const SRC: usize>(mut data: Vec<u8>, rgb: impl Fn([u8; SRC]) -> [u8; 3]) -> Vec<u8> {
    let pixels = data.len() / SRC;
    for i in 0..pixels {
        let mut px = [0; SRC];
        px.copy_from_slice(&data[i * SRC..(i + 1) * SRC]);
        data[i * 3..i * 3 + 3].copy_from_slice(&rgb(px));
    }
    data.truncate(pixels * 3);
    data.shrink_to_fit();
    data
}

/// Widens pixels of `SRC` bytes to three equal ones.
#[inline(always)]
fn widen<const SRC: usize>(
    name: &str,
    data: &[u8],
    grey: impl Fn([u8; SRC]) -> u8,
) -> Result<Vec<u8>, ImageError> {
    let mut out = try_zeroed(name, data.len() / SRC * 3)?;
    for (dst, src) in out.chunks_exact_mut(3).zip(data.chunks_exact(SRC)) {
        let mut px = [0; SRC];
        px.copy_from_slice(src);
        dst.fill(grey(px));
    }
    Ok(out)
}

/// The upper half of a native-endian 16-bit sample.
#[inline(always)]
fn high(a: u8, b: u8) -> u8 {
    (u16::from_ne_bytes([a, b]) >> 8) as u8
}

/// 16-bit grey as Pillow converts mode `I;16`: levels above 255 clip, they are not scaled.
#[inline(always)]
fn clip(a: u8, b: u8) -> u8 {
    u16::from_ne_bytes([a, b]).min(255) as u8
}

/// `data` of colour type `color` to `[.., 3]`.
/// `grey16` says that the file's samples are 16-bit grey without an alpha channel of their own.
pub(crate) fn to_rgb8(
    name: &str,
    data: Vec<u8>,
    color: ColorType,
    grey16: bool,
    alpha: Alpha,
) -> Result<Option<Vec<u8>>, ImageError> {
    Ok(Some(match color {
        ColorType::Rgb8 => data,
        ColorType::L8 => widen::<1>(name, &data, |[v]| v)?,
        ColorType::La8 => widen::<2>(name, &data, |[v, a]| blend(alpha, v, a))?,
        ColorType::Rgba8 => pack::<4>(data, |[r, g, b, a]| [r, g, b].map(|v| blend(alpha, v, a))),
        ColorType::L16 => widen::<2>(name, &data, |[a, b]| clip(a, b))?,
        ColorType::La16 if grey16 => pack::<4>(data, |[v0, v1, _, _]| [clip(v0, v1); 3]),
        ColorType::La16 => pack::<4>(data, |[v0, v1, a0, a1]| [blend(alpha, high(v0, v1), high(a0, a1)); 3]),
        ColorType::Rgb16 => {
            pack::<6>(data, |[r0, r1, g0, g1, b0, b1]| [high(r0, r1), high(g0, g1), high(b0, b1)])
        }
        ColorType::Rgba16 => pack::<8>(data, |[r0, r1, g0, g1, b0, b1, a0, a1]| {
            [high(r0, r1), high(g0, g1), high(b0, b1)].map(|v| blend(alpha, v, high(a0, a1)))
        }),
        _ => return Ok(None),
    }))
}

/// Turns `data: [height, width, 3]` upright; returns the new width, height and data.
pub(crate) fn orient(
    name: &str,
    width: usize,
    height: usize,
    mut data: Vec<u8>,
    orientation: Orientation,
) -> Result<(usize, usize, Vec<u8>), ImageError> {
    let flip_rows = |data: &mut Vec<u8>| {
        let row = width * 3;
        let (upper, lower) = data.split_at_mut(height / 2 * row);
        for (a, b) in upper.chunks_exact_mut(row).zip(lower.chunks_exact_mut(row).rev()) {
            a.swap_with_slice(b);
        }
    };
    let flip_cols = |data: &mut Vec<u8>| {
        for row in data.chunks_exact_mut(width * 3) {
            let (pixels, _) = row.as_chunks_mut::<3>();
            pixels.reverse();
        }
    };
    // The source row and column of each output pixel (out_row, out_col) of the four that swap the sides.
    let swap = |data: &[u8], at: &dyn Fn(usize, usize) -> (usize, usize)| {
        let mut out = try_zeroed(name, data.len())?;
        for (out_row, row) in out.chunks_exact_mut(height * 3).enumerate() {
            for (out_col, px) in row.chunks_exact_mut(3).enumerate() {
                let (r, c) = at(out_row, out_col);
                let start = (r * width + c) * 3;
                px.copy_from_slice(&data[start..start + 3]);
            }
        }
        Ok((height, width, out))
    };
    match orientation {
        Orientation::NoTransforms => {}
        Orientation::FlipHorizontal => flip_cols(&mut data),
        Orientation::FlipVertical => flip_rows(&mut data),
        Orientation::Rotate180 => {
            let (pixels, _) = data.as_chunks_mut::<3>();
            pixels.reverse();
        }
        Orientation::Rotate90FlipH => return swap(&data, &|r, c| (c, r)),
        Orientation::Rotate90 => return swap(&data, &|r, c| (height - 1 - c, r)),
        Orientation::Rotate270FlipH => return swap(&data, &|r, c| (height - 1 - c, width - 1 - r)),
        Orientation::Rotate270 => return swap(&data, &|r, c| (c, width - 1 - r)),
    }
    Ok((width, height, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_shows_through_by_opacity() {
        for v in 0..=255 {
            assert_eq!(over_white(v, 255), v);
            assert_eq!(over_white(v, 0), 255);
        }
        assert_eq!(over_white(100, 128), 177);
        assert_eq!(over_white(1, 3), 252);
    }

    #[test]
    fn orientations_move_the_corners() {
        // 1 2 3
        // 4 5 6
        let data: Vec<u8> = (1..=6).flat_map(|v| [v; 3]).collect();
        let want: [(Orientation, usize, [u8; 6]); 8] = [
            (Orientation::NoTransforms, 3, [1, 2, 3, 4, 5, 6]),
            (Orientation::FlipHorizontal, 3, [3, 2, 1, 6, 5, 4]),
            (Orientation::Rotate180, 3, [6, 5, 4, 3, 2, 1]),
            (Orientation::FlipVertical, 3, [4, 5, 6, 1, 2, 3]),
            (Orientation::Rotate90FlipH, 2, [1, 4, 2, 5, 3, 6]),
            (Orientation::Rotate90, 2, [4, 1, 5, 2, 6, 3]),
            (Orientation::Rotate270FlipH, 2, [6, 3, 5, 2, 4, 1]),
            (Orientation::Rotate270, 2, [3, 6, 2, 5, 1, 4]),
        ];
        for (orientation, width, values) in want {
            let (w, h, got) = orient("x", 3, 2, data.clone(), orientation).unwrap();
            assert_eq!((w, h), (width, 6 / width), "{orientation:?}");
            let got: Vec<u8> = got.chunks(3).map(|px| px[0]).collect();
            assert_eq!(got, values, "{orientation:?}");
        }
    }
}
