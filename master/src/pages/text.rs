//! Bytes from jobs, made visible: what a browser would hide, obey or refuse is shown as what it is.
//!
//! Control characters become `^[` as in `cat -v` (the pictures of U+2400 are missing from the fonts of a plain Debian),
//! bytes that are not UTF-8 become `\xff`, characters that turn, join or hide others become `U+202E`. All of these
//! stand in a `span.ctl`, so they cannot be taken for text that merely looks the same. Nothing is dropped: what is
//! shown can be read back to the same bytes.

use std::fmt::Write;

use maud::{Markup, PreEscaped, Render};

/// A log or a command: newlines and tabs stay what they are.
pub fn visible(bytes: &[u8]) -> Markup {
    markup(bytes, Shape::Lines)
}

/// A name or a sentence: newlines and tabs are made visible too.
pub fn visible_line(text: &str) -> Markup {
    markup(text.as_bytes(), Shape::OneLine)
}

/// As [`visible_line`], for places that hold no elements: a `title`, an `aria-label`.
pub fn plain_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for piece in pieces(text.as_bytes(), Shape::OneLine) {
        piece.write_letters(&mut out);
    }
    out
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Lines,
    OneLine,
}

/// A stretch of text that is shown in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece<'a> {
    /// As it is.
    Plain(&'a str),
    /// Control characters below U+0080.
    Controls(&'a str),
    /// A terminal's control sequence, `ESC [ 31 m` (ECMA-48, 5.4).
    Sequence(&'a str),
    /// One character that cannot be seen or moves others.
    Marked(char, &'static str),
    /// Bytes that are not UTF-8.
    Broken(&'a [u8]),
}

fn markup(bytes: &[u8], shape: Shape) -> Markup {
    let mut out = String::with_capacity(bytes.len() + bytes.len() / 8);
    for piece in pieces(bytes, shape) {
        piece.write_html(&mut out);
    }
    PreEscaped(out)
}

fn pieces(bytes: &[u8], shape: Shape) -> impl Iterator<Item = Piece<'_>> {
    bytes.utf8_chunks().flat_map(move |chunk| {
        let broken = (!chunk.invalid().is_empty()).then_some(Piece::Broken(chunk.invalid()));
        Text { rest: chunk.valid(), shape }.chain(broken)
    })
}

impl Piece<'_> {
    fn write_html(self, out: &mut String) {
        if let Piece::Plain(text) = self {
            return text.render_to(out);
        }
        out.push_str("<span class=\"ctl\"");
        self.write_title(out);
        out.push('>');
        let mut letters = String::new();
        self.write_letters(&mut letters);
        letters.render_to(out);
        out.push_str("</span>");
    }

    /// What the letters stand for; broken bytes say it themselves.
    fn write_title(self, out: &mut String) {
        let codes = match self {
            Piece::Plain(_) | Piece::Broken(_) => return,
            Piece::Marked(_, what) => what.to_owned(),
            Piece::Sequence(_) => "0x1b".to_owned(),
            Piece::Controls(text) => {
                let codes: Vec<String> = text.bytes().map(|byte| format!("{byte:#04x}")).collect();
                codes.join(" ")
            }
        };
        out.push_str(" title=\"");
        codes.render_to(out);
        out.push('"');
    }

    fn write_letters(self, out: &mut String) {
        match self {
            Piece::Plain(text) => out.push_str(text),
            Piece::Controls(text) => text.bytes().for_each(|control| push_caret(control, out)),
            Piece::Sequence(text) => {
                push_caret(b'\x1b', out);
                out.push_str(&text[1..]);
            }
            // Writing to a String cannot fail.
            Piece::Marked(char, _) => _ = write!(out, "U+{:04X}", u32::from(char)),
            Piece::Broken(bytes) => bytes.iter().for_each(|byte| _ = write!(out, "\\x{byte:02x}")),
        }
    }
}

/// The pieces of valid text.
struct Text<'a> {
    rest: &'a str,
    shape: Shape,
}

impl<'a> Iterator for Text<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let first = self.rest.chars().next()?;
        if let Some(what) = hidden(first) {
            self.take(first.len_utf8());
            return Some(Piece::Marked(first, what));
        }
        if let Some(len) = control_sequence(self.rest.as_bytes()) {
            return Some(Piece::Sequence(self.take(len)));
        }
        if self.is_control(first) {
            return Some(Piece::Controls(self.take(self.controls())));
        }
        Some(Piece::Plain(self.take(self.plain())))
    }
}

