//! The tile: a few rows of the left operand times one panel of the right one.

use super::Epilogue;
use crate::activation::{Activation, apply, near_gelu};
use crate::pool::Shared;
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

/// Columns of a panel.
pub(crate) const fn panel_width(isa: Isa) -> usize {
    match isa {
        Isa::Amx | Isa::Avx512 => 64,
        Isa::Avx2 | Isa::Neon | Isa::Portable => 16,
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
    /// What happens at row `row` and column `col`, which are `at` values into the output.
    ///
    /// # Safety
    /// The place lies inside of the output, and all slices reach over it.
    #[inline]
    pub(crate) unsafe fn new(
        epilogue: &Epilogue,
        pre: Option<Shared<f32>>,
        (row, col): (usize, usize),
        at: usize,
    ) -> Self {
        // SAFETY: by the caller.
        unsafe {
            Self {
                bias: epilogue.bias.map_or(std::ptr::null(), |b| b.as_ptr().add(col)),
                row_bias: epilogue.row_bias.map_or(std::ptr::null(), |b| b.as_ptr().add(row)),
                activation: epilogue.activation,
                pre: pre.map_or(std::ptr::null_mut(), |p| p.get().add(at)),
                residual: epilogue.residual.map_or(std::ptr::null(), |r| r.as_ptr().add(at)),
                accumulate: epilogue.accumulate,
            }
        }
    }

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
    /// What is read next, brought to the second-level cache on the way.
    pub(crate) next: Next,
}

/// `depth` rows as wide as a panel, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Next {
    pub(crate) at: *const f32,
    pub(crate) stride: usize,
}

impl Panel {
    /// Without any work.
    pub(crate) const EMPTY: Self = Self {
        rows: 0,
        cols: 0,
        depth: 0,
        a: std::ptr::null(),
        a_stride: 0,
        k_stride: 0,
        strip_depth: 0,
        strip_from: 0,
        b: std::ptr::null(),
        b_stride: 0,
        c: std::ptr::null_mut(),
        c_stride: 0,
        tail: Tail::PLAIN,
        next: Next { at: std::ptr::null(), stride: 0 },
    };
}

impl Next {
    /// The lines that tile `t` asks for, one per four inner steps: where they begin and how far
    /// they are apart, in values. Sixteen tiles bring everything; later ones keep it fresh.
    #[inline(always)]
    fn lines(self, t: usize, depth: usize, width: usize) -> (*const f32, usize) {
        let per_tile = depth / 4;
        let (at, step) = if self.stride == width {
            (t % 16 * per_tile * LINE, LINE)
        } else {
            (t % 4 * LINE + t / 4 % 4 * per_tile * self.stride, self.stride)
        };
        (self.at.wrapping_add(at), step)
    }
}

/// Values in a cache line.
const LINE: usize = 16;

/// The panel kernel of an instruction set.
pub(crate) fn panel_fn(isa: Isa) -> unsafe fn(&Panel) {
    match isa {
        Isa::Amx | Isa::Avx512 => |p| unsafe { dispatch!(Isa::Avx512, panel(p: &Panel)) },
        Isa::Avx2 => |p| unsafe { dispatch!(Isa::Avx2, panel(p: &Panel)) },
        Isa::Neon => |p| unsafe { dispatch!(Isa::Neon, panel(p: &Panel)) },
        Isa::Portable => |p| unsafe { dispatch!(Isa::Portable, panel(p: &Panel)) },
    }
}

/// Rows of the tiles that `rows` rows are dealt over: the first `more` tiles have one row more.
pub(crate) struct Dealing {
    pub(crate) tiles: usize,
    pub(crate) base: usize,
    pub(crate) more: usize,
}

pub(crate) fn deal(rows: usize, most: usize) -> Dealing {
    let tiles = rows.div_ceil(most);
    Dealing { tiles, base: rows / tiles, more: rows % tiles }
}

