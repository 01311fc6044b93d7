//! Scans: entropy-coded blocks to coefficients, T.81 annexes F.2 (sequential) and G.2 (progressive).

use super::bits::{Bits, Huffman};
use super::{Component, Decoder, JpegError, TRUNCATED, standard};

/// Natural position of each coefficient in zigzag order.
pub(super) const ZIGZAG: [usize; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// [`ZIGZAG`], and where damaged data put what is behind it: at the last one, as in libjpeg. Indices are below 128.
const NATURAL: [u8; 128] = {
    let mut natural = [63; 128];
    let mut i = 0;
    while i < 64 {
        natural[i] = ZIGZAG[i] as u8;
        i += 1;
    }
    natural
};

/// The coefficient at a zigzag position of at most 127.
#[inline(always)]
fn at_zigzag(block: &mut [i16; 64], k: usize) -> &mut i16 {
    &mut block[usize::from(NATURAL[k & 127]) & 63]
}

/// A scan header.
pub(super) struct ScanHeader {
    /// Per component: its id, and the numbers of its DC and AC tables.
    pub(super) components: Vec<(u8, usize, usize)>,
    /// First and last coefficient, in zigzag order.
    first: usize,
    last: usize,
    /// Successive approximation: previous and current bit position.
    high: u32,
    low: u32,
}

impl ScanHeader {
    pub(super) fn parse(body: &[u8]) -> Result<Self, JpegError> {
        let short = || JpegError::from("a scan header is too short");
        let (&count, rest) = body.split_first().ok_or_else(short)?;
        let (fields, rest) = rest.split_at_checked(usize::from(count) * 2).ok_or_else(short)?;
        let &[first, last, bits, ..] = rest else { return Err(short()) };
        let components: Vec<_> = fields
            .chunks_exact(2)
            .map(|field| (field[0], usize::from(field[1] >> 4), usize::from(field[1] & 15)))
            .collect();
        if !(1..=4).contains(&components.len()) {
            return Err("a scan header has values out of range".into());
        }
        Ok(Self {
            components,
            first: first.into(),
            last: last.into(),
            high: u32::from(bits >> 4),
            low: u32::from(bits & 15),
        })
    }

    /// Whether a progressive scan is one that T.81 allows. Sequential scans need no such check: their band and bit
    /// positions are not used.
    fn progression_fits(&self) -> bool {
        let band = match self.first {
            0 => self.last == 0,
            _ => self.first <= self.last && self.last < 64 && self.components.len() == 1,
        };
        band && self.low <= 13 && (self.high == 0 || self.low + 1 == self.high)
    }
}

/// What one block of a scan holds.
#[derive(Clone, Copy)]
enum Kind {
    Sequential,
    DcFirst,
    DcRefine,
    AcFirst,
    AcRefine,
}

/// A component's part in a scan.
struct Part<'t> {
    /// Position in the frame.
    index: usize,
    dc: Option<&'t Huffman>,
    ac: Option<&'t Huffman>,
    /// Blocks of one MCU.
    h: usize,
    v: usize,
}

/// Decoding state of a scan; the predictors and the run are reset at restarts.
struct Run<'a> {
    bits: Bits<'a>,
    predictors: [i32; 4],
    /// Blocks that are still to be skipped because their band ended.
    skip: u32,
}

