//! Files that are there whole or not at all.

use crate::failure::Failure;
use anyhow::{Context, Result};
use std::path::Path;

/// Writes a file so that it is there whole or not at all.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let refuse = |error: std::io::Error| {
        Failure::user(
            format!("file {}", path.display()),
            error,
            "choose a folder that exists, is writable and has room",
        )
    };
    let mut temporary = temporary_beside(path).map_err(refuse)?;
    temporary.as_file_mut().write_all(bytes).map_err(refuse)?;
    temporary.as_file().sync_all().map_err(refuse)?;
    temporary
        .persist(path)
        .map_err(|error| refuse(error.error))?;
    let folder = folder_of(path);
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("syncing {}", folder.display()))
}

/// The folder that holds a file.
pub fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// A temporary file in the folder of `path`, to be renamed to it when it is whole. It is left behind only by a program that is
/// killed meanwhile; its name says what it was.
pub fn temporary_beside(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any other new file: the user's mask decides, not the caution of temporary files.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder
        .tempfile_in(folder_of(path))
        .map_err(without_temporary_name)
}

/// The system's error alone: the temporary file's name, which the crate appends, tells a reader nothing.
fn without_temporary_name(error: std::io::Error) -> std::io::Error {
    let text = error.to_string();
    match text.split_once(" at path ") {
        Some((reason, _)) => std::io::Error::new(error.kind(), reason),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Artifacts and checkpoints are there to be given away: they have the permissions of any new file.
    #[cfg(unix)]
    #[test]
    fn files_are_as_readable_as_others() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let [plain, atomic] = ["plain", "atomic"].map(|name| folder.path().join(name));
        std::fs::write(&plain, b"x").unwrap();
        write_atomically(&atomic, b"x").unwrap();
        let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode();
        assert_eq!(mode(&atomic), mode(&plain));
        assert_eq!(folder.path().read_dir().unwrap().count(), 2);
    }

    #[test]
    fn atomic_write_leaves_nothing_behind_on_failure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.birdie");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let missing = folder.path().join("missing/a.birdie");
        let error = write_atomically(&missing, b"x").unwrap_err().to_string();
        assert!(
            error.contains("missing/a.birdie: No such file or directory (os error 2)")
                && !error.contains(".part"),
            "{error}"
        );
    }
}
