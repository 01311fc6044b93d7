//! Scans: entropy-coded blocks to coefficients, T.81 annexes F.2 (sequential) and G.2 (progressive).

use super::bits::{Bits, Huffman};
use super::{Component, Decoder, JpegError, TRUNCATED, standard};

/// Natural position of each coefficient in zigzag order.
pub(super) const ZIGZAG: [usize; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

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
        self.bits.refill();
        let size = u32::from(table.symbol(&mut self.bits)).min(15);
        let difference = self.bits.signed(size);
        self.predictors[index] = self.predictors[index].wrapping_add(difference);
        self.predictors[index]
    }

    #[inline]
    fn sequential(&mut self, index: usize, dc: &Huffman, ac: &Huffman, block: &mut [i16; 64]) {
        block[0] = self.dc(index, dc) as i16;
        let mut k = 1;
        while k < 64 {
            self.bits.refill();
            let symbol = ac.symbol(&mut self.bits);
            let (zeros, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 {
                if zeros < 15 {
                    break;
                }
                k += 16;
                continue;
            }
            k += zeros;
            let value = self.bits.signed(size);
            block[ZIGZAG[k.min(63)]] = value as i16;
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
            self.bits.refill();
            let symbol = ac.symbol(&mut self.bits);
            let (zeros, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 {
                if zeros < 15 {
                    self.skip = (1 << zeros) - 1 + self.bits.take(zeros) as u32;
                    break;
                }
                k += 16;
                continue;
            }
            k += zeros as usize;
            let value = self.bits.signed(size);
            block[ZIGZAG[k.min(63)]] = (value << header.low) as i16;
            k += 1;
        }
    }

    fn ac_refine(&mut self, ac: &Huffman, header: &ScanHeader, block: &mut [i16; 64]) {
        let one = 1_i16 << header.low;
        let mut k = header.first;
        if self.skip == 0 {
            while k <= header.last {
                self.bits.refill();
                let symbol = ac.symbol(&mut self.bits);
                let (mut zeros, size) = (u32::from(symbol >> 4), symbol & 15);
                let mut value = 0;
                if size == 0 {
                    if zeros < 15 {
                        self.skip = (1 << zeros) + self.bits.take(zeros) as u32;
                        break;
                    }
                } else {
                    value = if self.bits.take(1) != 0 { one } else { -one };
                }
                // Passes `zeros` zero coefficients, refining those that are not zero, then writes the new one. Where
                // damaged data run over the band, libjpeg writes it behind the band.
                while k <= header.last {
                    let coef = &mut block[ZIGZAG[k]];
                    if *coef != 0 {
                        refine(&mut self.bits, coef, one);
                    } else if zeros == 0 {
                        break;
                    } else {
                        zeros -= 1;
                    }
                    k += 1;
                }
                if value != 0 {
                    block[ZIGZAG[k.min(63)]] = value;
                }
                k += 1;
            }
        }
        if self.skip > 0 {
            for &at in ZIGZAG.get(k..=header.last).unwrap_or_default() {
                if block[at] != 0 {
                    refine(&mut self.bits, &mut block[at], one);
                }
            }
            self.skip -= 1;
        }
    }
}

/// One more bit of a coefficient that is not zero.
#[inline]
fn refine(bits: &mut Bits<'_>, coef: &mut i16, one: i16) {
    if bits.bit() && *coef & one == 0 {
        *coef = coef.wrapping_add(if *coef > 0 { one } else { -one });
    }
}
