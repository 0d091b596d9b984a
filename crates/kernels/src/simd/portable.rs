//! Eight f32 in plain Rust, for machines without AVX2.

use super::{Isa, Vector};

/// Eight f32; the compiler uses whatever the target guarantees.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], o.0[i])))
    }
}

// SAFETY of the blocks below: the contract of `Vector` makes the pointers valid.
impl Vector for Portable {
    const ISA: Isa = Isa::Portable;
    type Int = [i32; 8];
    const LANES: usize = 8;
    const TILE_ROWS: usize = 4;
    const TILE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Self(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        Self(std::array::from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u16) -> Self {
        let bits = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        Self(bits.map(crate::quant::from_half))
    }
    #[inline(always)]
    unsafe fn int(x: i32) -> [i32; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load_int(p: *const u8) -> [i32; 8] {
        unsafe { p.cast::<[i32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn nibbles(x: [i32; 8]) -> ([i32; 8], [i32; 8]) {
        (x.map(|x| x & 0x0f0f_0f0f), x.map(|x| (x >> 4) & 0x0f0f_0f0f))
    }
    #[inline(always)]
    unsafe fn flip_signs(x: [i32; 8]) -> [i32; 8] {
        x.map(|x| x ^ 0x8080_8080_u32.cast_signed())
    }
    #[inline(always)]
    unsafe fn dot(sums: [i32; 8], a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        std::array::from_fn(|i| {
            let (a, b) = (a[i].to_le_bytes(), b[i].to_le_bytes());
            let products = a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(b.cast_signed()));
            sums[i] + products.sum::<i32>()
        })
    }
    #[inline(always)]
    unsafe fn words(bytes: [i32; 8], less: i16) -> ([i32; 8], [i32; 8]) {
        let pair = |a: u8, b: u8| {
            let [a, b] = [a, b].map(|x| (i16::from(x.cast_signed()) - less).cast_unsigned());
            (u32::from(a) | u32::from(b) << 16).cast_signed()
        };
        let bytes = bytes.map(i32::to_le_bytes);
        (bytes.map(|x| pair(x[0], x[2])), bytes.map(|x| pair(x[1], x[3])))
    }
    #[inline(always)]
    unsafe fn dot_words(sums: [i32; 8], a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        std::array::from_fn(|i| {
            let low = |x: i32| i32::from(x as i16);
            sums[i] + low(a[i]) * low(b[i]) + (a[i] >> 16) * (b[i] >> 16)
        })
    }
    #[inline(always)]
    unsafe fn from_int(x: [i32; 8]) -> Self {
        Self(x.map(|x| x as f32))
    }
    #[inline(always)]
    unsafe fn store_int(x: [i32; 8], p: *mut u8) {
        unsafe { p.cast::<[i32; 8]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn sub_int(a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn lower_bf16(x: [i32; 8]) -> Self {
        Self(x.map(|x| f32::from_bits(x.cast_unsigned() << 16)))
    }
    #[inline(always)]
    unsafe fn upper_bf16(x: [i32; 8]) -> Self {
        Self(x.map(|x| f32::from_bits(x.cast_unsigned() & 0xffff_0000)))
    }
    #[inline(always)]
    unsafe fn join(high: [i32; 8], low: [i32; 8]) -> Self {
        Self(std::array::from_fn(|i| (256 * high[i] + low[i]) as f32))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { p.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        for i in 0..n {
            unsafe { *p.add(i) = self.0[i] }
        }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        self.zip(o, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        self.zip(o, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        self.zip(o, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        self.zip(o, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // Two roundings: without the instruction, a fused step would be a slow library call.
        Self(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        self.zip(o, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        self.zip(o, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        Self(self.0.map(f32::sqrt))
    }
    #[inline(always)]
    unsafe fn scale_by_power_of_two(self, n: Self) -> Self {
        self.zip(n, |a, n| a * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn zero_where_less(self, x: Self, limit: Self) -> Self {
        Self(std::array::from_fn(|i| if x.0[i] < limit.0[i] { 0.0 } else { self.0[i] }))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let v = self.0;
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for k in 0..8 {
            for j in 0..8 {
                unsafe { *to.add(k * to_stride + j) = *from.add(j * from_stride + k) }
            }
        }
    }
}
