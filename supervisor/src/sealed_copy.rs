//! Running from a sealed, anonymous copy of this program.
//!
//! A child between clone and exec has our executable as its `/proc/self/exe`. Were that the file on disk, a container
//! that got hold of it could overwrite the supervisor (CVE-2019-5736); a sealed memfd cannot be written.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::sys;

/// The copy's name; the kernel shows it as `/memfd:berth-supervisor (deleted)`.
const NAME: &str = "berth-supervisor";

/// Becomes the copy, with the same arguments and environment. Comes back at once in the copy itself, and with an error
/// where there is none to be had.
pub fn run() -> io::Result<()> {
    let this = std::fs::read_link("/proc/self/exe")?;
    if this.as_os_str().as_bytes().starts_with(format!("/memfd:{NAME}").as_bytes()) {
        return Ok(());
    }
    let copy = make()?;
    let arguments = c_strings(std::env::args_os().map(|argument| argument.as_bytes().to_vec()))?;
    let environment =
        c_strings(std::env::vars_os().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()))?;
    Err(sys::execve_fd(copy.as_fd(), &arguments, &environment))
}

fn make() -> io::Result<File> {
    let copy = rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut copy = File::from(copy);
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    copy.flush()?;
    copy.rewind()?;
    rustix::fs::fcntl_add_seals(&copy, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(copy)
}

fn c_strings(strings: impl Iterator<Item = Vec<u8>>) -> io::Result<Vec<CString>> {
    strings.map(|string| CString::new(string).map_err(io::Error::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_this_program_and_cannot_be_written() {
        let mut copy = make().unwrap();
        assert_eq!(copy.metadata().unwrap().len(), std::fs::metadata("/proc/self/exe").unwrap().len());
        assert_eq!(copy.write_all(b"x").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(copy.set_len(0).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
