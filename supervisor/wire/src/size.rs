//! Numbers of bytes as operators write and read them: `512KiB`, `64MiB`, `1GiB`, or plain bytes.

/// The units, largest first.
const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Reads one. A refusal is a sentence without the option's name.
pub fn parse(text: &str) -> Result<u64, String> {
    let unit = UNITS.iter().find_map(|(unit, bytes)| text.strip_suffix(unit).map(|digits| (digits, *bytes)));
    let (digits, bytes) = unit.unwrap_or((text, 1));
    let all_digits = digits.bytes().all(|b| b.is_ascii_digit());
    let total = digits.parse::<u64>().ok().filter(|_| all_digits).and_then(|count| count.checked_mul(bytes));
    total.ok_or_else(|| format!("{text:?} is not a size such as 4096, 512KiB, 64MiB or 1GiB"))
}

/// Says one: in the largest unit that leaves no rest.
pub fn in_words(bytes: u64) -> String {
    match UNITS.iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((unit, size)) => format!("{} {unit}", bytes / size),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_unit_or_is_in_bytes() {
        for (text, bytes) in [("7", 7), ("0", 0), ("2KiB", 2048), ("64MiB", 64 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in
            ["", "MiB", "-1", "+1KiB", "1 GiB", "1.5GiB", "1GB", "1g", "99999999999999999999", "99999999999999GiB"]
        {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_size_is_said_without_a_rest() {
        let said = [0, 1000, 4096, 1 << 20, 3 << 29, 1 << 30].map(in_words);
        assert_eq!(said, ["0 bytes", "1000 bytes", "4 KiB", "1 MiB", "1536 MiB", "1 GiB"]);
    }
}
