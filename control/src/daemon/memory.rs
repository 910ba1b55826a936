//! What frames and tables lie in: huge pages that were reserved, huge pages where the kernel finds any, or ordinary ones.

use shunt_dataplane::conn::memory::Backing;

use crate::api::Pages;

/// The pages of memory that lies in this, by kind. Advice is worth nothing where transparent huge pages are switched off.
pub fn pages(parts: impl IntoIterator<Item = (Backing, usize)>, has_transparent: bool) -> Pages {
    let mut pages = Pages::default();
    for (backing, bytes) in parts {
        let kind = match backing {
            Backing::Reserved => &mut pages.reserved,
            Backing::Advised if has_transparent => &mut pages.transparent,
            Backing::Advised | Backing::Ordinary => &mut pages.ordinary,
        };
        *kind += bytes as u64;
    }
    pages
}

/// Bytes of memory that this process has now, and how many of them are in huge pages; nothing if the kernel does not say.
///
/// The kernel looks at every page for this: for whoever asks now and then.
pub fn in_use() -> (u64, u64) {
    std::fs::read_to_string("/proc/self/smaps_rollup").map_or((0, 0), |text| sum(&text))
}

/// Huge pages of 2 MiB that are set aside for this process, of those that were reserved.
pub fn set_aside() -> u64 {
    std::fs::read_to_string("/proc/self/maps").map_or(0, |text| set_aside_in(&text)) >> 21
}

/// Bytes of such pages among these mappings.
fn set_aside_in(maps: &str) -> u64 {
    let length = |line: &str| {
        let (begin, end) = line.split_whitespace().next()?.split_once('-')?;
        u64::from_str_radix(end, 16).ok()?.checked_sub(u64::from_str_radix(begin, 16).ok()?)
    };
    maps.lines().filter(|line| line.contains("/anon_hugepage")).filter_map(length).sum()
}

fn sum(rollup: &str) -> (u64, u64) {
    let of = |name: &str| -> u64 {
        let value = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix("kB"));
        value.and_then(|kibibytes| kibibytes.trim().parse().ok()).unwrap_or(0) << 10
    };
    // Reserved ones are no part of what is called resident.
    let reserved = of("Private_Hugetlb:") + of("Shared_Hugetlb:");
    (of("Rss:") + reserved, of("AnonHugePages:") + reserved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_counts_where_it_is_heard() {
        let parts = [(Backing::Reserved, 4), (Backing::Advised, 2), (Backing::Ordinary, 1)];
        assert_eq!(pages(parts, true), Pages { reserved: 4, transparent: 2, ordinary: 1 });
        assert_eq!(pages(parts, false), Pages { reserved: 4, transparent: 0, ordinary: 3 });
    }

    #[test]
    fn reserved_pages_are_counted_by_their_mappings() {
        let maps = "7f0000000000-7f0000400000 rw-p 00000000 00:0f 1    /anon_hugepage (deleted)\n\
                    7f0000400000-7f0000500000 rw-p 00000000 00:00 0\n\
                    7f0001000000-7f0001200000 rw-p 00000000 00:0f 2    /anon_hugepage (deleted)\n";
        assert_eq!(set_aside_in(maps), 6 << 20);
    }

    #[test]
    fn reserved_pages_are_in_use_too() {
        let rollup = "55d0-7ffe ---p 00000000 00:00 0    [rollup]\nRss:               10240 kB\nPss:  9 kB\n\
                      AnonHugePages:      4096 kB\nShared_Hugetlb:        0 kB\nPrivate_Hugetlb:    2048 kB\n";
        assert_eq!(sum(rollup), (12 << 20, 6 << 20));
        assert_eq!(sum(""), (0, 0));
        let (all, huge) = in_use();
        assert!(all > 0 && huge <= all, "{all}, {huge}");
    }
}
