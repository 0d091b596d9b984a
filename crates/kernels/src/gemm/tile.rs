//! The tile: a few rows of the left operand times one panel of the right one.

use crate::activation::{Activation, apply};
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

/// Columns of a panel.
pub(crate) const fn panel_width(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 64,
        Isa::Avx2 | Isa::Portable => 16,
    }
}

/// The most values a tile holds: 6 rows of 64.
const TILE: usize = 6 * 64;

/// Raw form of [`super::Epilogue`] at the corner of a panel; null pointers are absent parts.
#[derive(Clone, Copy)]
pub(crate) struct Tail {
    pub(crate) bias: *const f32,
    pub(crate) row_bias: *const f32,
    pub(crate) activation: Activation,
    pub(crate) pre: *mut f32,
    pub(crate) residual: *const f32,
    pub(crate) accumulate: bool,
}

impl Tail {
    /// Just the product.
    pub(crate) const PLAIN: Self = Self {
        bias: std::ptr::null(),
        row_bias: std::ptr::null(),
        activation: Activation::None,
        pre: std::ptr::null_mut(),
        residual: std::ptr::null(),
        accumulate: false,
    };
}

/// One panel's work: `c[rows, cols] = a[rows, depth] b[depth, cols]` with a tail.
pub(crate) struct Panel {
    pub(crate) rows: usize,
    /// At most [`panel_width`].
    pub(crate) cols: usize,
    pub(crate) depth: usize,
    pub(crate) a: *const f32,
    /// Between rows of `a`; unused for strips.
    pub(crate) a_stride: usize,
    /// Between inner values of `a`; unused for strips.
    pub(crate) k_stride: usize,
    /// 0 for row-major `a`; else `a` is in strips of one tile's rows each over this many inner
    /// values, inner value outermost, and `strip_from` is the first one to read.
    pub(crate) strip_depth: usize,
    pub(crate) strip_from: usize,
    /// `depth` rows of `cols` values rounded up to whole vectors.
    pub(crate) b: *const f32,
    pub(crate) b_stride: usize,
    pub(crate) c: *mut f32,
    /// Also of the residual and of the values before the activation.
    pub(crate) c_stride: usize,
    pub(crate) tail: Tail,
    /// Where the next panel begins; brought to the cache on the way.
    pub(crate) prefetch: *const f32,
}

/// The panel kernel of an instruction set.
pub(crate) fn panel_fn(isa: Isa) -> unsafe fn(&Panel) {
    match isa {
        Isa::Avx512 => |p| unsafe { dispatch!(Isa::Avx512, panel(p: &Panel)) },
        Isa::Avx2 => |p| unsafe { dispatch!(Isa::Avx2, panel(p: &Panel)) },
        Isa::Portable => |p| unsafe { dispatch!(Isa::Portable, panel(p: &Panel)) },
    }
}

/// Rows of the tiles that `rows` rows are dealt over: the first `more` tiles have one row more.
pub(super) struct Dealing {
    pub(super) tiles: usize,
    pub(super) base: usize,
    pub(super) more: usize,
}

pub(super) fn deal(rows: usize, most: usize) -> Dealing {
    let tiles = rows.div_ceil(most);
    Dealing { tiles, base: rows / tiles, more: rows % tiles }
}

#[inline(always)]
unsafe fn panel<V: Vector>(p: &Panel) {
    let Dealing { tiles, base, more } = deal(p.rows, V::TILE_ROWS);
    let vectors = p.cols.div_ceil(V::LANES);
    let mut row = 0;
    // A line of the next panel per four inner steps, spread over the tiles.
    let lines_per_tile = p.depth / 4;
    for t in 0..tiles {
        let rows = base + usize::from(t < more);
        let mut tile = Scratch([0.0; TILE]);
        // SAFETY: by the caller, `a`, `b` and `c` reach over the sizes given.
        unsafe {
            let prefetch = p.prefetch.wrapping_add(t * lines_per_tile * 16);
            if p.strip_depth == 0 {
                let a = p.a.add(row * p.a_stride);
                if p.k_stride == 1 {
                    rows_of::<V, true>(p, rows, vectors, a, p.a_stride, 1, &mut tile, prefetch);
                } else {
                    let (r, k) = (p.a_stride, p.k_stride);
                    rows_of::<V, false>(p, rows, vectors, a, r, k, &mut tile, prefetch);
                }
            } else {
                let a = p.a.add(row * p.strip_depth + p.strip_from * rows);
                rows_of::<V, false>(p, rows, vectors, a, 1, rows, &mut tile, prefetch);
            }
            finish::<V>(p, row, rows, vectors, &tile);
        }
        row += rows;
    }
}

