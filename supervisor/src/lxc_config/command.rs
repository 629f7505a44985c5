//! A command line as the value of `lxc.execute.cmd`, and back.
//!
//! lxc-execute splits the value at blanks; a word may stand in one kind of quotes, and nothing escapes them.
//! Most commands fit into one such word. One with both kinds of quotes, or a control character, is handed to the same
//! shell through printf(1)'s octal escapes, which need neither.
//!
//! lxc-execute 5.0.2 crashes on a value of more than about 4 KiB (no matter how it is spelled), though it takes the
//! same command as arguments; berth hands the text to execve(2) as it is and has no such bound.

use std::fmt::Write as _;

const SHELL: &str = "/bin/sh -c ";
/// The dot keeps command substitution from eating trailing newlines.
const ENCODED_HEAD: &str = "c=$(printf %b. \"";
const ENCODED_TAIL: &str = "\"); exec /bin/sh -c \"${c%.}\"";

/// The value that makes lxc-execute run `/bin/sh -c <command>`.
pub(super) fn encode(command: &str) -> String {
    // A command that looks like our own encoding is encoded too, so that reading is never in doubt.
    let plain = !command.contains(char::is_control) && !command.starts_with(ENCODED_HEAD);
    match (plain, command.contains('"'), command.contains('\'')) {
        (true, false, _) => format!("{SHELL}\"{command}\""),
        (true, true, false) => format!("{SHELL}'{command}'"),
        _ => format!("{SHELL}'{ENCODED_HEAD}{}{ENCODED_TAIL}'", escape(command)),
    }
}

/// The command line in a value that [`encode`] made.
pub(super) fn decode(value: &str) -> Option<String> {
    let word = value.strip_prefix(SHELL)?;
    let quote = word.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    let word = word.strip_prefix(quote)?.strip_suffix(quote).filter(|inner| !inner.contains(quote))?;
    match word.strip_prefix(ENCODED_HEAD) {
        Some(rest) => unescape(rest.strip_suffix(ENCODED_TAIL)?),
        None => Some(word.to_owned()),
    }
}

/// What the shell's double quotes, LXC's single quotes, printf or a line could trip over, as `\0ooo`
/// for each byte (POSIX printf, `%b`); a newline, the most frequent, as `\n`.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c == '\n' {
            out.push_str("\\n");
        } else if c.is_control() || matches!(c, '"' | '\'' | '\\' | '$' | '`') {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\0{byte:03o}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        let (byte, len) = match after.strip_prefix('0') {
            Some(digits) => (u8::from_str_radix(digits.get(..3)?, 8).ok()?, 4),
            None => (after.strip_prefix('n').map(|_| b'\n')?, 1),
        };
        bytes.push(byte);
        rest = &after[len..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}
