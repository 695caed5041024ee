//! Opening the database, and what may stand in the way.

use sqlx::any::AnyConnectOptions;

use super::*;

async fn opened(config: &StorageConfig) -> Result<TaskStore, StoreError> {
    TaskStore::open(config).await
}

#[tokio::test]
async fn two_servers_in_one_data_folder_are_refused() {
    let fresh = sqlite().await;
    let refused = opened(&fresh.config).await.unwrap_err();
    assert!(matches!(refused, StoreError::InUse { .. }), "{refused}");
    assert!(refused.to_string().contains(&fresh.folder.path().display().to_string()));
    fresh.reopened().await;
}

#[tokio::test]
async fn two_servers_on_one_database_file_are_refused_whatever_their_folders() {
    let (shared, one, other) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = |folder: &TempDir| StorageConfig {
        database_url: Some(format!("sqlite:{}/tasks.db", shared.path().display())),
        ..in_folder(folder.path())
    };
    let _first = opened(&config(&one)).await.unwrap();
    assert!(matches!(opened(&config(&other)).await, Err(StoreError::InUse { .. })));
}

#[tokio::test]
async fn a_command_beside_the_server_makes_keys_that_the_server_knows() {
    for fresh in each_database().await {
        let beside = TaskStore::open_beside(&fresh.config).await.unwrap();
        let (key, secret) = beside.create_key("new", false, None, None, at(0)).await.unwrap();
        beside.close().await;
        assert_eq!(fresh.store.key_by_secret(&secret, at(1)).await.unwrap().unwrap().id, key.id);
    }
}

#[tokio::test]
async fn a_command_can_come_before_the_first_server() {
    let folder = tempfile::tempdir().unwrap();
    let config = in_folder(&folder.path().join("made").join("as needed"));
    let beside = TaskStore::open_beside(&config).await.unwrap();
    beside.create_key("new", false, None, None, at(0)).await.unwrap();
    let server = opened(&config).await.unwrap();
    assert!(server.has_keys().await.unwrap());
}

#[tokio::test]
async fn writes_wait_for_another_programs_lock() {
    let fresh = sqlite().await;
    let url = format!("sqlite://{}/darkroom.db", fresh.folder.path().display());
    let mut other = url.parse::<AnyConnectOptions>().unwrap().connect().await.unwrap();
    // A busy disk may hold the store's own first writes up for longer than the five seconds of the default.
    other.execute("PRAGMA busy_timeout = 60000").await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let store = fresh.store.clone();
    let waiting = tokio::spawn(async move { store.note_blob(&BlobId::of(b""), 0, at(0)).await });
    // Reading goes on meanwhile.
    assert_eq!(fresh.store.count_unfinished(None).await.unwrap(), 0);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    other.execute("COMMIT").await.unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_damaged_database_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("darkroom.db");
    std::fs::write(&file, b"this is not a database, but long enough to be taken for one".repeat(100))
        .unwrap();
    let refused = opened(&in_folder(folder.path())).await.unwrap_err();
    assert!(matches!(refused, StoreError::Damaged { .. }), "{refused:?}");
    assert!(refused.to_string().contains(&file.display().to_string()), "{refused}");
}

#[tokio::test]
async fn a_database_cut_short_is_named() {
    let fresh = sqlite().await;
    for n in 0..50 {
        insert_one(&fresh.store, new_task(vec![spec(n)], someone(), at(0))).await;
    }
    fresh.store.close().await;
    drop(fresh.store);
    let file = fresh.folder.path().join("darkroom.db");
    let length = std::fs::metadata(&file).unwrap().len();
    std::fs::File::options().write(true).open(&file).unwrap().set_len(length / 2).unwrap();
    let outcome = match opened(&fresh.config).await {
        Ok(store) => store.unfinished().await.map(|tasks| tasks.len()),
        Err(error) => Err(error),
    };
    assert!(matches!(outcome, Err(StoreError::Damaged { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_path_may_hold_anything_that_a_url_could_not() {
    let folder = tempfile::tempdir().unwrap();
    let config = in_folder(&folder.path().join("a #strange? 100% [näme] & more"));
    let store = opened(&config).await.unwrap();
    insert_one(&store, new_task(vec![spec(1)], someone(), at(0))).await;
    assert!(config.data_dir.join("darkroom.db").is_file());
}

#[tokio::test]
async fn what_is_no_database_url_is_refused_by_the_settings_name() {
    let folder = tempfile::tempdir().unwrap();
    for url in ["mysql://host/db", "", "sqlite:", "sqlite::memory:", "sqlite:x?mode=memory", "postgres://[:"]
    {
        let config = StorageConfig { database_url: Some(url.into()), ..in_folder(folder.path()) };
        let refused = opened(&config).await.unwrap_err();
        assert!(refused.to_string().starts_with("storage.database_url"), "{url}: {refused}");
    }
}

#[tokio::test]
async fn a_postgres_that_is_not_there_is_unavailable_and_no_password_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let config = StorageConfig {
        database_url: Some("postgres://someone:s3cret@127.0.0.1:1/db".into()),
        ..in_folder(folder.path())
    };
    let refused = opened(&config).await.unwrap_err();
    assert!(refused.is_unavailable(), "{refused:?}");
    assert!(!refused.to_string().contains("s3cret"));
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    for fresh in each_database().await {
        fresh
            .store
            .write(|database| {
                Box::pin(async move {
                    database
                        .execute(
                            "INSERT INTO _sqlx_migrations (version, description, installed_on, success, checksum, \
                             execution_time) SELECT 999999, description, installed_on, success, checksum, \
                             execution_time FROM _sqlx_migrations WHERE version = 1",
                        )
                        .await?;
                    Ok(())
                })
            })
            .await
            .unwrap();
        fresh.store.close().await;
        drop(fresh.store);
        let refused = opened(&fresh.config).await.unwrap_err();
        assert!(refused.to_string().contains("newer Darkroom"), "{refused}");
    }
}

#[tokio::test]
async fn a_closed_store_says_so() {
    for fresh in each_database().await {
        fresh.store.ping().await.unwrap();
        fresh.store.close().await;
        assert!(fresh.store.ping().await.unwrap_err().is_unavailable());
        assert!(fresh.store.note_blob(&BlobId::of(b""), 0, at(0)).await.unwrap_err().is_unavailable());
    }
}

#[tokio::test]
async fn a_full_database_refuses_new_tasks_keeps_the_old_and_recovers() {
    let fresh = sqlite().await;
    let kept = insert_one(&fresh.store, new_task(vec![spec(1)], someone(), at(0))).await;
    // SQLite's own limit answers as a full disk does.
    let limit = |pages: &'static str| {
        fresh.store.write(move |database| {
            Box::pin(async move {
                database.execute(pages).await?;
                Ok(())
            })
        })
    };
    limit("PRAGMA max_page_count = 1").await.unwrap();
    let large = ImageSpec { prompt: "x".repeat(1 << 20), ..spec(1) };
    let submissions = (0..10).map(|_| {
        let (store, task) = (fresh.store.clone(), new_task(vec![large.clone()], someone(), at(1)));
        tokio::spawn(async move { store.insert(vec![(task, None)]).await })
    });
    for submission in submissions.collect::<Vec<_>>() {
        let refused = submission.await.unwrap().unwrap_err();
        assert!(refused.is_unavailable(), "{refused:?}");
    }
    assert_eq!(fresh.store.unfinished().await.unwrap(), [kept]);
    // The connection that failed was given up, and its limit with it.
    insert_one(&fresh.store, new_task(vec![large], someone(), at(2))).await;
}
