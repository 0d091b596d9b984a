//! Pooled memory, aligned to 64 bytes, in huge pages where it is large.
//!
//! A training step allocates the same sizes again and again; with the system allocator each of
//! them is mapped, faulted in page by page and unmapped. Here a freed buffer waits in a list of
//! its size class and comes back with its pages.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

const ALIGN: usize = 64;
/// A huge page. Buffers from this size on ask for them: a matrix walks over more small pages than
/// the processor remembers.
const HUGE: usize = 2 << 20;
/// Bytes that wait in the lists at most; past it a freed buffer goes back to the system.
const KEEP_BYTES: usize = 6 << 30;

struct Free {
    lists: Option<HashMap<usize, Vec<usize>>>,
    bytes: usize,
}

static FREE: Mutex<Free> = Mutex::new(Free { lists: None, bytes: 0 });

/// Size classes are an eighth of a power of two apart, so at most 1/8 is wasted.
fn size_class(bytes: usize) -> usize {
    let bytes = bytes.max(ALIGN);
    let step = (bytes.next_power_of_two() / 16).max(ALIGN);
    bytes.div_ceil(step) * step
}

/// A slice of `T` in pooled memory aligned to 64 bytes.
pub struct Buffer<T: Copy> {
    ptr: *mut T,
    len: usize,
}

// SAFETY: the buffer owns its memory like a `Vec`.
unsafe impl<T: Copy + Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Sync> Sync for Buffer<T> {}

impl<T: Copy> Buffer<T> {
    fn bytes(len: usize) -> usize {
        len.checked_mul(size_of::<T>()).map_or(isize::MAX as usize, size_class)
    }

    /// Room for `len` values with whatever was there before.
    ///
    /// Only for number types, where every bit pattern is a value; a kernel writes them all.
    fn with_stale_values(len: usize) -> Self {
        let bytes = Self::bytes(len);
        if let Ok(mut free) = FREE.lock()
            && let Some(address) =
                free.lists.as_mut().and_then(|lists| lists.get_mut(&bytes)).and_then(Vec::pop)
        {
            free.bytes -= bytes;
            return Self { ptr: address as *mut T, len };
        }
        let layout = Self::layout(bytes);
        // SAFETY: the layout is not empty. Fresh pages are zeroed by the system; memory that the
        // allocator reuses holds stale numbers.
        let ptr = unsafe { alloc(layout) };
        if ptr.is_null() {
            handle_alloc_error(layout);
        }
        #[cfg(target_os = "linux")]
        if bytes >= HUGE {
            // SAFETY: whole huge pages inside our allocation; the advice changes no contents, and a
            // system that declines it goes on with small pages.
            unsafe { libc::madvise(ptr.cast(), bytes / HUGE * HUGE, libc::MADV_HUGEPAGE) };
        }
        Self { ptr: ptr.cast(), len }
    }

    fn layout(bytes: usize) -> Layout {
        let align = if bytes >= HUGE { HUGE } else { ALIGN };
        Layout::from_size_align(bytes, align).expect("a size class is below the address space")
    }
}

impl<T: Copy + Default> Buffer<T> {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let mut b = Self::with_stale_values(len);
        b.fill(T::default());
        b
    }

    /// A copy of `values`.
    pub fn from_slice(values: &[T]) -> Self {
        let mut b = Self::with_stale_values(values.len());
        b.copy_from_slice(values);
        b
    }
}

/// A type of which every bit pattern is a value.
pub trait Number: Copy {}

impl Number for f32 {}
impl Number for u16 {}
impl Number for u8 {}
impl Number for i32 {}

impl<T: Number> Buffer<T> {
    /// Room for `len` numbers that the caller overwrites; until then they are arbitrary.
    pub fn uninit(len: usize) -> Self {
        Self::with_stale_values(len)
    }
}

impl<T: Copy> Drop for Buffer<T> {
    fn drop(&mut self) {
        let bytes = Self::bytes(self.len);
        if let Ok(mut free) = FREE.lock()
            && free.bytes + bytes <= KEEP_BYTES
        {
            free.bytes += bytes;
            let address = self.ptr as usize;
            free.lists.get_or_insert_default().entry(bytes).or_default().push(address);
            return;
        }
        // SAFETY: allocated with the same layout in `with_stale_values`.
        unsafe { dealloc(self.ptr.cast(), Self::layout(bytes)) }
    }
}

impl<T: Copy> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `ptr` holds room for `len` values, all of which are numbers.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

impl<T: Copy> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

impl<T: Copy> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let mut b = Self::with_stale_values(self.len);
        b.copy_from_slice(self);
        b
    }
}

impl<T: Copy + std::fmt::Debug> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter().take(8)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_come_back() {
        let first = Buffer::<f32>::zeroed(1_000_003);
        assert_eq!(first.as_ptr() as usize % ALIGN, 0);
        drop(first);
        let second = Buffer::<f32>::zeroed(1_000_001);
        assert!(second.iter().all(|&v| v == 0.0));
        assert_eq!(Buffer::from_slice(&[1_u8, 2, 3]).clone()[..], [1, 2, 3]);
        assert_eq!(Buffer::<f32>::zeroed(0).len(), 0);
    }

    #[test]
    fn size_classes_waste_little() {
        for n in [1, 63, 64, 65, 4097, 1_000_000, 123_456_789] {
            assert!(size_class(n) >= n && size_class(n) <= (n + n / 7).max(n + 64));
        }
    }
}
