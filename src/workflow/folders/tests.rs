//! Finding, listing and making files.

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn folders() -> (TempDir, Folders) {
    let base = TempDir::new().unwrap();
    let folders = Folders::below(base.path(), None);
    folders.create().unwrap();
    (base, folders)
}

#[test]
fn an_annotation_says_which_folder_a_file_is_in() {
    let (_base, folders) = folders();
    std::fs::write(folders.input.join("a.png"), b"in").unwrap();
    std::fs::write(folders.output.join("a.png"), b"out").unwrap();
    std::fs::create_dir(folders.temp.join("sub")).unwrap();
    std::fs::write(folders.temp.join("sub/a.png"), b"temp").unwrap();
    let read = |name| folders.read_annotated(name, 100).unwrap();
    assert_eq!(read("a.png"), b"in");
    assert_eq!(read("a.png [input]"), b"in");
    assert_eq!(read("a.png [output]"), b"out");
    assert_eq!(read("sub/a.png [temp]"), b"temp");
    assert!(matches!(folders.find_annotated("b.png"), Err(FileError::Missing)));
    assert!(matches!(folders.find_annotated("sub [temp]"), Err(FileError::NotAFile)));
    assert!(matches!(folders.find_annotated("a.png/x"), Err(FileError::Missing)));
    assert!(matches!(folders.read_annotated("a.png", 1), Err(FileError::TooLarge { bytes: 2, limit: 1 })));
    assert_eq!(annotated("[temp]"), ("", Some(FileType::Temp)));
    assert_eq!(annotated("é[temp]"), ("", Some(FileType::Temp)));
}

#[cfg(unix)]
#[test]
fn a_link_may_lead_about_inside_a_folder_and_not_out_of_it() {
    let (base, folders) = folders();
    std::fs::write(base.path().join("secret"), b"secret").unwrap();
    std::fs::write(folders.input.join("real.png"), b"x").unwrap();
    let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, folders.input.join(name)).unwrap();
    link(&base.path().join("secret"), "secret.png");
    link(base.path(), "up");
    link(Path::new("real.png"), "alias.png");
    assert!(matches!(folders.find_annotated("secret.png"), Err(FileError::Outside)));
    assert!(matches!(folders.find_annotated("up/secret"), Err(FileError::Outside)));
    assert!(matches!(place_below(&folders.input, "up/new.png"), Err(FileError::Outside)));
    assert!(matches!(find_folder_below(&folders.input, "up"), Err(FileError::Outside)));
    assert!(folders.find_annotated("alias.png").is_ok());
}

#[test]
fn lists_have_files_alone_sorted_or_the_newest_first() {
    let (_base, folders) = folders();
    std::fs::create_dir(folders.input.join("folder.png")).unwrap();
    for (age, name) in ["b.png", "a.txt", "B.JPG", "c.latent", ".darkroom-1"].into_iter().enumerate() {
        let file = File::create(folders.input.join(name)).unwrap();
        file.set_modified(SystemTime::now() - std::time::Duration::from_secs(60 * age as u64)).unwrap();
    }
    assert_eq!(folders.list(FileType::Input), ["B.JPG", "a.txt", "b.png", "c.latent"]);
    assert_eq!(folders.list_newest(FileType::Input), ["b.png", "a.txt", "B.JPG", "c.latent"]);
    assert_eq!(folders.choices(&Choices::InputPictures), ["B.JPG", "b.png"]);
    assert_eq!(folders.choices(&Choices::InputLatents), ["c.latent"]);
    let models = Choices::Models { folder: "vae", also: &["pixel_space"] };
    assert_eq!(folders.choices(&models), ["pixel_space"]);
}

#[test]
fn temp_is_emptied_and_nothing_else() {
    let (_base, folders) = folders();
    std::fs::create_dir(folders.temp.join("sub")).unwrap();
    for path in [folders.temp.join("a"), folders.temp.join("sub/b"), folders.output.join("kept")] {
        std::fs::write(path, b"").unwrap();
    }
    folders.clear_temp();
    assert_eq!(std::fs::read_dir(&folders.temp).unwrap().count(), 0);
    assert_eq!(folders.list(FileType::Output), ["kept"]);
}

proptest! {
    #[test]
    fn no_name_opens_or_makes_anything_outside(
        name in prop_oneof![any::<String>(), "(\\.{1,2}|/|\\\\|secret|sub|C:| ){1,8}"],
    ) {
        let (base, folders) = folders();
        std::fs::write(base.path().join("secret"), b"secret").unwrap();
        std::fs::create_dir(folders.input.join("sub")).unwrap();
        let root = folders.input.canonicalize().unwrap();
        if let Ok(path) = folders.find(FileType::Input, &name) {
            prop_assert!(path.starts_with(&root));
        }
        if let Ok(path) = place_below(&folders.input, &name) {
            prop_assert!(path.starts_with(&root) && path != root);
        }
        if let Ok(path) = folders.subfolder(FileType::Input, &name) {
            prop_assert!(path.starts_with(&root));
        }
        prop_assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 5);
    }
}