impl<'a> Text<'a> {
    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        taken
    }

    fn is_control(&self, char: char) -> bool {
        char.is_ascii_control() && !(self.shape == Shape::Lines && matches!(char, '\n' | '\t'))
    }

    /// The length of the run of control characters, up to the next sequence.
    fn controls(&self) -> usize {
        let mut chars = self.rest.char_indices();
        let end = chars.find(|&(at, char)| {
            !self.is_control(char) || (at > 0 && control_sequence(&self.rest.as_bytes()[at..]).is_some())
        });
        end.map_or(self.rest.len(), |(at, _)| at)
    }

    /// The length of the run that is shown as it is.
    fn plain(&self) -> usize {
        self.rest.find(|char| self.is_control(char) || hidden(char).is_some()).unwrap_or(self.rest.len())
    }
}

/// A control character as a terminal echoes it: `^[`, `^M`, `^?` (termios(3), ECHOCTL).
fn push_caret(control: u8, out: &mut String) {
    out.extend(['^', char::from(control ^ 0x40)]);
}

/// The length of the control sequence that `text` begins with: `ESC [`, parameters, intermediates, one final byte.
fn control_sequence(text: &[u8]) -> Option<usize> {
    const LONGEST: usize = 64;
    let body = text.strip_prefix(b"\x1b[")?;
    let parameters = body.iter().take(LONGEST).take_while(|byte| matches!(byte, 0x30..=0x3f)).count();
    let intermediates = body[parameters..].iter().take(LONGEST).take_while(|byte| matches!(byte, 0x20..=0x2f)).count();
    let len = parameters + intermediates;
    matches!(body.get(len)?, 0x40..=0x7e).then_some(2 + len + 1)
}