impl Decoder<'_> {
    /// Reads one scan and leaves `at` on the marker after it.
    pub(super) fn scan(&mut self, header: &ScanHeader) -> Result<(), JpegError> {
        let Some(frame) = &mut self.frame else { return Err("a scan comes before the frame header".into()) };
        let kind = match (frame.progressive, header.first, header.high) {
            (false, ..) => Kind::Sequential,
            (true, 0, 0) => Kind::DcFirst,
            (true, 0, _) => Kind::DcRefine,
            (true, _, 0) => Kind::AcFirst,
            (true, _, _) => Kind::AcRefine,
        };
        let interleaved = header.components.len() > 1;
        if frame.progressive && !header.progression_fits() {
            return Err("a progressive scan mixes what it may not".into());
        }
        let mut parts = Vec::with_capacity(header.components.len());
        for &(id, dc, ac) in &header.components {
            // Components may share an id: then each place in the scan is a place in the frame.
            let free = |i: usize| parts.iter().all(|p: &Part<'_>| p.index != i);
            let with_id = || (0..frame.components.len()).filter(|&i| frame.components[i].id == id && free(i));
            let found = with_id().find(|&i| i >= parts.len()).or_else(|| with_id().next());
            let index = found.ok_or("a scan names an unknown component, or one twice")?;
            let component = &mut frame.components[index];
            if component.quant.is_none() {
                let table = self.quant[component.table];
                component.quant = Some(table.ok_or("a component has no quantization table")?);
            }
            if frame.progressive {
                component.progress.scan(header.first..=header.last, header.low, self.scans > 1);
            }
            let standard = |tables: &'static [Option<Huffman>; 2], number: usize| match frame.progressive {
                true => None,
                false => tables.get(number).and_then(Option::as_ref),
            };
            let (dc, ac) = (
                self.dc.get(dc).and_then(Option::as_ref).or_else(|| standard(&standard::tables().0, dc)),
                self.ac.get(ac).and_then(Option::as_ref).or_else(|| standard(&standard::tables().1, ac)),
            );
            let missing = match kind {
                Kind::Sequential => dc.is_none() || ac.is_none(),
                Kind::DcFirst => dc.is_none(),
                Kind::DcRefine => false,
                Kind::AcFirst | Kind::AcRefine => ac.is_none(),
            };
            if missing {
                return Err("a scan uses a Huffman table that is not defined".into());
            }
            let (h, v) = if interleaved { (component.h, component.v) } else { (1, 1) };
            parts.push(Part { index, dc, ac, h, v });
        }
        // A scan of one component has only the blocks that hold samples of the picture.
        let only = &frame.components[parts[0].index];
        let (units_x, units_y) = match interleaved {
            true => (frame.mcus_x, frame.mcus_y),
            false => (only.width.div_ceil(8), only.height.div_ceil(8)),
        };

        let mut run = Run { bits: Bits::new(self.data, self.at), predictors: [0; 4], skip: 0 };
        let mut until_restart = self.restart;
        let mut next_restart = 0;
        let unit_rows = if interleaved { 1 } else { only.v };
        frame.last_good = 0;
        for y in 0..units_y {
            if !frame.progressive {
                parts.iter().for_each(|p| frame.components[p.index].coefs.fill(0));
            }
            let base = if frame.progressive { y } else { 0 };
            for x in 0..units_x {
                if !run.bits.insufficient() {
                    frame.last_good = y / unit_rows;
                }
                if self.restart > 0 {
                    if until_restart == 0 {
                        run = Run { bits: run.bits, predictors: [0; 4], skip: 0 };
                        run.bits.restart(next_restart);
                        next_restart = (next_restart + 1) % 8;
                        until_restart = self.restart;
                    }
                    until_restart -= 1;
                }
                // What is missing stays zero: grey, or the precision of the scans before.
                if run.bits.insufficient() {
                    continue;
                }
                for part in &parts {
                    let Component { coefs, blocks_w, .. } = &mut frame.components[part.index];
                    for row in base * part.v..(base + 1) * part.v {
                        for col in x * part.h..(x + 1) * part.h {
                            let block = row * *blocks_w + col;
                            let Some(block) = coefs[block * 64..].first_chunk_mut::<64>() else { continue };
                            run.block(kind, part, header, block);
                        }
                    }
                }
            }
            if run.bits.overran() {
                self.cut = true;
                return Err(TRUNCATED);
            }
            if !frame.progressive {
                parts.iter().for_each(|p| frame.components[p.index].idct_rows(p.v, y * p.v));
            }
        }
        self.at = run.bits.next_marker();
        Ok(())
    }
}

