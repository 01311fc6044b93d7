use super::JpegError;

/// Bits that a symbol and its value may take: a code that does not exist has 17, a value up to 15.
const ENOUGH: u32 = 32;

/// Reads entropy-coded bits, most significant first. Stops at a marker and gives zeros from there on; how the caller
/// goes on from there (see [`Bits::insufficient`] and [`Bits::restart`]) is libjpeg's way.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// Unread bits, left-aligned, and their number.
    acc: u64,
    count: u32,
    /// How many of the unread bits, at the end, are not in the file.
    padding: u32,
    /// Whether bits were taken that the data before the marker, or the end, lack.
    short: bool,
    /// Whether zeros follow because the file ends, not because of a marker.
    ended: bool,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8], at: usize) -> Self {
        Self { data, at, acc: 0, count: 0, padding: 0, short: false, ended: false }
    }

    /// Makes at least 57 bits available.
    ///
    /// Eight bytes at once may leave bits of the next byte behind the `count` that are counted: they are those that a
    /// later call puts there again.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        if let Some(word) = self.data.get(self.at..).and_then(|rest| rest.first_chunk()) {
            let word = u64::from_be_bytes(*word);
            const ONES: u64 = u64::MAX / 0xff;
            let zero_if_ff = !word;
            if zero_if_ff.wrapping_sub(ONES) & word & (ONES << 7) == 0 {
                let bytes = (64 - self.count) / 8;
                self.acc |= word >> self.count;
                self.at += bytes as usize;
                self.count += bytes * 8;
                return;
            }
        }
        self.refill_by_bytes();
    }

    /// [`Bits::refill`] at least to [`ENOUGH`].
    #[inline(always)]
    pub(super) fn ensure(&mut self) {
        if self.count < ENOUGH {
            self.refill();
        }
    }

    #[inline(never)]
    fn refill_by_bytes(&mut self) {
        while self.count <= 56 {
            let byte = match self.data.get(self.at..) {
                Some([0xff, 0x00, ..]) => {
                    self.at += 2;
                    0xff
                }
                Some([0xff, 0xff, ..]) => {
                    self.at += 1;
                    continue;
                }
                Some([0xff, _, ..]) => self.pad(),
                Some(&[byte, ..]) if byte != 0xff => {
                    self.at += 1;
                    byte
                }
                _ => {
                    self.ended = true;
                    self.pad()
                }
            };
            self.acc |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    #[cold]
    fn pad(&mut self) -> u8 {
        self.short |= self.count < self.padding;
        self.padding = (self.padding + 8).min(64);
        0
    }

    /// The next `n` bits, `1..=16`, without taking them. [`Bits::refill`] comes first.
    #[inline]
    fn peek(&self, n: u32) -> usize {
        (self.acc >> (64 - n)) as usize
    }

    #[inline]
    fn skip(&mut self, n: u32) {
        self.acc <<= n;
        self.count -= n;
    }

    /// Takes `n` bits, `0..=16`, of those that [`Bits::refill`] made available.
    #[inline]
    pub(super) fn take(&mut self, n: u32) -> i32 {
        if n == 0 {
            return 0;
        }
        let value = self.peek(n);
        self.skip(n);
        value as i32
    }

    /// Takes one bit, refilling as needed.
    #[inline]
    pub(super) fn bit(&mut self) -> bool {
        if self.count == 0 {
            self.refill();
        }
        self.take(1) != 0
    }

    /// Takes a signed value of `n` bits, `0..=15`: T.81, F.2.2.1.
    #[inline(always)]
    pub(super) fn signed(&mut self, n: u32) -> i16 {
        extended(self.take(n), n)
    }

    /// Whether bits were taken that are not there. The blocks up to the next restart are then left as they are.
    #[inline]
    pub(super) fn insufficient(&self) -> bool {
        self.short | (self.count < self.padding)
    }

    /// Whether bits were taken that a truncated file lacks.
    pub(super) fn overran(&self) -> bool {
        self.ended && self.insufficient()
    }

    /// Drops what is left of the segment and passes the restart marker of number `wanted` (`0..=7`). Other markers are
    /// judged as by libjpeg: those of the two numbers before are skipped with their data; at the next two numbers, and
    /// at markers of another kind, a segment is missing and reads as an empty one; any other number is taken for the
    /// wanted one.
    #[cold]
    pub(super) fn restart(&mut self, wanted: u8) {
        let (short, mut at) = (self.insufficient(), self.next_marker());
        loop {
            let code = match self.data.get(at + 1) {
                Some(&code) => code,
                None => {
                    *self = Self { short: true, ended: true, ..Self::new(self.data, self.data.len()) };
                    return;
                }
            };
            let ahead = code.wrapping_sub(0xd0).wrapping_sub(wanted) & 7;
            let skip = code < 0xc0 || (matches!(code, 0xd0..=0xd7) && matches!(ahead, 6 | 7));
            if !skip {
                let empty = !matches!(code, 0xd0..=0xd7) || matches!(ahead, 1 | 2);
                *self = match empty {
                    true => Self { short, ..Self::new(self.data, at) },
                    false => Self::new(self.data, at + 2),
                };
                return;
            }
            self.at = at + 2;
            at = self.next_marker();
        }
    }

    /// Position of the next marker, or the end of the file.
    pub(super) fn next_marker(&self) -> usize {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let found = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff));
        found.map_or(self.data.len(), |offset| self.at + offset)
    }
}

