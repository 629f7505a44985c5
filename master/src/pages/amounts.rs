//! Amounts of memory and how much of something is in use, in numbers and as a bar.

use maud::{Markup, html};

const MIB: u64 = 1024 * 1024;

/// MiB as `512 MiB`; from 10 GiB on `62.8 GiB`.
pub fn mib(mib: u64) -> String {
    if mib < 10 * 1024 { format!("{mib} MiB") } else { format!("{} GiB", tenths(mib, 1024)) }
}

/// MiB used of a total, in the total's unit: `54.0 of 62.7 GiB`.
pub fn mib_of(used: u64, total: u64) -> String {
    if total < 10 * 1024 {
        format!("{used} of {total} MiB")
    } else {
        format!("{} of {} GiB", tenths(used, 1024), tenths(total, 1024))
    }
}

/// Bytes as `740 B`, `12.4 KiB`, `1.2 MiB`, `3.0 GiB`.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..MIB => format!("{} KiB", tenths(bytes, 1024)),
        MIB..0x4000_0000 => format!("{} MiB", tenths(bytes, MIB)),
        _ => format!("{} GiB", tenths(bytes, 1024 * MIB)),
    }
}

/// A bar of `used` out of `total`. It only repeats the numbers beside it, so it is silent to those who listen.
pub fn bar(used: u64, total: u64) -> Markup {
    drawn(per_mille(used, total), "used")
}

/// A bar of how near something came to its limit: alarming close below it, where [`bar`] finds a full node good.
pub fn limit_bar(peak: u64, limit: u64) -> Markup {
    let per_mille = per_mille(peak, limit);
    drawn(per_mille, if per_mille < 950 { "used" } else { "tight" })
}

fn drawn(per_mille: u64, class: &str) -> Markup {
    html! {
        svg.bar viewBox="0 0 1000 8" preserveAspectRatio="none" aria-hidden="true" focusable="false" {
            rect.track width="1000" height="8" {}
            rect class=(class) width=(per_mille) height="8" {}
        }
    }
}

fn per_mille(used: u64, total: u64) -> u64 {
    let whole = u128::from(total.max(1));
    u64::try_from((u128::from(used) * 1000).div_ceil(whole)).map_or(1000, |share| share.min(1000))
}

fn tenths(amount: u64, unit: u64) -> String {
    let tenths = u128::from(amount) * 10 / u128::from(unit);
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_reads_in_the_unit_that_fits() {
        assert_eq!(mib(512), "512 MiB");
        assert_eq!(mib(64_307), "62.7 GiB");
        assert_eq!(mib_of(307, 1536), "307 of 1536 MiB");
        assert_eq!(mib_of(307, 64_307), "0.2 of 62.7 GiB");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(12_700), "12.4 KiB");
        assert_eq!(bytes(41 * MIB), "41.0 MiB");
        assert_eq!(bytes(u64::MAX), "17179869183.9 GiB");
    }

    #[test]
    fn a_bar_is_never_longer_than_its_track_nor_empty_when_something_is_used() {
        assert_eq!(
            [per_mille(0, 8), per_mille(1, 100_000), per_mille(4, 8), per_mille(9, 8), per_mille(1, 0)],
            [0, 1, 500, 1000, 1000]
        );
        assert_eq!(per_mille(u64::MAX, u64::MAX), 1000);
    }
}
