//! Every instruction set against plain Rust, operation by operation and bit for bit.

use super::{Isa, Vector};

/// Lanes of each operand, a multiple of those of every vector.
const COUNT: usize = 256;

struct Operands {
    /// Any values, some of them not finite.
    x: [f32; COUNT],
    y: [f32; COUNT],
    /// Whole numbers in -126..=127.
    whole: [f32; COUNT],
    /// Finite f16.
    halves: [u16; COUNT],
    /// Any bits.
    words: [u32; COUNT],
    /// Pairs of numbers of 16 bits in -32639..=32639.
    pairs: [u32; COUNT],
}

impl Operands {
    fn new() -> Self {
        let mut state = 0x9e37_79b9_u32;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0];
        let mut value = |i: usize, step: usize| match special.get(i / step) {
            Some(x) if i.is_multiple_of(step) => *x,
            _ => (random() >> 8) as f32 / 65_536.0 - 128.0,
        };
        Self {
            x: std::array::from_fn(|i| value(i, 7)),
            y: std::array::from_fn(|i| value(COUNT - 1 - i, 11)),
            whole: std::array::from_fn(|i| (i % 254) as f32 - 126.0),
            // Without one bit of its exponent an f16 is finite.
            halves: std::array::from_fn(|_| random() as u16 & 0xbfff),
            words: std::array::from_fn(|_| random()),
            pairs: std::array::from_fn(|_| {
                let [low, high] = [random(), random()].map(|x| (x % 65_279) as i32 - 32_639);
                low.cast_unsigned() & 0xffff | high.cast_unsigned() << 16
            }),
        }
    }
}

/// The bits of what each operation gives.
#[inline(always)]
unsafe fn all<V: Vector>(of: &Operands, found: &mut Vec<(&'static str, [u32; COUNT])>) {
    macro_rules! lanes {
        ($i:ident => $($value:expr),*) => {$({
            let mut out = [0.0_f32; COUNT];
            for $i in (0..COUNT).step_by(V::LANES) {
                $value.store(out.as_mut_ptr().add($i));
            }
            // What is not a number has other bits on other machines.
            let bits = |x: f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
            found.push((stringify!($value), out.map(bits)));
        })*};
    }
    macro_rules! int_lanes {
        ($i:ident => $($value:expr),*) => {$({
            let mut out = [0_u32; COUNT];
            for $i in (0..COUNT).step_by(V::LANES) {
                V::store_int($value, out.as_mut_ptr().add($i).cast());
            }
            found.push((stringify!($value), out));
        })*};
    }
    macro_rules! operand {
        ($name:ident, $i:ident) => {
            V::load(of.$name.as_ptr().add($i))
        };
    }
    macro_rules! words {
        ($name:ident, $i:ident) => {
            V::load_int(of.$name.as_ptr().add($i).cast())
        };
    }
    // SAFETY: a vector at each place lies inside of the operands; the rest is by the caller.
    unsafe {
        lanes!(i =>
            operand!(x, i).add(operand!(y, i)),
            operand!(x, i).sub(operand!(y, i)),
            operand!(x, i).mul(operand!(y, i)),
            operand!(x, i).div(operand!(y, i)),
            operand!(x, i).sqrt(),
            operand!(x, i).max(operand!(y, i)),
            operand!(x, i).min(operand!(y, i)),
            operand!(x, i).zero_where_less(operand!(y, i), operand!(x, i)),
            operand!(y, i).scale_by_power_of_two(operand!(whole, i)),
            // Exact, so with one rounding or two.
            operand!(whole, i).fma(operand!(whole, i), operand!(whole, i)),
            V::load_half(of.halves.as_ptr().add(i)),
            V::from_int(words!(words, i)),
            V::lower_bf16(words!(words, i)),
            V::upper_bf16(words!(words, i)),
            V::join(
                V::dot(V::int(0), V::nibbles(words!(pairs, i)).0, words!(words, i)),
                V::dot(V::int(0), words!(words, i), words!(pairs, i))
            )
        );
        int_lanes!(i =>
            V::nibbles(words!(words, i)).0,
            V::nibbles(words!(words, i)).1,
            V::flip_signs(words!(words, i)),
            V::dot(V::int(7), words!(words, i), words!(pairs, i)),
            V::words(words!(words, i), 8).0,
            V::words(words!(words, i), 8).1,
            V::dot_words(V::int(7), V::words(words!(words, i), 8).0, words!(pairs, i)),
            V::sub_int(V::nibbles(words!(words, i)).0, V::nibbles(words!(pairs, i)).1)
        );
        let (mut sum, mut largest) = (0.0, f32::NEG_INFINITY);
        for i in (0..COUNT).step_by(V::LANES) {
            sum += operand!(whole, i).sum();
            largest = largest.max(operand!(whole, i).largest());
        }
        found.push(("sum, largest", std::array::from_fn(|i| [sum, largest][i % 2].to_bits())));
    }
}

#[test]
fn operations_equal_plain_rust_bit_for_bit() {
    let operands = Operands::new();
    let of = &operands;
    let mut want = Vec::new();
    for &isa in Isa::available() {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512 && !is_x86_feature_detected!("avx512vnni") {
            continue;
        }
        let mut found = Vec::new();
        let to = &mut found;
        // SAFETY: the instruction set is there.
        unsafe { dispatch!(isa, all(of: &Operands, to: &mut Vec<(&'static str, [u32; COUNT])>)) };
        if isa == Isa::Portable {
            want = found;
            continue;
        }
        assert_eq!(found.len(), want.len());
        for ((operation, got), (_, want)) in found.iter().zip(&want) {
            assert_eq!(got, want, "{operation} with {isa:?}");
        }
    }
}
