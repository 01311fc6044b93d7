//! Intel's matrix tiles (AMX): how eight of them are configured, and products on them.

use std::arch::asm;

use super::isa::Isa;

/// Rows of a tile, and its words of 4 bytes in a row.
pub const SIDE: usize = 16;

/// The configuration of the eight tiles: palette 1, bytes of a row from byte 16 on, rows from byte 48 on.
#[repr(C, align(64))]
pub struct Tiles([u8; 64]);

/// 16 rows of 64 bytes each.
static WHOLE: Tiles = Tiles::of([SIDE as u8; 8]);

impl Tiles {
    /// Tiles of so many rows of 64 bytes.
    #[must_use]
    pub const fn of(rows: [u8; 8]) -> Self {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let mut tile = 0;
        while tile < 8 {
            bytes[16 + 2 * tile] = 64;
            bytes[48 + tile] = rows[tile];
            tile += 1;
        }
        Self(bytes)
    }

    /// Makes it that of this thread; all tiles become zero.
    ///
    /// # Safety
    /// An [`InUse`] of this thread lives.
    #[inline(always)]
    pub unsafe fn load(&self) {
        // SAFETY: the machine has tiles, says who lives; the instruction reads 64 bytes, and code of the compiler does not use tiles.
        unsafe { asm!("ldtilecfg [{}]", in(reg) self.0.as_ptr(), options(nostack, readonly)) }
    }
}

/// That this thread uses tiles, whole ones unless another configuration is loaded. A thread that uses none is switched faster.
pub struct InUse(());

impl InUse {
    /// Begins the use.
    ///
    /// # Safety
    /// The instruction set has [`amx`](Isa::amx).
    #[inline(always)]
    pub unsafe fn begin(isa: Isa) -> Self {
        debug_assert!(isa.amx());
        let this = Self(());
        // SAFETY: as the caller vouches.
        unsafe { WHOLE.load() };
        this
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        // SAFETY: where this was made there are tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

/// `c[16, 16 NV] (+)= a b` for `steps` tiles along `k`: rows of `a` of words of two bf16, rows of `b` of 16 NV such words, and sums of f32;
/// strides in bytes. `NV` is 1, 2 or 3.
///
/// # Safety
/// This thread uses whole tiles; the operands are as large as that.
#[inline(always)]
pub unsafe fn product<const NV: usize>(
    a: *const u32,
    a_stride: usize,
    b: *const u32,
    c: *mut f32,
    stride: usize,
    steps: usize,
    add: bool,
) {
    // SAFETY: as the caller vouches; code of the compiler does not use the tiles.
    unsafe {
        asm!(
            "test {add:e}, {add:e}",
            "jnz 2f",
            "tilezero tmm0",
            ".if {nv} > 1",
            "tilezero tmm1",
            ".endif",
            ".if {nv} > 2",
            "tilezero tmm2",
            ".endif",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c} + {stride}]",
            ".if {nv} > 1",
            "tileloadd tmm1, [{c} + {stride} + 64]",
            ".endif",
            ".if {nv} > 2",
            "tileloadd tmm2, [{c} + {stride} + 128]",
            ".endif",
            "3:",
            "test {steps}, {steps}",
            "jz 5f",
            "4:",
            "tileloadd tmm3, [{a} + {a_stride}]",
            "tileloadd tmm4, [{b} + {stride}]",
            "tdpbf16ps tmm0, tmm3, tmm4",
            ".if {nv} > 1",
            "tileloadd tmm5, [{b} + {stride} + 64]",
            "tdpbf16ps tmm1, tmm3, tmm5",
            ".endif",
            ".if {nv} > 2",
            "tileloadd tmm6, [{b} + {stride} + 128]",
            "tdpbf16ps tmm2, tmm3, tmm6",
            ".endif",
            "add {a}, 64",
            "add {b}, {b_step}",
            "dec {steps}",
            "jnz 4b",
            "5:",
            "tilestored [{c} + {stride}], tmm0",
            ".if {nv} > 1",
            "tilestored [{c} + {stride} + 64], tmm1",
            ".endif",
            ".if {nv} > 2",
            "tilestored [{c} + {stride} + 128], tmm2",
            ".endif",
            nv = const NV,
            add = in(reg) u32::from(add),
            a_stride = in(reg) a_stride,
            stride = in(reg) stride,
            b_step = in(reg) SIDE * stride,
            c = in(reg) c,
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            steps = inout(reg) steps => _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn small_whole_numbers() {
        let isa = Isa::best();
        if !isa.amx() {
            return println!("no tiles here");
        }
        // 16 rows of 3 tiles along k; 48 columns, the words of which hold two values of k.
        let (k, n) = (96, 48);
        let a: Vec<bf16> = (0..16 * k).map(|i| bf16::from_f32((i % 7) as f32 - 3.0)).collect();
        let b: Vec<bf16> = (0..k * n).map(|i| bf16::from_f32((i % 5) as f32 - 2.0)).collect();
        // SAFETY: there are tiles, and the operands have these sizes.
        let made = |add: bool| unsafe {
            let _tiles = InUse::begin(isa);
            let mut c = vec![1.0f32; 16 * n];
            product::<3>(a.as_ptr().cast(), 2 * k, b.as_ptr().cast(), c.as_mut_ptr(), 4 * n, k / 32, add);
            c
        };
        let (new, added) = (made(false), made(true));
        for (i, (new, added)) in new.iter().zip(&added).enumerate() {
            let (row, col) = (i / n, i % n);
            let value = |j: usize| f32::from(a[row * k + j]) * f32::from(b[j / 2 * 2 * n + 2 * col + j % 2]);
            let sum: f32 = (0..k).map(value).sum();
            assert_eq!((*new, *added), (sum, sum + 1.0), "row {row}, column {col}");
        }
    }
}
