//! API keys from the command line: made, listed and revoked in a data folder, also while a server has it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use darkroom::config::StorageConfig;
use darkroom::store::TaskStore;
use jiff::Timestamp;
use program::{Run, darkroom};
use tempfile::TempDir;

fn keys(folder: &TempDir, args: &[&str]) -> Run {
    let folder = ["--data-dir", folder.path().to_str().unwrap()];
    darkroom(["keys"].iter().chain(args).chain(&folder))
}

#[test]
fn a_key_is_made_once_listed_and_revoked() {
    let folder = TempDir::new().unwrap();
    let made = keys(&folder, &["create", "gateway", "--admin", "--requests-per-minute", "60"]).worked();
    let secret = made.stdout.trim_end();
    assert!(secret.starts_with("dk_") && !secret.contains(char::is_whitespace), "{secret}");
    assert!(made.stderr.contains("not shown again"), "{}", made.stderr);
    keys(&folder, &["create", "gateway"]).refused(2, &["gateway"]);

    let listed = keys(&folder, &["list"]).worked().stdout;
    assert!(listed.contains("gateway") && listed.contains("60") && !listed.contains(secret), "{listed}");
    assert!(keys(&folder, &["revoke", "gateway"]).worked().stdout.contains("gateway"));
    keys(&folder, &["revoke", "gateway"]).refused(1, &["gateway", "keys list"]);
}

#[test]
fn keys_are_made_and_revoked_while_a_server_has_the_data_folder() {
    let folder = TempDir::new().unwrap();
    let config = StorageConfig { data_dir: folder.path().to_owned(), ..StorageConfig::default() };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(TaskStore::open(&config)).unwrap();
    let known =
        |secret: &str| runtime.block_on(server.key_by_secret(secret, Timestamp::now())).unwrap().is_some();
    let secret = keys(&folder, &["create", "one"]).worked().stdout.trim_end().to_owned();
    assert!(known(&secret));
    keys(&folder, &["revoke", "one"]).worked();
    assert!(!known(&secret));
}

#[test]
fn what_cannot_be_is_refused() {
    let folder = TempDir::new().unwrap();
    keys(&folder, &["create", ""]).refused(2, &["1 to 100 characters"]);
    darkroom(["keys", "list", "--database-url", "mysql://a/b"])
        .refused(2, &["--database-url", "postgres://"]);
    darkroom(["keys", "list", "--data-dir", "/dev/null/x"]).refused(1, &["--data-dir"]);
}