#[inline(always)]
unsafe fn panel<V: Vector>(p: &Panel) {
    let Dealing { tiles, base, more } = deal(p.rows, V::TILE_ROWS);
    let vectors = p.cols.div_ceil(V::LANES);
    // Whole vectors with nothing but sums go to the output straight from the registers.
    let direct = p.cols == vectors * V::LANES
        && p.tail.activation == Activation::None
        && p.tail.pre.is_null();
    let mut row = 0;
    for t in 0..tiles {
        let rows = base + usize::from(t < more);
        let (next, next_step) = p.next.lines(t, p.depth, V::TILE_VECTORS * V::LANES);
        let mut scratch = Scratch([0.0; TILE]);
        // SAFETY: by the caller, `a`, `b` and `c` reach over the sizes given.
        unsafe {
            let (a, row_stride, k_stride) = if p.strip_depth == 0 {
                (p.a.add(row * p.a_stride), p.a_stride, p.k_stride)
            } else {
                (p.a.add(row * p.strip_depth + p.strip_from * rows), 1, rows)
            };
            let tile = Tile { row, a, row_stride, k_stride, next, next_step, direct };
            product_of_size::<V>(p, rows, vectors, &tile, &mut scratch);
            if !direct {
                finish::<V>(p, row, rows, vectors, scratch.0.as_ptr());
            }
        }
        row += rows;
    }
}

#[repr(align(64))]
struct Scratch([f32; TILE]);

/// What differs from tile to tile.
struct Tile {
    row: usize,
    a: *const f32,
    row_stride: usize,
    k_stride: usize,
    next: *const f32,
    next_step: usize,
    direct: bool,
}