/// What is the matter with a character that shows nothing, shows a blank that is not one, or moves its neighbours
/// (Unicode: Bidi_Control, Default_Ignorable_Code_Point, Zl, Zp, Zs, C1). The emoji selectors are let through.
fn hidden(char: char) -> Option<&'static str> {
    match char {
        '\0'..='\x7f' => None,
        '\u{80}'..='\u{9f}' => Some("control character"),
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            Some("turns the direction of text")
        }
        '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' => Some("a blank that is no space"),
        '\u{2028}' | '\u{2029}' => Some("line or paragraph separator"),
        '\u{fff9}'..='\u{fffb}' => Some("annotation mark"),
        '\u{ad}'
        | '\u{34f}'
        | '\u{115f}'
        | '\u{1160}'
        | '\u{17b4}'
        | '\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200d}'
        | '\u{2060}'..='\u{2065}'
        | '\u{206a}'..='\u{206f}'
        | '\u{3164}'
        | '\u{fe00}'..='\u{fe0d}'
        | '\u{feff}'
        | '\u{ffa0}'
        | '\u{fff0}'..='\u{fff8}'
        | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}' => Some("invisible"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use arbtest::arbitrary::{Result, Unstructured};
    use arbtest::arbtest;

    use super::*;

    fn shown(bytes: &[u8]) -> String {
        visible(bytes).into_string()
    }

    fn unescape(html: &str) -> String {
        html.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
    }

    /// Reads what a `span.ctl` shows back into bytes.
    fn letters_to_bytes(letters: &str) -> Vec<u8> {
        if let Some(hex) = letters.strip_prefix("U+") {
            let char = char::from_u32(u32::from_str_radix(hex, 16).unwrap()).unwrap();
            return char.to_string().into_bytes();
        }
        if letters.starts_with("\\x") {
            return letters.split("\\x").skip(1).map(|hex| u8::from_str_radix(hex, 16).unwrap()).collect();
        }
        if let Some(sequence) = letters.strip_prefix("^[[") {
            return format!("\x1b[{sequence}").into_bytes();
        }
        let pairs = letters.as_bytes().chunks(2);
        pairs.map(|pair| if pair[0] == b'^' { pair[1] ^ 0x40 } else { panic!("{letters:?}") }).collect()
    }

    /// Strips tags, unescapes, and reads the spans back: the bytes that were shown.
    fn read_back(html: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = html;
        while let Some((plain, span)) = rest.split_once("<span class=\"ctl\"") {
            bytes.extend(unescape(plain).into_bytes());
            let (letters, after) = span.split_once('>').unwrap().1.split_once("</span>").unwrap();
            bytes.extend(letters_to_bytes(&unescape(letters)));
            rest = after;
        }
        bytes.extend(unescape(rest).into_bytes());
        bytes
    }

    /// Bytes as jobs write them at their worst: markup, controls, sequences, lone surrogates' remains, bidi.
    fn hostile(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
        const FRAGMENTS: [&[u8]; 16] = [
            b"<script>alert(1)</script>",
            b"&amp;&#x3c;",
            b"\"'>",
            b"\x1b[31m",
            b"\x1b[",
            b"\x1b[38;2;1;2;3m",
            b"\x1b]0;title\x07",
            b"\r\n",
            b"\n\t",
            b"\0\0\0",
            b"\xff\xfe",
            b"\xed\xa0\x80",
            "\u{202e}evil\u{2066}".as_bytes(),
            "\u{200b}\u{feff}\u{e0041}".as_bytes(),
            "^[ \\xff U+202E ❤\u{fe0f} 字".as_bytes(),
            b"x",
        ];
        let mut bytes = Vec::new();
        while !u.is_empty() {
            match u.ratio(1, 4)? {
                true => bytes.push(u.arbitrary()?),
                false => bytes.extend_from_slice(u.choose(&FRAGMENTS)?),
            }
        }
        Ok(bytes)
    }

    #[test]
    fn whatever_a_job_writes_no_byte_of_it_is_lost() {
        arbtest(|u| {
            let bytes = hostile(u)?;
            assert_eq!(read_back(&shown(&bytes)), bytes);
            Ok(())
        });
    }

    #[test]
    fn whatever_a_job_writes_the_page_holds_no_tag_of_it_and_no_control_character() {
        arbtest(|u| {
            let html = shown(&hostile(u)?);
            let text = html.replace("<span class=\"ctl\"", "").replace("</span>", "");
            assert!(!text.contains('<'), "{html}");
            let raw = |char: char| char.is_control() && !matches!(char, '\n' | '\t');
            assert!(!html.contains(raw) && !html.contains(|char| hidden(char).is_some()), "{html:?}");
            Ok(())
        });
    }

    #[test]
    fn a_line_is_one_line_whatever_is_in_it() {
        arbtest(|u| {
            let bytes = hostile(u)?;
            let text = String::from_utf8_lossy(&bytes);
            let (line, plain) = (visible_line(&text).into_string(), plain_line(&text));
            assert!(!line.contains(char::is_control) && !plain.contains(char::is_control), "{line:?} {plain:?}");
            assert_eq!(read_back(&line), text.as_bytes());
            Ok(())
        });
    }

    #[test]
    fn controls_and_broken_bytes_are_shown_as_carets_and_codes() {
        let cases: [(&[u8], &str); 8] = [
            (b"a<b>&\"", "a&lt;b&gt;&amp;&quot;"),
            (b"a\tb\n", "a\tb\n"),
            (b"\x1b[1;31mred", r#"<span class="ctl" title="0x1b">^[[1;31m</span>red"#),
            (b"\x07\x1b", r#"<span class="ctl" title="0x07 0x1b">^G^[</span>"#),
            (b"\x7f", r#"<span class="ctl" title="0x7f">^?</span>"#),
            (b"\xc3(", r#"<span class="ctl">\xc3</span>("#),
            ("\u{202e}".as_bytes(), r#"<span class="ctl" title="turns the direction of text">U+202E</span>"#),
            ("é字🚢".as_bytes(), "é字🚢"),
        ];
        for (bytes, html) in cases {
            assert_eq!(shown(bytes), html);
        }
    }

    #[test]
    fn plain_text_costs_no_markup() {
        let log = "step 17: loss=0.25 字\n".repeat(4000);
        assert_eq!(shown(log.as_bytes()), log);
    }

    #[test]
    fn a_tail_of_rubbish_grows_by_a_bounded_factor() {
        let mut state = 1u32;
        let mut rubbish = Vec::with_capacity(64 * 1024);
        rubbish.resize_with(64 * 1024, || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        });
        for bytes in [rubbish, vec![0; 64 * 1024], "\u{200b}".repeat(20_000).into_bytes()] {
            assert!(shown(&bytes).len() < 32 * bytes.len());
        }
    }
}
