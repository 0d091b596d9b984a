//! Where one tensor's elements lie inside a file, checked when the file is opened so that reading
//! cannot go out of bounds.

use std::borrow::Cow;
use std::io::Read;
use std::ops::Range;

use super::dtype::Dtype;

/// The most that one compressed archive member may decode to, in bytes.
pub(super) const MAX_INFLATED: u64 = 4 << 30;
/// The most that a tensor with repeated elements (stride 0) may take beyond its storage, in bytes.
const MAX_REPEATED: usize = 64 << 20;
/// The most axes a tensor may have.
pub(super) const MAX_RANK: usize = 32;

/// A run of bytes in a file.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The bytes themselves.
    Stored(Range<usize>),
    /// A raw deflate stream in `range` that decodes to `size` bytes.
    Deflated { range: Range<usize>, size: usize },
    /// No bytes: only the shapes of `size` of them are known.
    Unknown { size: usize },
}

impl Source {
    /// The number of bytes after decoding.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Stored(range) => range.len(),
            Self::Deflated { size, .. } | Self::Unknown { size } => *size,
        }
    }

    /// The decoded bytes, borrowed where the file holds them plainly; at most `limit` of them.
    /// Fails, with the reason, when a compressed stream is damaged or shorter than it says.
    pub(super) fn read<'a>(&self, file: &'a [u8], limit: usize) -> Result<Cow<'a, [u8]>, String> {
        match self {
            Self::Stored(range) => {
                Ok(Cow::Borrowed(&file[range.start..][..range.len().min(limit)]))
            }
            Self::Deflated { range, size } => {
                let wanted = (*size).min(limit);
                // Grown as data arrives: a false size costs nothing.
                let mut out = Vec::new();
                flate2::read::DeflateDecoder::new(&file[range.clone()])
                    .take(wanted as u64)
                    .read_to_end(&mut out)
                    .map_err(|e| format!("bad deflate stream ({e})"))?;
                if out.len() < wanted {
                    return Err(format!("decodes to {} bytes, expected {size}", out.len()));
                }
                Ok(Cow::Owned(out))
            }
            Self::Unknown { .. } => Err("only its shape is known".to_owned()),
        }
    }
}

/// One tensor: its type, its shape and the place of its elements.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    source: Source,
    /// Byte offset of the first element inside the decoded source.
    start: usize,
    /// Steps in elements; `None` when the elements lie in row-major order without gaps.
    strides: Option<Vec<usize>>,
}

impl Entry {
    /// A row-major tensor that starts `start` bytes into `source`; the reason on failure.
    pub(super) fn contiguous(
        dtype: Dtype,
        shape: Vec<usize>,
        source: Source,
        start: usize,
    ) -> Result<Self, String> {
        let strides = row_major(&shape).ok_or_else(|| format!("shape {shape:?} overflows"))?;
        Self::strided(dtype, shape, &strides, source, start)
    }

    /// A tensor that starts `start` bytes into `source` and steps by `strides` elements; the
    /// reason on failure.
    pub(super) fn strided(
        dtype: Dtype,
        shape: Vec<usize>,
        strides: &[usize],
        source: Source,
        start: usize,
    ) -> Result<Self, String> {
        if shape.len() != strides.len() || shape.len() > MAX_RANK {
            return Err(format!("{} sizes, {} strides", shape.len(), strides.len()));
        }
        let overflow = || format!("shape {shape:?} with strides {strides:?} overflows");
        let expected = row_major(&shape).ok_or_else(overflow)?;
        let count: usize = shape.iter().product();
        let block = dtype.block_len();
        if !shape.last().copied().unwrap_or(1).is_multiple_of(block) {
            return Err(format!("rows of {shape:?} are not of whole blocks of {block} values"));
        }
        let size = (count / block).checked_mul(dtype.size()).ok_or_else(overflow)?;
        if block > 1 && start.checked_add(size).is_none_or(|end| end > source.len()) {
            let len = source.len();
            return Err(format!("{size} bytes from byte {start} on, in a storage of {len} bytes"));
        }
        if count > 0 && block == 1 {
            let last = shape.iter().zip(strides).try_fold(0usize, |at, (&n, &stride)| {
                (n - 1).checked_mul(stride).and_then(|step| at.checked_add(step))
            });
            let end = last
                .and_then(|last| last.checked_add(1)?.checked_mul(dtype.size())?.checked_add(start))
                .ok_or_else(overflow)?;
            if end > source.len() {
                return Err(format!(
                    "shape {shape:?} with strides {strides:?} ends at byte {end} of a storage of \
                     {} bytes",
                    source.len()
                ));
            }
            if size > source.len().max(MAX_REPEATED) {
                return Err(format!(
                    "shape {shape:?} repeats {} stored bytes to {size}, the limit is {MAX_REPEATED}",
                    source.len()
                ));
            }
        }
        // An axis of one element never steps, so its stride says nothing.
        let plain =
            count == 0 || (0..shape.len()).all(|d| shape[d] == 1 || strides[d] == expected[d]);
        let strides = (!plain).then(|| strides.to_vec());
        let start = if count == 0 { 0 } else { start };
        Ok(Self { dtype, shape, source, start, strides })
    }