#[repr(align(64))]
struct Scratch([f32; TILE]);

#[inline(always)]
unsafe fn rows_of<V: Vector, const UNIT: bool>(
    p: &Panel,
    rows: usize,
    vectors: usize,
    a: *const f32,
    row_stride: usize,
    k_stride: usize,
    tile: &mut Scratch,
    prefetch: *const f32,
) {
    macro_rules! pick {
        ($($r:literal $v:literal),*) => {
            match (rows, vectors) {
                // Sizes above the vector's own tile never come; the test lets them compile away.
                $(($r, $v) if $r <= V::TILE_ROWS && $v <= V::TILE_VECTORS => {
                    product::<V, $r, $v, UNIT>(p, a, row_stride, k_stride, tile, prefetch)
                })*
                _ => {}
            }
        };
    }
    // SAFETY: by the caller.
    unsafe {
        pick!(1 1, 2 1, 3 1, 4 1, 5 1, 6 1, 1 2, 2 2, 3 2, 4 2, 5 2, 6 2,
              1 3, 2 3, 3 3, 4 3, 5 3, 6 3, 1 4, 2 4, 3 4, 4 4, 5 4, 6 4);
    }
}

/// Sums in registers over the whole depth, then written to `tile` with rows of 64.
#[inline(always)]
unsafe fn product<V: Vector, const ROWS: usize, const VECTORS: usize, const UNIT: bool>(
    p: &Panel,
    a: *const f32,
    row_stride: usize,
    k_stride: usize,
    tile: &mut Scratch,
    prefetch: *const f32,
) {
    // SAFETY: by the caller; `tile` has room for 6 rows of 64.
    unsafe {
        let k_stride = if UNIT { 1 } else { k_stride };
        let mut sums = [[V::splat(0.0); VECTORS]; ROWS];
        let (mut a, mut b, mut next) = (a, p.b, prefetch);
        macro_rules! step {
            ($a:expr, $b:expr) => {
                let (a, b) = ($a, $b);
                let mut right = [V::splat(0.0); VECTORS];
                for v in 0..VECTORS {
                    right[v] = V::load(b.add(v * V::LANES));
                }
                for r in 0..ROWS {
                    let left = V::splat(*a.add(r * row_stride));
                    for v in 0..VECTORS {
                        sums[r][v] = left.fma(right[v], sums[r][v]);
                    }
                }
            };
        }
        for _ in 0..p.depth / 4 {
            V::prefetch(next);
            next = next.wrapping_add(16);
            step!(a, b);
            step!(a.add(k_stride), b.add(p.b_stride));
            step!(a.add(2 * k_stride), b.add(2 * p.b_stride));
            step!(a.add(3 * k_stride), b.add(3 * p.b_stride));
            a = a.add(4 * k_stride);
            b = b.add(4 * p.b_stride);
        }
        for _ in 0..p.depth % 4 {
            step!(a, b);
            a = a.add(k_stride);
            b = b.add(p.b_stride);
        }
        for r in 0..ROWS {
            for v in 0..VECTORS {
                sums[r][v].store(tile.0.as_mut_ptr().add(r * 64 + v * V::LANES));
            }
        }
    }
}

/// The tail on one tile, from `tile` to `c`.
#[inline(always)]
unsafe fn finish<V: Vector>(p: &Panel, row: usize, rows: usize, vectors: usize, tile: &Scratch) {
    let tail = &p.tail;
    // SAFETY: by the caller.
    unsafe {
        for r in 0..rows {
            let at = (row + r) * p.c_stride;
            let row_bias = if tail.row_bias.is_null() { 0.0 } else { *tail.row_bias.add(row + r) };
            for v in 0..vectors {
                let col = v * V::LANES;
                let n = p.cols - col;
                let mut x = V::load(tile.0.as_ptr().add(r * 64 + col));
                let c = p.c.add(at + col);
                if tail.accumulate {
                    x = x.add(load_up_to(c, n));
                }
                if !tail.bias.is_null() {
                    x = x.add(load_up_to(tail.bias.add(col), n));
                }
                if !tail.row_bias.is_null() {
                    x = x.add(V::splat(row_bias));
                }
                if !tail.pre.is_null() {
                    store_up_to(x, tail.pre.add(at + col), n);
                }
                x = apply(tail.activation, x);
                if !tail.residual.is_null() {
                    x = x.add(load_up_to(tail.residual.add(at + col), n));
                }
                store_up_to(x, c, n);
            }
        }
    }
}
