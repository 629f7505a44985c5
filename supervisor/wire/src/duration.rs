//! Spans of time as operators write them: `500ms`, `30s`, `5m`, `1h`, or plain milliseconds.

use std::time::Duration;

use crate::job::MAX_TIMEOUT_MS;

/// Reads one; at most ten years. A refusal is a sentence without the option's name.
pub fn parse(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let unit = UNITS.iter().find_map(|(unit, ms)| text.strip_suffix(unit).map(|digits| (digits, *ms)));
    let (digits, ms) = unit.unwrap_or((text, 1));
    let all_digits = digits.bytes().all(|b| b.is_ascii_digit());
    let total = digits.parse::<u64>().ok().filter(|_| all_digits).and_then(|count| count.checked_mul(ms));
    let within = total.filter(|total| *total <= MAX_TIMEOUT_MS);
    within.map(Duration::from_millis).ok_or_else(|| format!("{text:?} is not a time such as 500ms, 30s, 5m or 1h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_or_is_in_milliseconds() {
        let ms = |text: &str| parse(text).map(|time| time.as_millis());
        for (text, expected) in
            [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("7", 7), ("0", 0)]
        {
            assert_eq!(ms(text), Ok(expected), "{text}");
        }
        for bad in ["", "s", "-1s", "+1", "1 s", "1.5s", "1d", "99999999999999999999s", "6000000h"] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
    }
}