impl Run<'_> {
    #[inline]
    fn block(&mut self, kind: Kind, part: &Part<'_>, header: &ScanHeader, block: &mut [i16; 64]) {
        match (kind, part.dc, part.ac) {
            (Kind::Sequential, Some(dc), Some(ac)) => self.sequential(part.index, dc, ac, block),
            (Kind::DcFirst, Some(dc), _) => {
                block[0] = (self.dc(part.index, dc) << header.low) as i16;
            }
            (Kind::DcRefine, ..) => block[0] |= i16::from(self.bits.bit()) << header.low,
            (Kind::AcFirst, _, Some(ac)) => self.ac_first(ac, header, block),
            (Kind::AcRefine, _, Some(ac)) => self.ac_refine(ac, header, block),
            _ => {}
        }
    }

    /// The next DC value of a component.
    #[inline]
    fn dc(&mut self, index: usize, table: &Huffman) -> i32 {
        self.bits.ensure();
        let size = u32::from(table.symbol(&mut self.bits)).min(15);
        let difference = self.bits.signed(size);
        self.predictors[index] = self.predictors[index].wrapping_add(difference.into());
        self.predictors[index]
    }

    #[inline]
    fn sequential(&mut self, index: usize, dc: &Huffman, ac: &Huffman, block: &mut [i16; 64]) {
        block[0] = self.dc(index, dc) as i16;
        let mut k = 1;
        while k < 64 {
            self.bits.ensure();
            let (symbol, value) = ac.symbol_with_value(&mut self.bits);
            let zeros = usize::from(symbol >> 4);
            if symbol & 15 == 0 {
                if zeros < 15 {
                    break;
                }
                k += 16;
                continue;
            }
            k += zeros;
            *at_zigzag(block, k) = value;
            k += 1;
        }
    }

    #[inline]
    fn ac_first(&mut self, ac: &Huffman, header: &ScanHeader, block: &mut [i16; 64]) {
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        let mut k = header.first;
        while k <= header.last {
            self.bits.ensure();
            let (symbol, value) = ac.symbol_with_value(&mut self.bits);
            let zeros = u32::from(symbol >> 4);
            if symbol & 15 == 0 {
                if zeros < 15 {
                    self.skip = (1 << zeros) - 1 + self.bits.take(zeros) as u32;
                    break;
                }
                k += 16;
                continue;
            }
            k += zeros as usize;
            *at_zigzag(block, k) = value << header.low;
            k += 1;
        }
    }

    fn ac_refine(&mut self, ac: &Huffman, header: &ScanHeader, block: &mut [i16; 64]) {
        let one = 1_i16 << header.low;
        let mut k = header.first;
        // Those up to `last` that are not zero, by their zigzag position. What this scan adds is behind `k` at once.
        let nonzero = nonzero(block) & (u64::MAX >> (63 - header.last));
        if self.skip == 0 {
            while k <= header.last {
                self.bits.ensure();
                let symbol = ac.symbol(&mut self.bits);
                let (mut zeros, size) = (usize::from(symbol >> 4), symbol & 15);
                let mut value = 0;
                if size == 0 {
                    if zeros < 15 {
                        self.skip = (1 << zeros) + self.bits.take(zeros as u32) as u32;
                        break;
                    }
                } else {
                    value = if self.bits.take(1) != 0 { one } else { -one };
                }
                // Passes `zeros` zero coefficients, refining those that are not zero, then writes the new one. Where
                // damaged data run over the band, libjpeg writes it behind the band.
                while k <= header.last {
                    let run = (nonzero >> k).trailing_zeros() as usize;
                    if run > zeros {
                        k += zeros;
                        break;
                    }
                    zeros -= run;
                    k += run;
                    refine(&mut self.bits, at_zigzag(block, k), one);
                    k += 1;
                }
                k = k.min(header.last + 1);
                if value != 0 {
                    *at_zigzag(block, k) = value;
                }
                k += 1;
            }
        }
        if self.skip > 0 {
            let mut left = nonzero & u64::MAX.checked_shl(k as u32).unwrap_or(0);
            while left != 0 {
                refine(&mut self.bits, at_zigzag(block, left.trailing_zeros() as usize), one);
                left &= left - 1;
            }
            self.skip -= 1;
        }
    }
}

/// A bit for each coefficient, by its position in zigzag order: whether it is not zero.
#[inline(always)]
fn nonzero(block: &[i16; 64]) -> u64 {
    /// Per row of a block and pattern of its coefficients, the first in the lowest bit: their places in zigzag order.
    static PLACES: [[u64; 256]; 8] = {
        let mut places = [[0; 256]; 8];
        let mut k = 0;
        while k < 64 {
            let (row, column) = (ZIGZAG[k] / 8, ZIGZAG[k] % 8);
            let mut pattern = 0;
            while pattern < 256 {
                if pattern >> column & 1 == 1 {
                    places[row][pattern] |= 1 << k;
                }
                pattern += 1;
            }
            k += 1;
        }
        places
    };
    let patterns = row_patterns(block);
    let mut out = 0;
    for (places, pattern) in PLACES.iter().zip(patterns) {
        out |= places[usize::from(pattern)];
    }
    out
}

/// Per row a bit for each coefficient that is not zero, the first in the lowest bit.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn row_patterns(block: &[i16; 64]) -> [u8; 8] {
    use std::arch::x86_64::*;
    let mut out = [0; 8];
    for (rows, out) in block.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<2>().0) {
        // SAFETY: SSE2 is part of the architecture; sixteen values are there, loads need no alignment.
        let zeros = unsafe {
            let at = rows.as_ptr();
            let zero = _mm_setzero_si128();
            let first = _mm_cmpeq_epi16(_mm_loadu_si128(at.cast()), zero);
            let second = _mm_cmpeq_epi16(_mm_loadu_si128(at.add(8).cast()), zero);
            _mm_movemask_epi8(_mm_packs_epi16(first, second))
        };
        *out = (!zeros as u16).to_le_bytes();
    }
    out
}

/// Per row a bit for each coefficient that is not zero, the first in the lowest bit.
#[cfg(not(target_arch = "x86_64"))]
fn row_patterns(block: &[i16; 64]) -> [u8; 8] {
    let mut out = [0; 8];
    for (row, out) in block.as_chunks::<8>().0.iter().zip(&mut out) {
        *out = row.iter().rev().fold(0, |bits, &c| bits << 1 | u8::from(c != 0));
    }
    out
}

/// One more bit of a coefficient that is not zero.
#[inline]
fn refine(bits: &mut Bits<'_>, coef: &mut i16, one: i16) {
    if bits.bit() && *coef & one == 0 {
        *coef = coef.wrapping_add(if *coef > 0 { one } else { -one });
    }
}
