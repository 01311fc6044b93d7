//! Chroma upsampling and colour conversion, with libjpeg's roundings.

#[cfg(target_arch = "x86_64")]
use super::avx2::output as vector;
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
    body::<false>(&frame, space, &mut out);
    Ok(out)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(frame: &Frame, space: ColorSpace, out: &mut [u8]) {
    body::<true>(frame, space, out);
}

/// With `AVX2` the machine must have that.
#[inline(always)]
fn body<const AVX2: bool>(frame: &Frame, space: ColorSpace, out: &mut [u8]) {
    // Padded rows, so that doubled columns fit: a component has at most `width / 2 + 1` samples where it is doubled.
    let padded = frame.mcus_x * frame.h_max * 8;
    let mut rows: [Vec<u8>; 4] = std::array::from_fn(|_| vec![0; padded]);
    let mut sums = vec![0_u16; padded + 2];
    for (y, out) in out.chunks_exact_mut(frame.width * 3).enumerate() {
        let mut sources: [&[u8]; 4] = [&[]; 4];
        for ((component, row), source) in frame.components.iter().zip(&mut rows).zip(&mut sources) {
            let span = (frame.h_max / component.h, frame.v_max / component.v);
            *source = match span {
                (1, 1) => component.row(y),
                _ => {
                    upsample::<AVX2>(component, span, y, &mut sums, row);
                    row
                }
            };
        }
        let [a, b, c, d] = sources.map(|row| row.get(..frame.width).unwrap_or_default());
        if space == ColorSpace::YCbCr {
            ycc_row::<AVX2>(a, b, c, out);
            continue;
        }
        let (out, _) = out.as_chunks_mut::<3>();
        match space {
            ColorSpace::Grey => out.iter_mut().zip(a).for_each(|(px, &v)| *px = [v; 3]),
            ColorSpace::Rgb => {
                for (((px, &r), &g), &b) in out.iter_mut().zip(a).zip(b).zip(c) {
                    *px = [r, g, b];
                }
            }
            ColorSpace::YCbCr => {}
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

/// Rows of YCbCr, as long as `out` has pixels, to RGB.
#[inline(always)]
pub(super) fn ycc_row<const AVX2: bool>(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if AVX2 {
        // SAFETY: the machine has AVX2, as the caller says.
        unsafe { vector::ycc(y, cb, cr, out) };
        done = y.len() / vector::STEP * vector::STEP;
    }
    let rest = out.as_chunks_mut::<3>().0.iter_mut().zip(y).zip(cb).zip(cr).skip(done);
    for (((px, &y), &cb), &cr) in rest {
        *px = ycc(y, cb, cr);
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

/// Output row `y` of a component whose samples span `dx x dy` pixels. `sums` has two values more than the padded row.
#[inline(always)]
fn upsample<const AVX2: bool>(
    component: &Component,
    (dx, dy): (usize, usize),
    y: usize,
    sums: &mut [u16],
    out: &mut [u8],
) {
    let width = component.width;
    let near = y / dy;
    // The row that is next nearest, within the picture.
    let far = if y.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(component.height - 1) };
    let (near, far) = (component.row(near), component.row(far));
    let sums = &mut sums[..width + 2];
    match (dx, dy) {
        (1, 2) => {
            let bias = 1 + (y % 2) as u16;
            for ((dst, &a), &b) in out.iter_mut().zip(near).zip(far) {
                *dst = ((3 * u16::from(a) + u16::from(b) + bias) >> 2) as u8;
            }
        }
        (2, 1) if width > 2 => {
            sums[1..].iter_mut().zip(near).for_each(|(sum, &v)| *sum = v.into());
            triangle::<AVX2, 2>(sums, [1, 2], out);
        }
        (2, 2) if width > 2 => {
            weighted::<AVX2>(near, far, &mut sums[1..=width]);
            triangle::<AVX2, 4>(sums, [8, 7], out);
        }
        _ => {
            for (pixels, &v) in out.chunks_mut(dx).zip(near) {
                pixels.fill(v);
            }
        }
    }
}

/// `3 near + far`.
#[inline(always)]
pub(super) fn weighted<const AVX2: bool>(near: &[u8], far: &[u8], sums: &mut [u16]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if AVX2 {
        // SAFETY: the machine has AVX2, as the caller says.
        unsafe { vector::weighted(near, far, sums) };
        done = sums.len() / vector::STEP * vector::STEP;
    }
    for ((sum, &a), &b) in sums.iter_mut().zip(near).zip(far).skip(done) {
        *sum = 3 * u16::from(a) + u16::from(b);
    }
}

/// Doubles the samples between the first and the last of `samples`, which are set to their neighbours: the row goes on
/// as it ends. Each output is 3/4 of the nearer and 1/4 of the next sample, `SHIFT` bits dropped after adding the bias of
/// its parity.
#[inline(always)]
pub(super) fn triangle<const AVX2: bool, const SHIFT: i32>(
    samples: &mut [u16],
    bias: [u16; 2],
    out: &mut [u8],
) {
    let count = samples.len() - 2;
    (samples[0], samples[count + 1]) = (samples[1], samples[count]);
    let out = &mut out[..2 * count];
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if AVX2 {
        // SAFETY: the machine has AVX2, as the caller says.
        unsafe { vector::triangle::<SHIFT>(samples, bias, out) };
        done = count / vector::STEP * vector::STEP;
    }
    let mix = |near: u16, next: u16, bias: u16| ((3 * near + next + bias) >> SHIFT) as u8;
    for (dst, near) in out.as_chunks_mut::<2>().0.iter_mut().zip(samples.windows(3)).skip(done) {
        *dst = [mix(near[1], near[0], bias[0]), mix(near[1], near[2], bias[1])];
    }
}
