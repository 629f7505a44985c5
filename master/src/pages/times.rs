//! Instants and spans of time as people read them. Clocks of two machines meet here: a span never shows as negative.

use jiff::Timestamp;
use maud::{Markup, html};

/// `3m ago`; the exact time in the title.
pub fn ago(then: Timestamp, now: Timestamp) -> Markup {
    html! { time datetime=(iso(then)) title=(exact(then)) { (ago_words(millis_between(then, now))) } }
}

/// `2026-11-22 09:19:03 UTC`, and how long ago that was.
pub fn exact_and_ago(then: Timestamp, now: Timestamp) -> Markup {
    html! {
        time datetime=(iso(then)) { (exact(then)) }
        " " span.dim { (ago_words(millis_between(then, now))) }
    }
}

/// The time of day, `09:19:03 UTC`.
pub fn time_of_day(then: Timestamp) -> Markup {
    html! { time datetime=(iso(then)) { (then.strftime("%H:%M:%S UTC").to_string()) } }
}

/// How long from one to the other, in milliseconds; 0 if the clocks disagree.
pub fn millis_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}

/// `740ms`, `4.21s`, `42s`, `3m 05s`, `2h 04m`, `3d 04h`.
pub fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0 => format!("{millis}ms"),
        1..10 => format!("{seconds}.{:02}s", millis % 1000 / 10),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{}d {:02}h", hours / 24, hours % 24),
    }
}

fn ago_words(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0 => "just now".to_owned(),
        1..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..172_800 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

fn iso(then: Timestamp) -> String {
    format!("{then:.3}")
}

fn exact(then: Timestamp) -> String {
    then.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_as_people_say_them() {
        let cases = [
            (0, "0ms"),
            (999, "999ms"),
            (4_219, "4.21s"),
            (42_900, "42s"),
            (185_000, "3m 05s"),
            (7_440_000, "2h 04m"),
            (273_600_000, "3d 04h"),
        ];
        for (millis, words) in cases {
            assert_eq!(span(millis), words);
        }
    }

    #[test]
    fn a_node_whose_clock_is_ahead_makes_no_negative_time() {
        let now: Timestamp = "2026-11-22T09:00:00Z".parse().unwrap();
        let ahead: Timestamp = "2026-11-22T09:00:05Z".parse().unwrap();
        assert_eq!(millis_between(ahead, now), 0);
        assert_eq!(
            ago(ahead, now).into_string(),
            r#"<time datetime="2026-11-22T09:00:05.000Z" title="2026-11-22 09:00:05 UTC">just now</time>"#
        );
    }
}
