//! A command line as the value of `lxc.execute.cmd`.
//!
//! lxc-execute splits the value at blanks; a word may stand in one kind of quotes, and nothing escapes them.
//! Most commands fit into one such word. One with both kinds of quotes, or a control character, is handed to the same
//! shell through printf(1)'s octal escapes, which need neither.
//!
//! lxc-execute 5.0.2 crashes on a value of more than about 4 KiB (no matter how it is spelled), though it takes the
//! same command as arguments; berth hands the text to execve(2) as it is and has no such bound.

use std::fmt::Write as _;

pub(super) const SHELL: &str = "/bin/sh -c ";
/// The dot keeps command substitution from eating trailing newlines.
pub(super) const ENCODED_HEAD: &str = "c=$(printf %b. \"";
pub(super) const ENCODED_TAIL: &str = "\"); exec /bin/sh -c \"${c%.}\"";

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
