//! The first frame of a GIF, as the reference's decoder shows it: on a canvas of the transparent colour, or of colour 0.

use std::io::Read;
use std::num::NonZeroU64;

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

/// Pixels of the first frame on its canvas, `[height, width, 4]` RGBA.
pub(crate) struct Frame {
    pub width: u32,
    pub height: u32,
    pub rgba: Vec<u8>,
}

/// Decodes the first frame. `check` sees the canvas (the screen, widened where the frame sticks out) before anything is
/// allocated, `zeroed` allocates, and `error` names what is wrong.
pub(crate) fn decode<E>(
    data: &[u8],
    max_bytes: u64,
    check: impl Fn(u32, u32) -> Result<(), E>,
    zeroed: impl Fn(usize) -> Result<Vec<u8>, E>,
    error: impl Fn(String) -> E,
) -> Result<Frame, E> {
    let failed = |e: DecodingError| error(e.to_string());
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(NonZeroU64::new(max_bytes).map_or(MemoryLimit::Unlimited, MemoryLimit::Bytes));
    // Without a palette of its own the file gets one of 256 shades of grey.
    let (head, rest) = data.split_at(data.len().min(13));
    let mut head = head.to_vec();
    let mut palette = Vec::new();
    if let Some(flags) = head.get_mut(10)
        && *flags & 0x80 == 0
    {
        *flags |= 0x87;
        palette.extend((0..=255).flat_map(|shade| [shade; 3]));
    }
    let mut decoder = options.read_info((&head[..]).chain(&palette[..]).chain(rest)).map_err(failed)?;
    let screen = (u32::from(decoder.width()), u32::from(decoder.height()));
    let Some(frame) = decoder.next_frame_info().map_err(failed)? else {
        return Err(error("there is no frame".to_owned()));
    };
    let transparent = frame.transparent;
    let local = frame.palette.as_deref().filter(|palette| !counts_shades(palette)).map(<[u8]>::to_vec);
    let [left, top, width, height] = [frame.left, frame.top, frame.width, frame.height].map(usize::from);
    let canvas = (screen.0.max((left + width) as u32), screen.1.max((top + height) as u32));
    check(canvas.0, canvas.1)?;
    let (canvas_w, canvas_h) = (canvas.0 as usize, canvas.1 as usize);

    let mut codes = zeroed(width * height)?;
    decoder.read_into_buffer(&mut codes).map_err(failed)?;
    // A palette that counts shades of grey is as good as none: then codes are shades themselves, also those beyond it.
    // Codes beyond another palette are black.
    let palette = local.or_else(|| decoder.global_palette().map(<[u8]>::to_vec)).unwrap_or_default();
    let shades = counts_shades(&palette);
    let color = |code: u8| -> [u8; 4] {
        let at = usize::from(code) * 3;
        let alpha = if transparent == Some(code) { 0 } else { 255 };
        match palette.get(at..at + 3) {
            Some(&[r, g, b]) => [r, g, b, alpha],
            _ if shades => [code, code, code, alpha],
            _ => [0, 0, 0, alpha],
        }
    };
    let colors: [[u8; 4]; 256] = std::array::from_fn(|code| color(code as u8));
    let mut rgba = zeroed(canvas_w * canvas_h * 4)?;
    let (pixels, _) = rgba.as_chunks_mut::<4>();
    if (width, height) != (canvas_w, canvas_h) {
        pixels.fill(color(transparent.unwrap_or(0)));
    }
    if width > 0 {
        for (dst, src) in pixels.chunks_exact_mut(canvas_w).skip(top).zip(codes.chunks_exact(width)) {
            for (px, &code) in dst[left..].iter_mut().zip(src) {
                *px = colors[usize::from(code)];
            }
        }
    }
    Ok(Frame { width: canvas.0, height: canvas.1, rgba })
}

/// Whether color 0 of a palette is the grey of level 0, color 1 that of level 1, and so on.
fn counts_shades(palette: &[u8]) -> bool {
    palette.chunks_exact(3).zip(0..).all(|(color, shade)| color.iter().all(|&v| v == shade))
}
