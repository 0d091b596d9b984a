//! Eight f32 in an AVX register, with FMA.

use super::{Isa, Vector};
#[allow(clippy::wildcard_imports)] // Intrinsics carry their module in their names.
use std::arch::x86_64::*;

/// An AVX register of eight f32.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Avx2(__m256);

#[inline(always)]
unsafe fn first(n: usize) -> __m256i {
    static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: `n <= 8`, so the eight values lie inside the table.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - n).cast()) }
}

// SAFETY of the blocks below: the contract of `Vector`.
impl Vector for Avx2 {
    const ISA: Isa = Isa::Avx2;
    type Int = __m256i;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(unsafe { _mm256_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Self(unsafe { _mm256_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        Self(unsafe { _mm256_maskload_ps(p, first(n)) })
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u16) -> Self {
        // As `quant::from_half`: another instruction set would have to be there for the conversion.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let sign = _mm256_slli_epi32::<16>(_mm256_and_si256(bits, _mm256_set1_epi32(0x8000)));
            let magnitude =
                _mm256_slli_epi32::<13>(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fff)));
            let bias = _mm256_castsi256_ps(_mm256_set1_epi32((127 + 112) << 23));
            let value = _mm256_mul_ps(_mm256_castsi256_ps(magnitude), bias);
            Self(_mm256_or_ps(value, _mm256_castsi256_ps(sign)))
        }
    }
    #[inline(always)]
    unsafe fn int(x: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn load_int(p: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn nibbles(x: __m256i) -> (__m256i, __m256i) {
        unsafe {
            let lower = _mm256_set1_epi8(15);
            (_mm256_and_si256(x, lower), _mm256_and_si256(_mm256_srli_epi32::<4>(x), lower))
        }
    }
    #[inline(always)]
    unsafe fn flip_signs(x: __m256i) -> __m256i {
        unsafe { _mm256_xor_si256(x, _mm256_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn dot(sums: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // The instruction for bytes saturates; even and odd bytes as 16 bits do not.
        unsafe {
            let even = _mm256_and_si256(a, _mm256_set1_epi16(255));
            let even = _mm256_madd_epi16(even, _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b)));
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(a), _mm256_srai_epi16::<8>(b));
            _mm256_add_epi32(_mm256_add_epi32(sums, even), odd)
        }
    }
    #[inline(always)]
    unsafe fn words(bytes: __m256i, less: i16) -> (__m256i, __m256i) {
        unsafe {
            let less = _mm256_set1_epi16(less);
            let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes));
            let odd = _mm256_srai_epi16::<8>(bytes);
            (_mm256_sub_epi16(even, less), _mm256_sub_epi16(odd, less))
        }
    }
    #[inline(always)]
    unsafe fn dot_words(sums: __m256i, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(a, b)) }
    }
    #[inline(always)]
    unsafe fn from_int(x: __m256i) -> Self {
        Self(unsafe { _mm256_cvtepi32_ps(x) })
    }
    #[inline(always)]
    unsafe fn store_int(x: __m256i, p: *mut u8) {
        unsafe { _mm256_storeu_si256(p.cast(), x) }
    }
    #[inline(always)]
    unsafe fn sub_int(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn lower_bf16(x: __m256i) -> Self {
        unsafe { Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))) }
    }
    #[inline(always)]
    unsafe fn upper_bf16(x: __m256i) -> Self {
        let upper = 0xffff_0000_u32.cast_signed();
        unsafe { Self(_mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(upper)))) }
    }
    #[inline(always)]
    unsafe fn join(high: __m256i, low: __m256i) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32::<8>(high), low))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm256_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        unsafe { _mm256_maskstore_ps(p, first(n), self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        Self(unsafe { _mm256_add_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        Self(unsafe { _mm256_sub_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        Self(unsafe { _mm256_mul_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        Self(unsafe { _mm256_div_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Self(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        Self(unsafe { _mm256_max_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        Self(unsafe { _mm256_min_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        Self(unsafe { _mm256_sqrt_ps(self.0) })
    }
    #[inline(always)]
    unsafe fn scale_by_power_of_two(self, n: Self) -> Self {
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.0), _mm256_set1_epi32(127));
            Self(_mm256_mul_ps(self.0, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))))
        }
    }
    #[inline(always)]
    unsafe fn zero_where_less(self, x: Self, limit: Self) -> Self {
        Self(unsafe { _mm256_and_ps(self.0, _mm256_cmp_ps::<_CMP_NLT_UQ>(x.0, limit.0)) })
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let half =
                _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe {
            let half =
                _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        unsafe {
            let row = |j: usize| _mm256_loadu_ps(from.add(j * from_stride));
            let mut r = [_mm256_setzero_ps(); 8];
            for i in 0..4 {
                r[2 * i] = _mm256_unpacklo_ps(row(2 * i), row(2 * i + 1));
                r[2 * i + 1] = _mm256_unpackhi_ps(row(2 * i), row(2 * i + 1));
            }
            for i in 0..2 {
                let [a, b, c, d] = [r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]];
                r[4 * i] = _mm256_shuffle_ps::<0b01_00_01_00>(a, c);
                r[4 * i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, c);
                r[4 * i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(b, d);
                r[4 * i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(b, d);
            }
            for i in 0..4 {
                let low = _mm256_permute2f128_ps::<0x20>(r[i], r[4 + i]);
                let high = _mm256_permute2f128_ps::<0x31>(r[i], r[4 + i]);
                _mm256_storeu_ps(to.add(i * to_stride), low);
                _mm256_storeu_ps(to.add((4 + i) * to_stride), high);
            }
        }
    }
}
