//! A headless Chromium that loads a page and says what it made of it.

use std::path::Path;
use std::process::Command;

/// Debian's chromium.
const CHROMIUM: &str = "/usr/bin/chromium";

/// The page's DOM as Chromium built it, serialised; `None`, said aloud, where there is no chromium.
pub fn dump_dom(url: &str, profile: &Path) -> Option<String> {
    if !Path::new(CHROMIUM).is_file() {
        eprintln!("SKIPPED the look at {url}: {CHROMIUM} is not there");
        return None;
    }
    let mut chromium = Command::new(CHROMIUM);
    chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
    chromium.arg(format!("--user-data-dir={}", profile.display())).args(["--dump-dom", url]);
    let output = chromium.output().unwrap_or_else(|error| panic!("cannot run {CHROMIUM}: {error}"));
    assert!(output.status.success(), "chromium: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}
