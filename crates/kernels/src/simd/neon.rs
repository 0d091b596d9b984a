//! Four f32 in a NEON register, which every 64-bit ARM processor has.
//!
//! Whole numbers need nothing beyond that either: the instructions for products of bytes are an
//! extension, and the ones of 16 bits give the same sums.

use super::{Isa, Vector};
#[allow(clippy::wildcard_imports)] // Intrinsics carry their module in their names.
use std::arch::aarch64::*;

/// A NEON register of four f32.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Neon(float32x4_t);

/// The even and the odd bytes, signed, as whole numbers of 16 bits.
#[inline(always)]
unsafe fn signed(bytes: int32x4_t) -> (int16x8_t, int16x8_t) {
    // SAFETY: the contract of `Vector`.
    unsafe {
        let pairs = vreinterpretq_s16_s32(bytes);
        (vshrq_n_s16::<8>(vshlq_n_s16::<8>(pairs)), vshrq_n_s16::<8>(pairs))
    }
}

/// The same of unsigned bytes.
#[inline(always)]
unsafe fn unsigned(bytes: int32x4_t) -> (int16x8_t, int16x8_t) {
    // SAFETY: the contract of `Vector`.
    unsafe {
        let pairs = vreinterpretq_u16_s32(bytes);
        let (even, odd) = (vandq_u16(pairs, vdupq_n_u16(255)), vshrq_n_u16::<8>(pairs));
        (vreinterpretq_s16_u16(even), vreinterpretq_s16_u16(odd))
    }
}

