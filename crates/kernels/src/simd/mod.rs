//! Vectors of f32 that kernels are written over, and the choice between them at run time.
//!
//! A kernel is one generic `#[inline(always)]` function over [`Vector`]. `dispatch!` compiles it
//! once per instruction set, inside a function that carries `#[target_feature]`, and calls the one
//! for [`Isa::best`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use portable::Portable;

use std::sync::OnceLock;

/// A vector of [`LANES`](Self::LANES) f32.
///
/// # Safety
/// Every method may be called only where the instruction set of the type is there, that is inside
/// a function reached through `dispatch!`. Pointers must be valid for the lanes that are touched.
// One contract for all methods, stated above; the methods are operators, not builders.
#[allow(clippy::missing_safety_doc, clippy::return_self_not_must_use)]
pub trait Vector: Copy {
    /// The instruction set.
    const ISA: Isa;
    /// As many whole numbers of 32 bits, or four bytes each.
    type Int: Copy;
    /// Values in a vector.
    const LANES: usize;
    /// Rows of a matrix-product tile.
    const TILE_ROWS: usize;
    /// Vectors in a row of a matrix-product tile.
    const TILE_VECTORS: usize;

    /// `x` in every lane.
    unsafe fn splat(x: f32) -> Self;
    /// `LANES` values from `p`.
    unsafe fn load(p: *const f32) -> Self;
    /// `n < LANES` values from `p`, zeros after.
    unsafe fn load_first(p: *const f32, n: usize) -> Self;
    /// `LANES` f16 from `p`, which are finite.
    unsafe fn load_half(p: *const u16) -> Self;
    /// `x` in every lane.
    unsafe fn int(x: i32) -> Self::Int;
    /// `LANES` whole numbers from `p`.
    unsafe fn load_int(p: *const u8) -> Self::Int;
    /// The lower and the upper halves of all bytes.
    unsafe fn nibbles(x: Self::Int) -> (Self::Int, Self::Int);
    /// Signed bytes with 128 added, which are unsigned then.
    unsafe fn flip_signs(x: Self::Int) -> Self::Int;
    /// Adds the products of the four unsigned bytes of `a` with the signed ones of `b` to each lane.
    unsafe fn dot(sums: Self::Int, a: Self::Int, b: Self::Int) -> Self::Int;
    /// The even and the odd bytes, signed, less `less`, as whole numbers of 16 bits.
    unsafe fn words(bytes: Self::Int, less: i16) -> (Self::Int, Self::Int);
    /// Adds the products of the two numbers of 16 bits of `a` and `b` to each lane.
    unsafe fn dot_words(sums: Self::Int, a: Self::Int, b: Self::Int) -> Self::Int;
    /// Whole numbers as f32.
    unsafe fn from_int(x: Self::Int) -> Self;
    /// All lanes to `p`.
    unsafe fn store_int(x: Self::Int, p: *mut u8);
    /// `a - b`.
    unsafe fn sub_int(a: Self::Int, b: Self::Int) -> Self::Int;
    /// The bf16 in the lower halves of all lanes.
    unsafe fn lower_bf16(x: Self::Int) -> Self;
    /// The bf16 in the upper halves of all lanes.
    unsafe fn upper_bf16(x: Self::Int) -> Self;
    /// `256 * high + low`.
    unsafe fn join(high: Self::Int, low: Self::Int) -> Self;
    /// All lanes to `p`.
    unsafe fn store(self, p: *mut f32);
    /// The first `n < LANES` lanes to `p`.
    unsafe fn store_first(self, p: *mut f32, n: usize);
    /// `self + o`.
    unsafe fn add(self, o: Self) -> Self;
    /// `self - o`.
    unsafe fn sub(self, o: Self) -> Self;
    /// `self * o`.
    unsafe fn mul(self, o: Self) -> Self;
    /// `self / o`.
    unsafe fn div(self, o: Self) -> Self;
    /// `self / o` to about the last place; `o` and its inverse are normal numbers.
    #[inline(always)]
    unsafe fn ratio(self, o: Self) -> Self {
        // SAFETY: by the caller.
        unsafe { self.div(o) }
    }
    /// `self * b + c`.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// The larger of the two; `o` where `self` is not a number.
    unsafe fn max(self, o: Self) -> Self;
    /// The smaller of the two; `o` where `self` is not a number.
    unsafe fn min(self, o: Self) -> Self;
    /// The square root.
    unsafe fn sqrt(self) -> Self;
    /// `self * 2^n` for whole `n` in -126..=127.
    unsafe fn scale_by_power_of_two(self, n: Self) -> Self;
    /// `self`, with 0 in the lanes where `x < limit`.
    unsafe fn zero_where_less(self, x: Self, limit: Self) -> Self;
    /// The sum of all lanes, in a fixed order.
    unsafe fn sum(self) -> f32;
    /// The largest lane.
    unsafe fn largest(self) -> f32;
    /// Asks for the line at `p` to come to the second-level cache.
    unsafe fn prefetch(p: *const f32);
    /// Writes the transpose of a `LANES` x `LANES` block: `to[k * to_stride + j] = from[j * from_stride + k]`.
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize);
}

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust.
    Portable,
    /// NEON, which is there on all 64-bit ARM processors.
    Neon,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
    /// AVX-512 with the matrix unit (AMX, bf16).
    Amx,
}