    /// The tensor's size after reading, in bytes.
    pub(super) fn size(&self) -> usize {
        self.shape.iter().product::<usize>() / self.dtype.block_len() * self.dtype.size()
    }

    /// The file range that holds exactly this tensor's bytes, if there is one.
    pub(super) fn file_range(&self) -> Option<Range<usize>> {
        match (&self.source, &self.strides) {
            (Source::Stored(range), None) => {
                let start = range.start + self.start;
                Some(start..start + self.size())
            }
            _ => None,
        }
    }

    /// The tensor's bytes in row-major order; the reason on failure.
    pub(super) fn read<'a>(&self, file: &'a [u8]) -> Result<Cow<'a, [u8]>, String> {
        if let Some(range) = self.file_range() {
            return Ok(Cow::Borrowed(&file[range]));
        }
        let stored = self.source.read(file, self.source.len())?;
        Ok(Cow::Owned(match &self.strides {
            None => stored[self.start..][..self.size()].to_vec(),
            Some(strides) => self.gather(&stored, strides),
        }))
    }

    fn gather(&self, stored: &[u8], strides: &[usize]) -> Vec<u8> {
        let item = self.dtype.size();
        let mut out = Vec::with_capacity(self.size());
        let Some((&row, outer)) = self.shape.split_last() else {
            return stored[self.start..][..item].to_vec();
        };
        let step = strides[outer.len()] * item;
        let mut index = vec![0; outer.len()];
        let mut at = self.start;
        while out.len() < self.size() {
            for i in 0..row {
                out.extend_from_slice(&stored[at + i * step..][..item]);
            }
            for d in (0..outer.len()).rev() {
                index[d] += 1;
                at += strides[d] * item;
                if index[d] < outer[d] {
                    break;
                }
                at -= outer[d] * strides[d] * item;
                index[d] = 0;
            }
        }
        out
    }
}

/// Row-major strides, in elements; `None` when the number of elements overflows.
pub(super) fn row_major(shape: &[usize]) -> Option<Vec<usize>> {
    // Axes of no elements count as one here, so that the other axes cannot overflow either.
    let mut strides = vec![0; shape.len()];
    let mut step = 1usize;
    for d in (0..shape.len()).rev() {
        strides[d] = step;
        step = step.checked_mul(shape[d].max(1))?;
    }
    Some(strides)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn entry(shape: &[usize], strides: &[usize], start: usize) -> Result<Entry, String> {
        Entry::strided(Dtype::U8, shape.to_vec(), strides, Source::Stored(0..12), start)
    }

    /// Sizes, strides, start, bytes gathered from 0, 1, 2, …
    type Case = (&'static [usize], &'static [usize], usize, &'static [u8]);

    #[test]
    fn strided_elements_are_gathered() {
        let file: Vec<u8> = (0..12).collect();
        let cases: [Case; 6] = [
            (&[3, 4], &[4, 1], 0, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
            (&[4, 3], &[1, 4], 0, &[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]),
            (&[2, 2, 2], &[6, 1, 3], 1, &[1, 4, 2, 5, 7, 10, 8, 11]),
            (&[2, 3], &[0, 2], 5, &[5, 7, 9, 5, 7, 9]),
            (&[], &[], 7, &[7]),
            (&[0, 4], &[4, 1], 99, &[]),
        ];
        for (shape, strides, start, expected) in cases {
            assert_eq!(&*entry(shape, strides, start).unwrap().read(&file).unwrap(), expected);
        }
    }

    #[test]
    fn out_of_bounds_is_refused() {
        assert!(entry(&[3, 4], &[4, 1], 1).is_err());
        assert!(entry(&[13], &[1], 0).is_err());
        assert!(entry(&[2, 2], &[usize::MAX, 1], 0).is_err());
        assert!(entry(&[usize::MAX, 2], &[0, 0], 0).is_err());
        assert!(entry(&[0, usize::MAX, 2], &[0, 0, 0], 0).is_err());
        assert!(entry(&[1 << 40], &[0], 0).is_err());
        assert!(entry(&[1; 33], &[1; 33], 0).is_err());
    }
}
