//! The kernel's files as text: those of proc(5), and tables of mounts.

use std::io;
use std::path::Path;

/// A file's text. Other people's names and paths stand in it, of any bytes: what is not UTF-8 is replaced, so that nobody's
/// mount point or program keeps us from reading the rest.
pub fn read(path: impl AsRef<Path>) -> io::Result<String> {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// A word of a table of mounts as it was meant: what would end it there stands in octal (getmntent(3)).
pub fn unescape(word: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(word.to_owned(), |text, (code, char)| text.replace(code, char))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_utf_8_hides_nothing_beside_it() {
        let file = std::env::temp_dir().join(format!("berth-test-proc-text-{}", std::process::id()));
        std::fs::write(&file, b"/mnt/caf\xe9 rw\n/mnt/share rw\n").unwrap();
        let text = read(&file);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(text.unwrap(), "/mnt/caf\u{fffd} rw\n/mnt/share rw\n");
        assert_eq!(read(&file).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn words_of_a_table_of_mounts_are_read_as_they_were_meant() {
        assert_eq!(unescape("/mnt/a\\040b\\011c\\134040"), "/mnt/a b\tc\\040");
    }
}
