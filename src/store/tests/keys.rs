//! API keys.

use super::*;

#[tokio::test]
async fn a_key_is_found_by_its_secret_until_it_is_revoked() {
    for fresh in each_database().await {
        let store = &fresh.store;
        assert!(!store.has_keys().await.unwrap());
        let (key, secret) = store.create_key("gateway", true, Some(60), None, at(0)).await.unwrap();
        assert_eq!(secret.len(), 46);
        assert!(secret.starts_with("dk_"));
        let found = store.key_by_secret(&secret, at(1)).await.unwrap().unwrap();
        assert_eq!(found, key);
        assert_eq!((found.admin, found.requests_per_minute, found.max_tasks), (true, Some(60), None));
        for wrong in ["", "dk_", &secret[1..], &secret.to_uppercase(), &"dk_é".repeat(1000)] {
            assert_eq!(store.key_by_secret(wrong, at(1)).await.unwrap(), None, "{wrong}");
        }
        let revoked = store.revoke_key("gateway", at(2)).await.unwrap().unwrap();
        assert_eq!((&revoked.id, revoked.revoked_at), (&key.id, Some(at(2))));
        assert_eq!(store.key_by_secret(&secret, at(3)).await.unwrap(), None);
        assert_eq!(store.revoke_key("gateway", at(4)).await.unwrap(), None);
        assert!(store.has_keys().await.unwrap(), "revoking the last key must not let everyone in");
    }
}

#[tokio::test]
async fn a_key_is_revoked_by_id_before_another_one_of_that_name() {
    for fresh in each_database().await {
        let store = &fresh.store;
        let (meant, _) = store.create_key("one", false, None, None, at(0)).await.unwrap();
        let (other, _) = store.create_key(meant.id.as_str(), false, None, None, at(1)).await.unwrap();
        assert_eq!(store.revoke_key(meant.id.as_str(), at(2)).await.unwrap().unwrap().id, meant.id);
        let keys = store.keys().await.unwrap();
        assert_eq!(keys.iter().map(|key| &key.id).collect::<Vec<_>>(), [&meant.id, &other.id]);
        assert_eq!(keys[1].revoked_at, None);
    }
}

#[tokio::test]
async fn two_keys_have_two_names_and_two_secrets() {
    for fresh in each_database().await {
        let store = &fresh.store;
        let (_, first) = store.create_key("name", false, None, None, at(0)).await.unwrap();
        let (_, second) = store.create_key("other", false, None, None, at(0)).await.unwrap();
        assert_ne!(first, second);
        for name in ["name", "", " ", "two\nlines", "nul\u{0}", &"x".repeat(101)] {
            let refused = store.create_key(name, false, None, None, at(0)).await;
            assert!(matches!(refused, Err(StoreError::KeyName { .. })), "{name:?}");
        }
        store.revoke_key("name", at(1)).await.unwrap();
        store.create_key("name", false, None, None, at(2)).await.unwrap();
    }
}

#[tokio::test]
async fn a_keys_use_is_noted_once_a_minute() {
    for fresh in each_database().await {
        let store = &fresh.store;
        let (_, secret) = store.create_key("name", false, None, None, at(0)).await.unwrap();
        let mut last = Vec::new();
        for second in [10, 30, 69, 70, 90] {
            store.key_by_secret(&secret, at(second)).await.unwrap();
            // Behind the note in the same queue.
            store.note_blob(&BlobId::of(b""), 0, at(0)).await.unwrap();
            last.push(store.keys().await.unwrap()[0].last_used_at.unwrap());
        }
        assert_eq!(last, [at(10), at(10), at(10), at(70), at(70)]);
    }
}

#[tokio::test]
async fn a_secret_is_nowhere_in_the_database_files() {
    let fresh = sqlite().await;
    let (key, secret) = fresh.store.create_key("findable-name", false, None, None, at(0)).await.unwrap();
    fresh.store.key_by_secret(&secret, at(1)).await.unwrap();
    let mut found_name = false;
    let mut check = || {
        for file in std::fs::read_dir(fresh.folder.path()).unwrap() {
            let file = file.unwrap();
            if file.file_type().unwrap().is_file() {
                let bytes = std::fs::read(file.path()).unwrap();
                let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
                assert!(!has(&secret[3..]), "{}", file.path().display());
                found_name |= has(&key.name);
            }
        }
    };
    check();
    fresh.store.close().await;
    check();
    assert!(found_name, "the files that were searched are not the database");
}
