//! The Unix socket between the gate and tiny_http: nobody else can open it.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::GateError;

/// Listens on a socket in a folder of its own below `state_dir`, both for this user only. One left
/// behind by an earlier master is replaced: whoever calls this holds the state dir's lock.
pub fn listen_privately(state_dir: &Path) -> Result<(UnixListener, PathBuf), GateError> {
    let folder = state_dir.join("gate");
    let path = folder.join("http.sock");
    match bind(&folder, &path) {
        Ok(listener) => Ok((listener, path)),
        Err(cause) => Err(GateError::PrivateSocket { path, cause }),
    }
}

fn bind(folder: &Path, path: &Path) -> io::Result<UnixListener> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // The folder first: between bind and chmod the socket has the umask's mode, but cannot be reached.
    std::fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}