// SAFETY of the blocks below: the contract of `Vector`.
impl Vector for Neon {
    const ISA: Isa = Isa::Neon;
    type Int = int32x4_t;
    const LANES: usize = 4;
    // 20 sums leave registers for both operands of a step while the next is loaded; 24 do not.
    const TILE_ROWS: usize = 5;
    const TILE_VECTORS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(unsafe { vdupq_n_f32(x) })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Self(unsafe { vld1q_f32(p) })
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        unsafe {
            let mut x = vdupq_n_f32(0.0);
            if n > 0 {
                x = vld1q_lane_f32::<0>(p, x);
            }
            if n > 1 {
                x = vld1q_lane_f32::<1>(p.add(1), x);
            }
            if n > 2 {
                x = vld1q_lane_f32::<2>(p.add(2), x);
            }
            Self(x)
        }
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u16) -> Self {
        // As `quant::from_half`.
        unsafe {
            let bits = vmovl_u16(vld1_u16(p));
            let sign = vshlq_n_u32::<16>(vandq_u32(bits, vdupq_n_u32(0x8000)));
            let magnitude = vshlq_n_u32::<13>(vandq_u32(bits, vdupq_n_u32(0x7fff)));
            let bias = vreinterpretq_f32_u32(vdupq_n_u32((127 + 112) << 23));
            let value = vmulq_f32(vreinterpretq_f32_u32(magnitude), bias);
            Self(vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(value), sign)))
        }
    }
    #[inline(always)]
    unsafe fn int(x: i32) -> int32x4_t {
        unsafe { vdupq_n_s32(x) }
    }
    #[inline(always)]
    unsafe fn load_int(p: *const u8) -> int32x4_t {
        unsafe { vreinterpretq_s32_u8(vld1q_u8(p)) }
    }
    #[inline(always)]
    unsafe fn nibbles(x: int32x4_t) -> (int32x4_t, int32x4_t) {
        unsafe {
            let x = vreinterpretq_u8_s32(x);
            let (lower, upper) = (vandq_u8(x, vdupq_n_u8(15)), vshrq_n_u8::<4>(x));
            (vreinterpretq_s32_u8(lower), vreinterpretq_s32_u8(upper))
        }
    }
    #[inline(always)]
    unsafe fn flip_signs(x: int32x4_t) -> int32x4_t {
        unsafe { vreinterpretq_s32_u8(veorq_u8(vreinterpretq_u8_s32(x), vdupq_n_u8(128))) }
    }
    #[inline(always)]
    unsafe fn dot(sums: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // A product is at least -128 * 255 and at most 127 * 255: 16 bits hold it.
        unsafe {
            let ((even, odd), (b_even, b_odd)) = (unsigned(a), signed(b));
            let sums = vpadalq_s16(sums, vmulq_s16(even, b_even));
            vpadalq_s16(sums, vmulq_s16(odd, b_odd))
        }
    }
    #[inline(always)]
    unsafe fn words(bytes: int32x4_t, less: i16) -> (int32x4_t, int32x4_t) {
        unsafe {
            let ((even, odd), less) = (signed(bytes), vdupq_n_s16(less));
            let (even, odd) = (vsubq_s16(even, less), vsubq_s16(odd, less));
            (vreinterpretq_s32_s16(even), vreinterpretq_s32_s16(odd))
        }
    }
    #[inline(always)]
    unsafe fn dot_words(sums: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // Taken apart by halves of lanes, operands that a tile multiplies often are so only once.
        unsafe {
            let sums = vmlal_s16(sums, vmovn_s32(a), vmovn_s32(b));
            vmlal_s16(sums, vshrn_n_s32::<16>(a), vshrn_n_s32::<16>(b))
        }
    }
    #[inline(always)]
    unsafe fn from_int(x: int32x4_t) -> Self {
        Self(unsafe { vcvtq_f32_s32(x) })
    }
    #[inline(always)]
    unsafe fn store_int(x: int32x4_t, p: *mut u8) {
        unsafe { vst1q_u8(p, vreinterpretq_u8_s32(x)) }
    }
    #[inline(always)]
    unsafe fn sub_int(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { vsubq_s32(a, b) }
    }
    #[inline(always)]
    unsafe fn lower_bf16(x: int32x4_t) -> Self {
        Self(unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<16>(x)) })
    }
    #[inline(always)]
    unsafe fn upper_bf16(x: int32x4_t) -> Self {
        let upper = 0xffff_0000_u32.cast_signed();
        Self(unsafe { vreinterpretq_f32_s32(vandq_s32(x, vdupq_n_s32(upper))) })
    }
    #[inline(always)]
    unsafe fn join(high: int32x4_t, low: int32x4_t) -> Self {
        Self(unsafe { vcvtq_f32_s32(vaddq_s32(vshlq_n_s32::<8>(high), low)) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { vst1q_f32(p, self.0) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        unsafe {
            if n > 0 {
                vst1q_lane_f32::<0>(p, self.0);
            }
            if n > 1 {
                vst1q_lane_f32::<1>(p.add(1), self.0);
            }
            if n > 2 {
                vst1q_lane_f32::<2>(p.add(2), self.0);
            }
        }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        Self(unsafe { vaddq_f32(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        Self(unsafe { vsubq_f32(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        Self(unsafe { vmulq_f32(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        Self(unsafe { vdivq_f32(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Self(unsafe { vfmaq_f32(c.0, self.0, b.0) })
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        // The instruction would keep what is not a number.
        Self(unsafe { vbslq_f32(vcgtq_f32(self.0, o.0), self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        Self(unsafe { vbslq_f32(vcltq_f32(self.0, o.0), self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        Self(unsafe { vsqrtq_f32(self.0) })
    }
    #[inline(always)]
    unsafe fn scale_by_power_of_two(self, n: Self) -> Self {
        unsafe {
            let exponent = vaddq_s32(vcvtq_s32_f32(n.0), vdupq_n_s32(127));
            Self(vmulq_f32(self.0, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))))
        }
    }
    #[inline(always)]
    unsafe fn zero_where_less(self, x: Self, limit: Self) -> Self {
        unsafe {
            let kept = vbicq_u32(vreinterpretq_u32_f32(self.0), vcltq_f32(x.0, limit.0));
            Self(vreinterpretq_f32_u32(kept))
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { vaddvq_f32(self.0) }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe { vmaxnmvq_f32(self.0) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        // The intrinsic is not stable. The instruction takes any address.
        unsafe {
            std::arch::asm!(
                "prfm pldl2keep, [{p}]",
                p = in(reg) p.addr(),
                options(nomem, nostack, preserves_flags)
            );
        }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        unsafe {
            let row = |j: usize| vld1q_f32(from.add(j * from_stride));
            let (a, b) = (vtrnq_f32(row(0), row(1)), vtrnq_f32(row(2), row(3)));
            let low = |a, b| vcombine_f32(vget_low_f32(a), vget_low_f32(b));
            let high = |a, b| vcombine_f32(vget_high_f32(a), vget_high_f32(b));
            let columns = [low(a.0, b.0), low(a.1, b.1), high(a.0, b.0), high(a.1, b.1)];
            for (k, column) in columns.into_iter().enumerate() {
                vst1q_f32(to.add(k * to_stride), column);
            }
        }
    }
}