/// [`product`] for `rows` and `vectors`: one function for each size, as a single one for all of them
/// would keep its addresses on the stack.
#[inline(always)]
unsafe fn product_of_size<V: Vector>(
    p: &Panel,
    rows: usize,
    vectors: usize,
    tile: &Tile,
    scratch: &mut Scratch,
) {
    macro_rules! pick {
        ($($r:literal $v:literal),*) => {
            match (rows, vectors, tile.k_stride) {
                // Sizes above the vector's own tile never come; the test lets them compile away.
                $(($r, $v, 1) if $r <= V::TILE_ROWS && $v <= V::TILE_VECTORS => {
                    sized::<V, $r, $v, true>(p, tile, scratch);
                }
                ($r, $v, _) if $r <= V::TILE_ROWS && $v <= V::TILE_VECTORS => {
                    sized::<V, $r, $v, false>(p, tile, scratch);
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

/// Calls [`product`] in a function of its own that carries the features of `V`.
#[inline(always)]
unsafe fn sized<V: Vector, const ROWS: usize, const VECTORS: usize, const UNIT: bool>(
    p: &Panel,
    tile: &Tile,
    scratch: &mut Scratch,
) {
    #[cfg(target_arch = "x86_64")]
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn avx512<const ROWS: usize, const VECTORS: usize, const UNIT: bool>(
        p: &Panel,
        tile: &Tile,
        scratch: &mut Scratch,
    ) {
        // SAFETY: this function carries the features; the rest is the callee's contract.
        unsafe { product::<crate::simd::Avx512, ROWS, VECTORS, UNIT>(p, tile, scratch) }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const ROWS: usize, const VECTORS: usize, const UNIT: bool>(
        p: &Panel,
        tile: &Tile,
        scratch: &mut Scratch,
    ) {
        // SAFETY: as above.
        unsafe { product::<crate::simd::Avx2, ROWS, VECTORS, UNIT>(p, tile, scratch) }
    }
    #[cfg(target_arch = "aarch64")]
    #[inline(never)]
    unsafe fn neon<const ROWS: usize, const VECTORS: usize, const UNIT: bool>(
        p: &Panel,
        tile: &Tile,
        scratch: &mut Scratch,
    ) {
        // SAFETY: by the caller.
        unsafe { product::<crate::simd::Neon, ROWS, VECTORS, UNIT>(p, tile, scratch) }
    }
    // SAFETY: by the caller, who runs on `V`.
    unsafe {
        match V::ISA {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::<ROWS, VECTORS, UNIT>(p, tile, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::<ROWS, VECTORS, UNIT>(p, tile, scratch),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::<ROWS, VECTORS, UNIT>(p, tile, scratch),
            _ => product::<crate::simd::Portable, ROWS, VECTORS, UNIT>(p, tile, scratch),
        }
    }
}

/// Sums in registers over the whole depth, then written to the output or to rows of 64 of `scratch`.
#[inline(always)]
unsafe fn product<V: Vector, const ROWS: usize, const VECTORS: usize, const UNIT: bool>(
    p: &Panel,
    tile: &Tile,
    scratch: &mut Scratch,
) {
    // SAFETY: by the caller; `scratch` has room for 6 rows of 64.
    unsafe {
        let (row_stride, k_stride) = (tile.row_stride, if UNIT { 1 } else { tile.k_stride });
        let mut sums = [[V::splat(0.0); VECTORS]; ROWS];
        let (mut a, mut b, mut next) = (tile.a, p.b, tile.next);
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
            next = next.wrapping_add(tile.next_step);
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
        if tile.direct {
            add_and_store(p, tile.row, &mut sums);
        } else {
            for r in 0..ROWS {
                for v in 0..VECTORS {
                    sums[r][v].store(scratch.0.as_mut_ptr().add(r * 64 + v * V::LANES));
                }
            }
        }
    }
}

/// The tail without an activation, on whole vectors in registers.
#[inline(always)]
unsafe fn add_and_store<V: Vector, const ROWS: usize, const VECTORS: usize>(
    p: &Panel,
    row: usize,
    sums: &mut [[V; VECTORS]; ROWS],
) {
    let tail = &p.tail;
    let at = |r: usize, v: usize| (row + r) * p.c_stride + v * V::LANES;
    // SAFETY: by the caller.
    unsafe {
        if tail.accumulate {
            for r in 0..ROWS {
                for v in 0..VECTORS {
                    sums[r][v] = sums[r][v].add(V::load(p.c.add(at(r, v))));
                }
            }
        }
        if !tail.bias.is_null() {
            for v in 0..VECTORS {
                let bias = V::load(tail.bias.add(v * V::LANES));
                for r in 0..ROWS {
                    sums[r][v] = sums[r][v].add(bias);
                }
            }
        }
        if !tail.row_bias.is_null() {
            for r in 0..ROWS {
                let bias = V::splat(*tail.row_bias.add(row + r));
                for v in 0..VECTORS {
                    sums[r][v] = sums[r][v].add(bias);
                }
            }
        }
        if !tail.residual.is_null() {
            for r in 0..ROWS {
                for v in 0..VECTORS {
                    sums[r][v] = sums[r][v].add(V::load(tail.residual.add(at(r, v))));
                }
            }
        }
        for r in 0..ROWS {
            for v in 0..VECTORS {
                sums[r][v].store(p.c.add(at(r, v)));
            }
        }
    }
}

/// The tail on all rows of a panel, from rows of a panel's width at `sums` to `c`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(crate) unsafe fn finish_rows(p: &Panel, sums: *const f32) {
    use crate::simd::Avx512;
    const WIDTH: usize = panel_width(Isa::Avx512);
    // SAFETY: by the caller; this function carries the features.
    unsafe {
        if p.cols < WIDTH || p.tail.activation != Activation::None || !p.tail.pre.is_null() {
            return finish::<Avx512>(p, 0, p.rows, p.cols.div_ceil(Avx512::LANES), sums);
        }
        for row in 0..p.rows {
            let load = |v| Avx512::load(sums.add(row * WIDTH + v * Avx512::LANES));
            add_and_store(p, row, &mut [[load(0), load(1), load(2), load(3)]]);
        }
    }
}

/// The tail on one tile, from rows of 64 at `tile` to `c`.
#[inline(always)]
pub(crate) unsafe fn finish<V: Vector>(
    p: &Panel,
    row: usize,
    rows: usize,
    vectors: usize,
    tile: *const f32,
) {
    // SAFETY: by the caller.
    unsafe { finish_as::<V, false>(p, row, rows, vectors, tile) }
}

/// The same; `NEAR` takes a GELU that is as exact as a product of bytes deserves.
#[inline(always)]
pub(crate) unsafe fn finish_as<V: Vector, const NEAR: bool>(
    p: &Panel,
    row: usize,
    rows: usize,
    vectors: usize,
    tile: *const f32,
) {
    let tail = &p.tail;
    // SAFETY: by the caller.
    unsafe {
        for r in 0..rows {
            let at = (row + r) * p.c_stride;
            let row_bias = if tail.row_bias.is_null() { 0.0 } else { *tail.row_bias.add(row + r) };
            for v in 0..vectors {
                let col = v * V::LANES;
                let n = p.cols - col;
                let mut x = V::load(tile.add(r * 64 + col));
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
                x = if NEAR && tail.activation == Activation::Gelu {
                    near_gelu(x)
                } else {
                    apply(tail.activation, x)
                };
                if !tail.residual.is_null() {
                    x = x.add(load_up_to(tail.residual.add(at + col), n));
                }
                store_up_to(x, c, n);
            }
        }
    }
}
