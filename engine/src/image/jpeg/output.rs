//! Chroma upsampling and colour conversion, with libjpeg's roundings.

use super::{Component, Frame, JpegError, zeroed};

/// What the components mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColorSpace {
    Grey,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

/// Frame with its planes to RGB, `[height, width, 3]`.
pub(super) fn to_rgb(frame: Frame, space: ColorSpace) -> Result<Vec<u8>, JpegError> {
    let mut out = zeroed(frame.width * frame.height * 3)?;
    #[cfg(target_arch = "x86_64")]
    if crate::image::may_use_avx2() {
        // SAFETY: the machine has AVX2, as just checked.
        unsafe { avx2(&frame, space, &mut out) };
        return Ok(out);
    }
    body(&frame, space, &mut out);
    Ok(out)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(frame: &Frame, space: ColorSpace, out: &mut [u8]) {
    body(frame, space, out);
}

#[inline(always)]
fn body(frame: &Frame, space: ColorSpace, out: &mut [u8]) {
    // Padded rows, so that doubled columns fit: a component has at most `width / 2 + 1` samples where it is doubled.
    let mut rows: [Vec<u8>; 4] = std::array::from_fn(|_| vec![0; frame.mcus_x * frame.h_max * 8]);
    let mut sums = vec![0_u16; frame.mcus_x * frame.h_max * 8];
    for (y, out) in out.chunks_exact_mut(frame.width * 3).enumerate() {
        for (component, row) in frame.components.iter().zip(&mut rows) {
            upsample(component, frame.h_max / component.h, frame.v_max / component.v, y, &mut sums, row);
        }
        let [a, b, c, d] = rows.each_ref().map(|row| &row[..frame.width]);
        let (out, _) = out.as_chunks_mut::<3>();
        match space {
            ColorSpace::Grey => out.iter_mut().zip(a).for_each(|(px, &v)| *px = [v; 3]),
            ColorSpace::Rgb => {
                for (((px, &r), &g), &b) in out.iter_mut().zip(a).zip(b).zip(c) {
                    *px = [r, g, b];
                }
            }
            ColorSpace::YCbCr => {
                for (((px, &y), &cb), &cr) in out.iter_mut().zip(a).zip(b).zip(c) {
                    *px = ycc(y, cb, cr);
                }
            }
            ColorSpace::Cmyk => {
                for ((((px, &c), &m), &y), &k) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                    *px = [c, m, y].map(|ink| inverted_ink(ink, k));
                }
            }
            ColorSpace::Ycck => {
                for ((((px, &y), &cb), &cr), &k) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                    *px = ycc(y, cb, cr).map(|v| inverted_ink(255 - v, k));
                }
            }
        }
    }
}

/// YCbCr to RGB: BT.601 at full range with 16-bit constants.
#[inline(always)]
fn ycc(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let r = y + ((91_881 * cr + HALF) >> 16);
    let g = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let b = y + ((116_130 * cb + HALF) >> 16);
    [r, g, b].map(|v| v.clamp(0, 255) as u8)
}

/// One channel of inverted CMYK (Adobe's convention, which the reference assumes of all files), as Pillow converts it.
#[inline(always)]
fn inverted_ink(ink: u8, k: u8) -> u8 {
    let product = (255 - i32::from(ink)) * i32::from(k) + 128;
    (i32::from(k) - (((product >> 8) + product) >> 8)).clamp(0, 255) as u8
}

/// Output row `y` of a component whose samples span `dx x dy` pixels.
#[inline(always)]
fn upsample(component: &Component, dx: usize, dy: usize, y: usize, sums: &mut [u16], out: &mut [u8]) {
    let (width, stride) = (component.width, component.stride());
    let row = |y: usize| &component.plane[y * stride..y * stride + width];
    let near = y / dy;
    // The row that is next nearest, within the picture.
    let far = if y.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(component.height - 1) };
    match (dx, dy) {
        (1, 1) => out[..width].copy_from_slice(row(near)),
        (1, 2) => {
            let bias = 1 + (y % 2) as u16;
            for ((dst, &a), &b) in out.iter_mut().zip(row(near)).zip(row(far)) {
                *dst = ((3 * u16::from(a) + u16::from(b) + bias) >> 2) as u8;
            }
        }
        (2, 1) if width > 2 => {
            sums.iter_mut().zip(row(near)).for_each(|(sum, &v)| *sum = v.into());
            triangle::<2>(&sums[..width], [1, 2], out);
        }
        (2, 2) if width > 2 => {
            for ((sum, &a), &b) in sums.iter_mut().zip(row(near)).zip(row(far)) {
                *sum = 3 * u16::from(a) + u16::from(b);
            }
            triangle::<4>(&sums[..width], [8, 7], out);
        }
        _ => {
            for (pixels, &v) in out.chunks_mut(dx).zip(row(near)) {
                pixels.fill(v);
            }
        }
    }
}

/// Doubles a row: each output is 3/4 of the nearer and 1/4 of the next sample, `SHIFT` bits dropped after adding the
/// bias of its parity; the outermost outputs are the outermost samples.
#[inline(always)]
fn triangle<const SHIFT: u32>(samples: &[u16], bias: [u16; 2], out: &mut [u8]) {
    let (out, _) = out.as_chunks_mut::<2>();
    let last = samples.len() - 1;
    let mix = |near: u16, next: u16, bias: u16| ((3 * near + next + bias) >> SHIFT) as u8;
    out[0] = [mix(samples[0], samples[0], bias[0]), mix(samples[0], samples[1], bias[1])];
    for (dst, near) in out[1..last].iter_mut().zip(samples.windows(3)) {
        *dst = [mix(near[1], near[0], bias[0]), mix(near[1], near[2], bias[1])];
    }
    out[last] = [mix(samples[last], samples[last - 1], bias[0]), mix(samples[last], samples[last], bias[1])];
}
