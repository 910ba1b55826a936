//! Memory for tables: one anonymous mapping, zeroed, on huge pages where there are any.
//!
//! Tables are large and sized once. Mapping them directly gives huge pages (a walk over a table of a
//! million connections is a walk over TLB misses otherwise) and lets the kernel hand out pages as they are first touched,
//! so a generous limit costs address space only (but of reserved huge pages, which the kernel sets aside for all of a mapping). Who must not wait for that has them brought before ([`Pages`]).

#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{Advice, MmapOptions, MmapRaw};
use zerocopy::FromZeros;

/// A fixed number of `T`, all bytes zero at first.
pub struct Mapped<T> {
    /// Where `map` begins: one step less to what is looked up for each packet.
    start: NonNull<T>,
    len: usize,
    map: Arc<MmapRaw>,
    backing: Backing,
}

/// What kind of pages the kernel gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Huge ones that were reserved (`vm.nr_hugepages`).
    Reserved,
    /// Huge ones where it finds any, as it was advised; none at all if the machine's settings say so.
    Advised,
    /// Ordinary ones: it took no advice.
    Ordinary,
}

/// Advises the kernel to give huge pages.
pub fn advise(map: &MmapRaw) -> Backing {
    // A kernel without transparent huge pages says EINVAL, and small pages serve.
    map.advise(Advice::HugePage).map_or(Backing::Ordinary, |()| Backing::Advised)
}

/// The pages of such memory, for who brings them before they are touched. It never looks at what is in them.
pub struct Pages(Arc<MmapRaw>, Backing);

impl Pages {
    /// What kind they are, and how many bytes.
    pub fn backing(&self) -> (Backing, usize) {
        (self.1, self.0.len())
    }

    /// Has the kernel find and clear the pages of these bytes, as far as the memory goes; nothing happens to those that are there.
    ///
    /// # Errors
    /// When the kernel cannot (`EINVAL` before Linux 5.14): they come when they are touched, then.
    pub fn bring(&self, bytes: Range<usize>) -> std::io::Result<()> {
        let end = bytes.end.min(self.0.len());
        match end.checked_sub(bytes.start) {
            Some(length) if length > 0 => self.0.advise_range(Advice::PopulateWrite, bytes.start, length),
            _ => Ok(()),
        }
    }
}

impl<T: FromZeros> Mapped<T> {
    /// Maps memory for `len` values.
    ///
    /// # Errors
    /// When the kernel refuses the mapping (`ENOMEM`).
    ///
    /// # Panics
    /// For a type with drop glue: nothing would ever drop the values.
    pub fn zeroed(len: usize) -> std::io::Result<Self> {
        const { assert!(!std::mem::needs_drop::<T>() && align_of::<T>() <= 4096 && size_of::<T>() > 0) };
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::OutOfMemory, "table size overflows"))?
            .max(1);
        let (map, backing) = match MmapOptions::new().len(bytes).huge(Some(21)).map_anon() {
            Ok(map) => (MmapRaw::from(map), Backing::Reserved),
            Err(_) => {
                let map = MmapRaw::from(MmapOptions::new().len(bytes).map_anon()?);
                let backing = advise(&map);
                (map, backing)
            }
        };
        let start = NonNull::new(map.as_mut_ptr()).ok_or(std::io::ErrorKind::OutOfMemory)?.cast();
        Ok(Self { start, len, map: Arc::new(map), backing })
    }
}

impl<T> Mapped<T> {
    /// Its pages.
    pub fn pages(&self) -> Pages {
        Pages(Arc::clone(&self.map), self.backing)
    }

    /// Asks the processor to fetch the first line of a value that is needed [soon](prefetch).
    #[inline]
    pub fn prefetch(&self, n: usize) {
        prefetch(self.start.as_ptr().wrapping_add(n));
    }

    /// The same for one of [many](prefetch_many).
    #[inline]
    pub fn prefetch_many(&self, n: usize) {
        prefetch_many(self.start.as_ptr().wrapping_add(n));
    }
}

impl<T> Deref for Mapped<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is page aligned (T's alignment is at most a page's), at least `len * size_of::<T>()` bytes long, lives as
        // long as `self`, which holds it, and was zeroed by the kernel, which is a valid T (`FromZeros`). `&self` excludes `&mut`, and `Pages` do
        // not look inside.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Mapped<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

// SAFETY: a `Mapped<T>` owns its values as a `Box<[T]>` does; nothing about a mapping ties it to a thread.
unsafe impl<T: Send> Send for Mapped<T> {}
// SAFETY: as above; shared access only hands out `&T`.
unsafe impl<T: Sync> Sync for Mapped<T> {}

/// How many packets before its own a line is asked for again that was one of [many](prefetch_many): time enough for it to come out of memory, if it was forgotten on its way to the second
/// cache.
pub const SOON: usize = 8;

/// Asks the processor to fetch the cache line at an address, which may be any, into its first cache: one that is needed soon, or that another core has written.
///
/// A core waits for some twenty such lines at once; those asked for beyond that an AMD Zen 4 forgets (12 % of 24, a quarter of 128).
#[inline]
pub fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetching changes nothing, and does nothing where there is no memory; SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The same into its second cache: one of many, from memory. As a rule all of them come, three times as fast as to the first. But what another core has written comes the more
/// slowly, and there are times when a core forgets them all: who relies on them asks [again](prefetch), [soon](SOON) before.
#[inline]
pub fn prefetch_many<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Which of ten words are equal to one, a bit each, the first word's the lowest.
#[inline]
pub fn equal(words: &[u16; 10], word: u16) -> u32 {
    compare(words, word) & 0x3ff
}

/// The first of ten words that is equal to one; 10 if none is.
#[inline]
pub fn first_equal(words: &[u16; 10], word: u16) -> usize {
    (compare(words, word) | 1 << 10).trailing_zeros() as usize
}

/// The same as [`equal`], with any bits above.
#[inline]
fn compare(words: &[u16; 10], word: u16) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: both loads, of the first eight words and of the last two, lie inside the array and ask for no alignment; SSE2 is part of x86-64.
    unsafe {
        use std::arch::x86_64::*;
        let first = words.as_ptr();
        let wanted = _mm_set1_epi16(word as i16);
        let low = _mm_cmpeq_epi16(_mm_loadu_si128(first.cast()), wanted);
        let high = _mm_cmpeq_epi16(_mm_loadu_si32(first.add(8).cast()), wanted);
        _mm_movemask_epi8(_mm_packs_epi16(low, high)) as u32
    }
    #[cfg(not(target_arch = "x86_64"))]
    words.iter().rev().fold(0, |bits, other| bits << 1 | u32::from(*other == word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_words_are_found() {
        for bits in 0..1 << 10 {
            let words = std::array::from_fn(|n| if bits >> n & 1 == 1 { 0xbeef } else { n as u16 });
            assert_eq!(equal(&words, 0xbeef), bits);
            assert_eq!(first_equal(&words, 0xbeef), 10.min(bits.trailing_zeros() as usize));
            assert_eq!(equal(&words.map(|word| word & 0xfff), 0), 1 & !bits);
            assert_eq!(first_equal(&words.map(|word| word & 0xfff), 0), if bits & 1 == 0 { 0 } else { 10 });
        }
    }

    #[test]
    fn a_mapping_is_zero_and_keeps_what_is_written() {
        let mut table: Mapped<u64> = Mapped::zeroed(100_000).unwrap();
        assert_eq!(table.len(), 100_000);
        assert!(table.iter().all(|v| *v == 0));
        table[99_999] = 7;
        assert_eq!(table[99_999], 7);
    }
}