/// Bits that the lookup table resolves at once.
const FAST: u32 = 10;

/// A symbol, and the value behind it where the table has it.
///
/// From the low end: 6 bits the length of the code, with the value's bits where it is known; bit 7 whether it is; 8 bits
/// the symbol; 16 bits the value. 0 where the code is longer than the table knows.
#[derive(Clone, Copy, Default)]
struct Entry(u32);

impl Entry {
    const KNOWN: u32 = 1 << 7;

    fn new(length: u32, symbol: u8, value: Option<i16>) -> Self {
        let known = if value.is_some() { Self::KNOWN } else { 0 };
        Self(length | known | u32::from(symbol) << 8 | u32::from(value.unwrap_or(0) as u16) << 16)
    }

    fn bits(self) -> u32 {
        self.0 & 0x3f
    }

    fn symbol(self) -> u8 {
        (self.0 >> 8) as u8
    }
}

/// A Huffman code whose symbols' low four bits are the bits of a value that follows.
pub(super) struct Huffman {
    /// By the next [`FAST`] bits.
    fast: [Entry; 1 << FAST],
    /// Per length: first 16-bit pattern (left-aligned) that is beyond its codes.
    limit: [u32; 17],
    /// Per length: what to add to a code to index `values`.
    offset: [i32; 17],
    values: Vec<u8>,
}

impl Huffman {
    /// From the number of codes of each length, 1 to 16, and the symbols in order of their codes.
    pub(super) fn new(counts: &[u8; 16], values: &[u8]) -> Result<Self, JpegError> {
        let mut out =
            Self { fast: [Entry(0); 1 << FAST], limit: [0; 17], offset: [0; 17], values: values.to_vec() };
        let (mut code, mut index) = (0_u32, 0_usize);
        for (length, &count) in (1_u32..).zip(counts) {
            out.offset[length as usize] = index as i32 - code as i32;
            for &symbol in values.iter().skip(index).take(count.into()) {
                if code >= 1 << length {
                    return Err("a Huffman table has too many codes".into());
                }
                if let Some(rest) = FAST.checked_sub(length) {
                    let first = (code << rest) as usize;
                    for (behind, entry) in out.fast[first..first + (1 << rest)].iter_mut().enumerate() {
                        let size = u32::from(symbol & 15);
                        *entry = match rest.checked_sub(size) {
                            Some(left) => {
                                Entry::new(length + size, symbol, Some(extended(behind as i32 >> left, size)))
                            }
                            None => Entry::new(length, symbol, None),
                        };
                    }
                }
                code += 1;
                index += 1;
            }
            out.limit[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(out)
    }

    /// Takes one symbol of the bits that [`Bits::ensure`] made available. A code that does not exist is symbol 0 and,
    /// as in libjpeg, has 17 bits.
    #[inline(always)]
    pub(super) fn symbol(&self, bits: &mut Bits<'_>) -> u8 {
        let entry = self.fast[bits.peek(FAST)];
        if entry.0 == 0 {
            return self.long(bits);
        }
        let value = if entry.0 & Entry::KNOWN != 0 { u32::from(entry.symbol() & 15) } else { 0 };
        bits.skip(entry.bits() - value);
        entry.symbol()
    }

    /// Takes one symbol, and the signed value of as many bits as its low four bits say (T.81, F.2.2.1), of the bits that
    /// [`Bits::ensure`] made available.
    #[inline(always)]
    pub(super) fn symbol_with_value(&self, bits: &mut Bits<'_>) -> (u8, i16) {
        let entry = self.fast[bits.peek(FAST)];
        if entry.0 & Entry::KNOWN != 0 {
            bits.skip(entry.bits());
            return (entry.symbol(), (entry.0 >> 16) as i16);
        }
        let symbol = match entry.0 {
            0 => self.long(bits),
            _ => {
                bits.skip(entry.bits());
                entry.symbol()
            }
        };
        let size = u32::from(symbol & 15);
        (symbol, bits.signed(size))
    }

    #[cold]
    #[inline(never)]
    fn long(&self, bits: &mut Bits<'_>) -> u8 {
        let next = bits.peek(16) as u32;
        for length in FAST + 1..=16 {
            if next < self.limit[length as usize] {
                bits.skip(length);
                let index = (next >> (16 - length)) as i32 + self.offset[length as usize];
                return self.values.get(index as usize).copied().unwrap_or(0);
            }
        }
        bits.skip(17);
        0
    }
}

/// The signed value that `size` bits, `0..=15`, stand for: T.81, F.2.2.1.
#[inline(always)]
fn extended(bits: i32, size: u32) -> i16 {
    let half = (1 << size) >> 1;
    (if bits < half { bits - (1 << size) + 1 } else { bits }) as i16
}