impl Isa {
    /// All of them, slowest first.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512, Self::Amx];

    /// The fastest instruction set of this machine, or the one that `OCELLI_ISA`
    /// (`amx`, `avx512`, `avx2`, `neon`, `portable`) asks for, if the machine has it.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let best = Self::available().last().copied().unwrap_or(Self::Portable);
            let asked = std::env::var("OCELLI_ISA").unwrap_or_default();
            let has = |isa: &&Self| isa.name() == asked;
            Self::available().iter().find(has).copied().unwrap_or(best)
        })
    }

    /// How `OCELLI_ISA` names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }

    /// Values in a vector of f32.
    pub(crate) const fn lanes(self) -> usize {
        match self {
            Self::Amx | Self::Avx512 => 16,
            Self::Avx2 | Self::Portable => 8,
            Self::Neon => 4,
        }
    }

    /// What this machine can run, slowest first.
    pub fn available() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 && crate::gemm::amx::available() {
                return &[Self::Portable, Self::Avx2, Self::Avx512, Self::Amx];
            }
            if avx512 {
                return &[Self::Portable, Self::Avx2, Self::Avx512];
            }
            if avx2 {
                return &[Self::Portable, Self::Avx2];
            }
        }
        if cfg!(target_arch = "aarch64") {
            &[Self::Portable, Self::Neon]
        } else {
            &[Self::Portable]
        }
    }
}

/// Calls the generic function `$f::<V>` with the vector type of `$isa`.
macro_rules! dispatch {
    ($isa:expr, $f:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        unsafe fn avx512($($arg: $ty),*) $(-> $out)? {
            // SAFETY: this function carries the features; the rest is the callee's contract.
            unsafe { $f::<$crate::simd::Avx512>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2($($arg: $ty),*) $(-> $out)? {
            // SAFETY: as above.
            unsafe { $f::<$crate::simd::Avx2>($($arg),*) }
        }
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Isa::Avx512 | $crate::simd::Isa::Amx => avx512($($arg),*),
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Isa::Avx2 => avx2($($arg),*),
            #[cfg(target_arch = "aarch64")]
            $crate::simd::Isa::Neon => $f::<$crate::simd::Neon>($($arg),*),
            _ => $f::<$crate::simd::Portable>($($arg),*),
        }
    }};
}
pub(crate) use dispatch;

/// Walks `n` values in full vectors and one partial one: `body!(offset, load, store)`.
#[inline(always)]
pub(crate) unsafe fn load_up_to<V: Vector>(p: *const f32, n: usize) -> V {
    // SAFETY: by the caller.
    unsafe { if n >= V::LANES { V::load(p) } else { V::load_first(p, n) } }
}

/// Stores a full vector or its first `n` lanes.
#[inline(always)]
pub(crate) unsafe fn store_up_to<V: Vector>(v: V, p: *mut f32, n: usize) {
    // SAFETY: by the caller.
    unsafe {
        if n >= V::LANES {
            v.store(p);
        } else {
            v.store_first(p, n);
        }
    }
}

/// The rate of multiply-adds in registers over all threads, in GFLOP/s (a multiply-add counts 2):
/// the ceiling that a matrix product is measured against.
pub fn fma_rate() -> f64 {
    #[inline(always)]
    unsafe fn spin<V: Vector>(turns: usize) -> f32 {
        // SAFETY: the contract of `Vector`.
        unsafe {
            let (b, c) =
                (V::splat(std::hint::black_box(0.999_9)), V::splat(std::hint::black_box(1e-4)));
            // Independent sums hide the latency; names keep them in registers.
            macro_rules! sums {
                ($($s:ident)*) => {{
                    $(let mut $s = V::splat(std::hint::black_box(1.0));)*
                    for _ in 0..turns {
                        $($s = $s.fma(b, c);)*
                    }
                    let mut all = V::splat(0.0);
                    $(all = all.add($s);)*
                    all.sum()
                }};
            }
            if V::ISA == Isa::Neon {
                // Vectors are short, so there are up to four units.
                sums!(s0 s1 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11
                      s12 s13 s14 s15 s16 s17 s18 s19 s20 s21 s22 s23)
            } else {
                sums!(s0 s1 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11)
            }
        }
    }
    let sums = if Isa::best() == Isa::Neon { 24 } else { 12 };
    let (threads, turns) = (crate::pool::threads(), 2_000_000);
    let mut best = f64::INFINITY;
    for _ in 0..7 {
        let start = std::time::Instant::now();
        crate::pool::parallel_for(threads, |_| {
            let turns = std::hint::black_box(turns);
            // SAFETY: the instruction set is there.
            let sum = unsafe { dispatch!(Isa::best(), spin(turns: usize) -> f32) };
            std::hint::black_box(sum);
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    (threads * turns * sums * Isa::best().lanes() * 2) as f64 / best / 1e9
}

#[cfg(test)]
mod tests;
