//! Names of files and folders as prompts and requests give them. A name that passes stays below the folder that it is
//! joined to, on every system: what one of them reads as a way out is refused on all.

/// Most bytes of a name with its folders.
const MOST_BYTES: usize = 1024;
/// Most bytes of one part of it: what file systems hold.
const MOST_PART_BYTES: usize = 255;
/// Most folders that a name may lead through.
const MOST_PARTS: usize = 32;
/// What files are called while they are written.
pub(super) const UNFINISHED: &str = ".darkroom-";

/// Why a name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Nothing is named.
    #[error("the name is empty")]
    Empty,
    /// Longer than file systems hold.
    #[error(
        "the name is too long: at most {MOST_PART_BYTES} bytes for each folder and file, {MOST_BYTES} in all"
    )]
    TooLong,
    /// `..`, an absolute path, a drive letter.
    #[error("the name leads outside its folder: give a name relative to it, without '..'")]
    Outside,
    /// A backslash, NUL or another control character.
    #[error("the name has a character that is not allowed (a backslash, a control character)")]
    Character,
    /// A name that Windows reads as something else: a device, or one that ends in a dot or a space.
    #[error("the name is reserved, or ends in a dot or a space")]
    Reserved,
}

/// The parts of a name of a file, its folders first. `.` and doubled slashes are left out.
pub(super) fn file_parts(name: &str) -> Result<Vec<&str>, NameError> {
    let parts = folder_parts(name)?;
    if parts.is_empty() || name.ends_with('/') { Err(NameError::Empty) } else { Ok(parts) }
}

/// The parts of a name of a folder; none for the folder itself.
pub(super) fn folder_parts(name: &str) -> Result<Vec<&str>, NameError> {
    if name.len() > MOST_BYTES {
        return Err(NameError::TooLong);
    }
    let bytes = name.as_bytes();
    if name.starts_with(['/', '\\'])
        || (bytes.len() >= 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':')
    {
        return Err(NameError::Outside);
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.len() > MOST_PARTS {
        return Err(NameError::TooLong);
    }
    for part in &parts {
        check_part(part)?;
    }
    Ok(parts)
}

/// Whether `part` may be the name of a file or of a folder.
pub(super) fn check_part(part: &str) -> Result<(), NameError> {
    const ONLY_ELSEWHERE: &[char] = &['<', '>', ':', '"', '|', '?', '*'];
    if part.is_empty() || part == "." {
        return Err(NameError::Empty);
    }
    if part == ".." {
        return Err(NameError::Outside);
    }
    if part.len() > MOST_PART_BYTES {
        return Err(NameError::TooLong);
    }
    let bad =
        |c: char| c.is_control() || matches!(c, '/' | '\\') || (cfg!(windows) && ONLY_ELSEWHERE.contains(&c));
    if part.contains(bad) {
        return Err(NameError::Character);
    }
    if part.ends_with(['.', ' ']) || is_device(part) || part.starts_with(UNFINISHED) {
        return Err(NameError::Reserved);
    }
    Ok(())
}

/// Names that Windows takes for devices, with any extension and in any case.
fn is_device(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or(part).trim_end().to_ascii_uppercase();
    if matches!(&*stem, "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$") {
        return true;
    }
    let number = stem.strip_prefix("COM").or_else(|| stem.strip_prefix("LPT"));
    let mut digits = number.unwrap_or_default().chars();
    matches!((digits.next(), digits.next()), (Some('0'..='9' | '¹' | '²' | '³'), None))
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_names_pass_with_their_folders() {
        assert_eq!(file_parts("test..png"), Ok(vec!["test..png"]));
        assert_eq!(file_parts("a/./b//c d.png"), Ok(vec!["a", "b", "c d.png"]));
        assert_eq!(file_parts("少女 😀.png"), Ok(vec!["少女 😀.png"]));
        assert_eq!(file_parts(".hidden"), Ok(vec![".hidden"]));
        assert_eq!(file_parts("console.png"), Ok(vec!["console.png"]));
        assert_eq!(folder_parts("").unwrap(), Vec::<&str>::new());
        assert_eq!(folder_parts("a/b/"), Ok(vec!["a", "b"]));
    }

    #[test]
    fn every_trick_is_refused_by_its_reason() {
        for name in
            ["../x", "a/../../x", "..", "a/..", "/etc/passwd", "\\\\host\\share", "C:\\x", "c:x", "\\x"]
        {
            assert_eq!(file_parts(name), Err(NameError::Outside), "{name}");
        }
        for name in ["a\\..\\b", "a\0.png", "a\nb", "a\u{7f}", "x\u{85}y"] {
            assert_eq!(file_parts(name), Err(NameError::Character), "{name:?}");
        }
        for name in
            ["NUL", "con.png", "a/Com1.txt", "LPT9", "aux .x", "x.", "x ", "a./b", "CONIN$", ".darkroom-x"]
        {
            assert_eq!(file_parts(name), Err(NameError::Reserved), "{name}");
        }
        for name in ["", ".", "./", "a/"] {
            assert_eq!(file_parts(name), Err(NameError::Empty), "{name}");
        }
        let long = "x".repeat(256);
        let deep = "a/".repeat(33) + "x";
        for name in [&*long, &*deep, &"ab/".repeat(400)] {
            assert_eq!(file_parts(name), Err(NameError::TooLong), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_name_that_passes_leads_out_of_its_folder(
            name in prop_oneof![
                any::<String>(),
                "(\\.{0,3}|/|\\\\|[a-cA-C]:?|NUL|con|\\.png|\0| ){0,12}",
            ],
        ) {
            for parts in [file_parts(&name), folder_parts(&name)].into_iter().flatten() {
                let path: std::path::PathBuf = parts.iter().collect();
                let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
                prop_assert!(plain, "{path:?}");
                prop_assert_eq!(path.components().count(), parts.len());
                prop_assert!(Path::new("root").join(&path).starts_with("root"));
                prop_assert!(!path.to_string_lossy().contains(['\\', '\0']));
            }
        }
    }
}
