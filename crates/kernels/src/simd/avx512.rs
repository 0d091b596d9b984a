//! Sixteen f32 in an AVX-512 register.

use super::{Isa, Vector};
#[allow(clippy::wildcard_imports)] // Intrinsics carry their module in their names.
use std::arch::x86_64::*;

/// An AVX-512 register of sixteen f32.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Avx512(__m512);

#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1_u32 << n) - 1) as __mmask16
}

impl Avx512 {
    /// `self` plus the products of two bf16 in each lane. Needs AVX-512 BF16.
    #[inline(always)]
    pub(crate) unsafe fn dot_bf16(self, a: __m512i, b: __m512i) -> Self {
        // SAFETY: by the caller; the types have the same bits.
        unsafe {
            let pairs = |x| std::mem::transmute::<__m512i, __m512bh>(x);
            Self(_mm512_dpbf16_ps(self.0, pairs(a), pairs(b)))
        }
    }
}

// SAFETY of the blocks below: the contract of `Vector`.
impl Vector for Avx512 {
    const ISA: Isa = Isa::Avx512;
    type Int = __m512i;
    const LANES: usize = 16;
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Self(unsafe { _mm512_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        Self(unsafe { _mm512_maskz_loadu_ps(first(n), p) })
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u16) -> Self {
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) })
    }
    #[inline(always)]
    unsafe fn int(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn load_int(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn nibbles(x: __m512i) -> (__m512i, __m512i) {
        unsafe {
            let lower = _mm512_set1_epi8(15);
            (_mm512_and_si512(x, lower), _mm512_and_si512(_mm512_srli_epi32::<4>(x), lower))
        }
    }
    #[inline(always)]
    unsafe fn flip_signs(x: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(x, _mm512_set1_epi8(-128)) }
    }
    /// Needs AVX-512 VNNI as well: the product of blocks asks for it.
    #[inline(always)]
    unsafe fn dot(sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sums, a, b) }
    }
    #[inline(always)]
    unsafe fn words(bytes: __m512i, less: i16) -> (__m512i, __m512i) {
        unsafe {
            let less = _mm512_set1_epi16(less);
            let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(bytes));
            let odd = _mm512_srai_epi16::<8>(bytes);
            (_mm512_sub_epi16(even, less), _mm512_sub_epi16(odd, less))
        }
    }
    /// As [`Vector::dot`], needs AVX-512 VNNI.
    #[inline(always)]
    unsafe fn dot_words(sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(sums, a, b) }
    }
    #[inline(always)]
    unsafe fn from_int(x: __m512i) -> Self {
        Self(unsafe { _mm512_cvtepi32_ps(x) })
    }
    #[inline(always)]
    unsafe fn store_int(x: __m512i, p: *mut u8) {
        unsafe { _mm512_storeu_si512(p.cast(), x) }
    }
    #[inline(always)]
    unsafe fn sub_int(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn lower_bf16(x: __m512i) -> Self {
        unsafe { Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))) }
    }
    #[inline(always)]
    unsafe fn upper_bf16(x: __m512i) -> Self {
        let upper = 0xffff_0000_u32.cast_signed();
        unsafe { Self(_mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(upper)))) }
    }
    #[inline(always)]
    unsafe fn join(high: __m512i, low: __m512i) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(high), low))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        unsafe { _mm512_mask_storeu_ps(p, first(n), self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        Self(unsafe { _mm512_add_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        Self(unsafe { _mm512_sub_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        Self(unsafe { _mm512_mul_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        Self(unsafe { _mm512_div_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn ratio(self, o: Self) -> Self {
        // An inverse of 14 bits, made better twice, takes a fourth of the time of a division.
        unsafe {
            let rough = _mm512_rcp14_ps(o.0);
            let off = _mm512_fnmadd_ps(o.0, rough, _mm512_set1_ps(1.0));
            let inverse = _mm512_fmadd_ps(rough, off, rough);
            let ratio = _mm512_mul_ps(self.0, inverse);
            let rest = _mm512_fnmadd_ps(o.0, ratio, self.0);
            Self(_mm512_fmadd_ps(rest, inverse, ratio))
        }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        Self(unsafe { _mm512_max_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        Self(unsafe { _mm512_min_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        Self(unsafe { _mm512_sqrt_ps(self.0) })
    }
    #[inline(always)]
    unsafe fn scale_by_power_of_two(self, n: Self) -> Self {
        Self(unsafe { _mm512_scalef_ps(self.0, n.0) })
    }
    #[inline(always)]
    unsafe fn zero_where_less(self, x: Self, limit: Self) -> Self {
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x.0, limit.0);
            Self(_mm512_maskz_mov_ps(keep, self.0))
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // Pairs, fours, then 128-bit blocks, as in the textbook butterfly.
        unsafe {
            let mut r = [_mm512_setzero_ps(); 16];
            for (j, v) in r.iter_mut().enumerate() {
                *v = _mm512_loadu_ps(from.add(j * from_stride));
            }
            let mut t = [_mm512_setzero_ps(); 16];
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                let [a, b, c, d] = [t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]];
                r[4 * i] = _mm512_shuffle_ps::<0b01_00_01_00>(a, c);
                r[4 * i + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(a, c);
                r[4 * i + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(b, d);
                r[4 * i + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(b, d);
            }
            for i in 0..4 {
                let a = _mm512_shuffle_f32x4::<0b10_00_10_00>(r[i], r[4 + i]);
                let b = _mm512_shuffle_f32x4::<0b11_01_11_01>(r[i], r[4 + i]);
                let c = _mm512_shuffle_f32x4::<0b10_00_10_00>(r[8 + i], r[12 + i]);
                let d = _mm512_shuffle_f32x4::<0b11_01_11_01>(r[8 + i], r[12 + i]);
                let row = |k: usize| to.add(k * to_stride);
                _mm512_storeu_ps(row(i), _mm512_shuffle_f32x4::<0b10_00_10_00>(a, c));
                _mm512_storeu_ps(row(8 + i), _mm512_shuffle_f32x4::<0b11_01_11_01>(a, c));
                _mm512_storeu_ps(row(4 + i), _mm512_shuffle_f32x4::<0b10_00_10_00>(b, d));
                _mm512_storeu_ps(row(12 + i), _mm512_shuffle_f32x4::<0b11_01_11_01>(b, d));
            }
        }
    }
}
