//! Plans on disk: finding one takes up to seconds, which only the first start on a card spends.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::graph::MOST_PLAN_BYTES;

/// The file of the plan that `key` (library, card, graph) names.
pub(crate) fn path(folder: &Path, key: &str) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    folder.join(format!("{:016x}.plan", hasher.finish()))
}

/// The plan in `file`; `None` if there is none, or it is another's, or not whole.
pub(crate) fn read(file: &Path, key: &str) -> Option<Vec<u8>> {
    let most = MOST_PLAN_BYTES + key.len() + 64;
    let mut bytes = Vec::new();
    std::fs::File::open(file).ok()?.take(most as u64 + 1).read_to_end(&mut bytes).ok()?;
    let rest = bytes.strip_prefix(key.as_bytes())?.strip_prefix(b"\0")?;
    let (sum, plan) = rest.split_at_checked(8)?;
    (sum == checksum(plan) && bytes.len() <= most).then(|| plan.to_vec())
}

/// Written beside and then renamed: other processes read whole files.
pub(crate) fn write(file: &Path, key: &str, plan: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    let unfinished = file.with_extension(format!("{}.new", std::process::id()));
    let written = std::fs::File::create(&unfinished).and_then(|mut to| {
        to.write_all(key.as_bytes())?;
        to.write_all(b"\0")?;
        to.write_all(&checksum(plan))?;
        to.write_all(plan)
    });
    written.and_then(|()| std::fs::rename(&unfinished, file)).inspect_err(|_| {
        let _ = std::fs::remove_file(&unfinished);
    })
}

/// Against half-written and damaged files; cuDNN reads what passes.
fn checksum(plan: &[u8]) -> [u8; 8] {
    let mut hasher = DefaultHasher::new();
    plan.hash(&mut hasher);
    hasher.finish().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("darkroom-plans-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_plan_is_read_back_by_its_own_key_only() {
        let folder = scratch("key");
        let file = path(&folder, "cudnn 91900 | card | conv");
        assert_eq!(read(&file, "cudnn 91900 | card | conv"), None);
        write(&file, "cudnn 91900 | card | conv", b"{\"engine\": 3}").unwrap();
        assert_eq!(read(&file, "cudnn 91900 | card | conv").as_deref(), Some(&b"{\"engine\": 3}"[..]));
        assert_eq!(read(&file, "cudnn 92100 | card | conv"), None);
        assert_ne!(path(&folder, "cudnn 92100 | card | conv"), file);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_damaged_file_is_no_plan() {
        let folder = scratch("damage");
        let file = path(&folder, "key");
        write(&file, "key", b"a plan of some length").unwrap();
        let whole = std::fs::read(&file).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&file, &whole[..cut]).unwrap();
            assert_eq!(read(&file, "key"), None, "cut at {cut}");
            let mut flipped = whole.clone();
            flipped[cut] ^= 1;
            std::fs::write(&file, &flipped).unwrap();
            assert_eq!(read(&file, "key"), None, "flipped at {cut}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
