//! What is kept, and what goes.

use super::*;
use crate::store::{
    CleanedUp, ImageStore, Retention, UNNAMED_BLOB_SECONDS, clean_up, keep_blob, remove_orphans,
};
use crate::task::{ImageId, TaskStatus};

const HOUR: Retention = Retention { keep_seconds: 3600, keep_bytes: 0 };

async fn images(fresh: &Fresh) -> ImageStore {
    ImageStore::open(&fresh.config).await.unwrap()
}

/// Stores a task's files and rows.
async fn with_files(fresh: &Fresh, files: &ImageStore, task: NewTask, bytes: u64, done: Timestamp) -> Task {
    for index in 0..task.images.len() {
        files.put_image(&task.id.image(index), ImageFormat::Png, vec![0; 8].into()).await.unwrap();
    }
    completed(&fresh.store, task, bytes, done).await
}

async fn has_file(files: &ImageStore, id: &ImageId) -> bool {
    files.get_image(id, ImageFormat::Png).await.is_ok()
}

#[tokio::test]
async fn without_limits_everything_stays() {
    for fresh in each_database().await {
        let files = images(&fresh).await;
        let task = with_files(&fresh, &files, new_task(vec![spec(1)], someone(), at(0)), 10, at(1)).await;
        let cleaned = clean_up(&fresh.store, &files, at(1_000_000_000), &Retention::default()).await.unwrap();
        assert_eq!(cleaned, CleanedUp::default());
        assert_eq!(stored(&fresh.store, &task.id).await, task);
        assert!(has_file(&files, &task.drawn[0].id).await);
    }
}

#[tokio::test]
async fn old_tasks_go_with_files_rows_and_idempotency_keys_and_young_ones_stay() {
    for fresh in each_database().await {
        let files = images(&fresh).await;
        let old = new_task(vec![spec(1), spec(2)], someone(), at(0));
        fresh.store.insert(vec![(old.clone(), idempotency("key", "request"))]).await.unwrap();
        for index in 0..2 {
            let picture = drawn(&old.id, index, 10);
            files.put_image(&picture.id, ImageFormat::Png, vec![0; 8].into()).await.unwrap();
            fresh.store.finish_image(&old.id, &picture, &spec(1), &usage(), at(10)).await.unwrap();
        }
        let young = with_files(&fresh, &files, new_task(vec![spec(1)], someone(), at(0)), 10, at(11)).await;
        let waiting = insert_one(&fresh.store, new_task(vec![spec(1)], someone(), at(0))).await;
        let cleaned = clean_up(&fresh.store, &files, at(3611), &HOUR).await.unwrap();
        assert_eq!((cleaned.swept.tasks, cleaned.images), (1, 2));
        assert_eq!(fresh.store.task(&old.id).await.unwrap(), None);
        assert!(!has_file(&files, &old.id.image(0)).await);
        assert_eq!(fresh.store.image(&old.id.image(0)).await.unwrap(), None);
        assert_eq!(stored(&fresh.store, &young.id).await, young);
        assert!(has_file(&files, &young.drawn[0].id).await);
        assert_eq!(stored(&fresh.store, &waiting.id).await, waiting);
        let again = new_task(vec![spec(1)], someone(), at(3700));
        let again = fresh.store.insert(vec![(again, idempotency("key", "another"))]).await.unwrap();
        assert!(matches!(again[..], [Inserted::New(_)]));
    }
}

#[tokio::test]
async fn a_picture_that_a_kept_task_names_stays_when_its_first_task_goes() {
    for fresh in each_database().await {
        let files = images(&fresh).await;
        let old = new_task(vec![in_bank("smile", "fox")], someone(), at(0));
        let old = with_files(&fresh, &files, old, 10, at(1)).await;
        let mut hit = new_task(vec![in_bank("smile", "fox")], someone(), at(3000));
        hit.drawn = vec![old.drawn[0].clone()];
        let hit = insert_one(&fresh.store, hit).await;
        fresh.store.bank_invalidate(&someone(), None).await.unwrap();
        let cleaned = clean_up(&fresh.store, &files, at(5000), &HOUR).await.unwrap();
        assert_eq!((cleaned.swept.tasks, cleaned.images), (1, 0));
        assert!(has_file(&files, &hit.drawn[0].id).await);
        assert_eq!(stored(&fresh.store, &hit.id).await.drawn, hit.drawn);
        assert!(fresh.store.image(&hit.drawn[0].id).await.unwrap().is_some());
        let cleaned = clean_up(&fresh.store, &files, at(9000), &HOUR).await.unwrap();
        assert_eq!((cleaned.swept.tasks, cleaned.images), (1, 1));
        assert!(!has_file(&files, &hit.drawn[0].id).await);
    }
}

#[tokio::test]
async fn a_bank_hit_within_the_limit_keeps_its_picture_without_any_task() {
    for fresh in each_database().await {
        let files = images(&fresh).await;
        let task = new_task(vec![in_bank("smile", "fox")], someone(), at(0));
        let task = with_files(&fresh, &files, task, 10, at(1)).await;
        let lookup = async |seconds| {
            fresh.store.bank_lookup(&["smile".to_owned()], at(seconds)).await.unwrap().remove("smile")
        };
        assert!(lookup(3000).await.is_some());
        // Too soon after to be written down; must count all the same.
        assert!(lookup(3050).await.is_some());
        let cleaned = clean_up(&fresh.store, &files, at(3050 + 3599), &HOUR).await.unwrap();
        assert_eq!((cleaned.swept.tasks, cleaned.swept.bank_entries, cleaned.images), (1, 0, 0));
        assert!(has_file(&files, &task.drawn[0].id).await);
        assert!(fresh.store.image(&task.drawn[0].id).await.unwrap().is_some());
        let cleaned = clean_up(&fresh.store, &files, at(9000), &HOUR).await.unwrap();
        assert_eq!((cleaned.swept.bank_entries, cleaned.images), (1, 1));
        assert_eq!(lookup(9001).await, None);
        assert!(!has_file(&files, &task.drawn[0].id).await);
    }
}

#[tokio::test]
async fn above_the_bytes_the_oldest_tasks_go_until_the_rest_fits() {
    for fresh in each_database().await {
        let files = images(&fresh).await;
        let mut tasks = Vec::new();
        for second in 1..=5 {
            let task = new_task(vec![spec(1)], someone(), at(0));
            tasks.push(with_files(&fresh, &files, task, 100, at(second)).await);
        }
        let empty = insert_one(&fresh.store, new_task(vec![spec(1)], someone(), at(0))).await;
        fresh.store.finish(&empty.id, TaskStatus::Cancelled, None, at(0)).await.unwrap();
        assert_eq!(fresh.store.picture_bytes().await.unwrap(), 500);
        let limits = Retention { keep_seconds: 0, keep_bytes: 350 };
        let cleaned = clean_up(&fresh.store, &files, at(10), &limits).await.unwrap();
        assert_eq!((cleaned.swept.tasks, cleaned.swept.bytes, cleaned.images), (2, 200, 2));
        for (index, task) in tasks.iter().enumerate() {
            assert_eq!(has_file(&files, &task.drawn[0].id).await, index >= 2);
            assert_eq!(fresh.store.task(&task.id).await.unwrap().is_some(), index >= 2);
        }
        assert!(fresh.store.task(&empty.id).await.unwrap().is_some(), "its going would free nothing");
    }
}

#[tokio::test]
async fn unfinished_tasks_and_their_pictures_stay_whatever_the_limits() {
    for fresh in each_database().await {
        let files = images(&fresh).await;
        let task = insert_one(&fresh.store, new_task(vec![spec(1), spec(2)], someone(), at(0))).await;
        let picture = drawn(&task.id, 0, 1000);
        files.put_image(&picture.id, ImageFormat::Png, vec![0; 8].into()).await.unwrap();
        fresh.store.finish_image(&task.id, &picture, &task.images[0], &usage(), at(1)).await.unwrap();
        let limits = Retention { keep_seconds: 1, keep_bytes: 1 };
        let cleaned = clean_up(&fresh.store, &files, at(100_000), &limits).await.unwrap();
        assert_eq!(cleaned, CleanedUp::default());
        assert!(has_file(&files, &picture.id).await);
    }
}

#[tokio::test]
async fn a_task_stays_until_its_webhook_is_sent_or_given_up() {
    for fresh in each_database().await {
        let files = images(&fresh).await;
        let task = with_webhook(new_task(vec![spec(1)], someone(), at(0)));
        let task = with_files(&fresh, &files, task, 10, at(1)).await;
        let sweep = async || clean_up(&fresh.store, &files, at(100_000), &HOUR).await.unwrap().swept.tasks;
        assert_eq!(sweep().await, 0);
        let owed = fresh.store.due_deliveries(at(9), 1).await.unwrap();
        assert_eq!(owed[0].task, task.id);
        fresh.store.delivery_given_up(&owed[0].id).await.unwrap();
        assert_eq!(sweep().await, 1);
    }
}

#[tokio::test]
async fn a_clean_up_that_a_crash_ended_is_finished_by_the_next_one() {
    for fresh in each_database().await {
        let files = images(&fresh).await;
        let task = with_files(&fresh, &files, new_task(vec![spec(1)], someone(), at(0)), 10, at(1)).await;
        // It ends after the rows are marked: the file is still there, and nobody can name it.
        fresh.store.sweep(at(100_000), &HOUR).await.unwrap();
        let fresh = fresh.reopened().await;
        assert!(has_file(&files, &task.drawn[0].id).await);
        assert_eq!(fresh.store.image(&task.drawn[0].id).await.unwrap(), None);
        // Another ends after the file is deleted and before that is forgotten.
        files.delete_image(&task.drawn[0].id, ImageFormat::Png).await.unwrap();
        let cleaned = clean_up(&fresh.store, &files, at(100_000), &Retention::default()).await.unwrap();
        assert_eq!(cleaned.images, 1);
        assert_eq!(fresh.store.doomed_images().await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_picture_given_up_cannot_be_named_by_a_task_that_comes_later() {
    for fresh in each_database().await {
        let task = new_task(vec![in_bank("smile", "fox")], someone(), at(0));
        completed(&fresh.store, task, 10, at(1)).await;
        let hit = fresh.store.bank_lookup(&["smile".to_owned()], at(2)).await.unwrap().remove("smile");
        // Both limits strike between the hit and the task that would name it.
        fresh.store.sweep(at(100_000), &HOUR).await.unwrap();
        let mut late = new_task(vec![in_bank("smile", "fox")], someone(), at(3));
        late.drawn = hit.into_iter().collect();
        assert_eq!(late.drawn.len(), 1);
        let late = insert_one(&fresh.store, late).await;
        assert_eq!((late.status, late.drawn.len()), (TaskStatus::Queued, 0));
    }
}

#[tokio::test]
async fn uploads_stay_while_tasks_name_them_and_an_hour_before() {
    for fresh in each_database().await {
        let files = images(&fresh).await;
        let keep =
            async |bytes: &'static [u8]| keep_blob(&fresh.store, &files, bytes.into(), at(0)).await.unwrap();
        let (named, unnamed) = (keep(b"named").await, keep(b"unnamed").await);
        assert_eq!(files.get_blob(&named).await.unwrap(), "named");
        let task =
            completed(&fresh.store, new_task(vec![from_blob(&named)], someone(), at(0)), 10, at(1)).await;
        let none = Retention::default();
        let cleaned = clean_up(&fresh.store, &files, at(UNNAMED_BLOB_SECONDS), &none).await.unwrap();
        assert_eq!(cleaned.blobs, 0);
        let cleaned = clean_up(&fresh.store, &files, at(UNNAMED_BLOB_SECONDS + 1), &none).await.unwrap();
        assert_eq!(cleaned.blobs, 1);
        assert!(files.get_blob(&unnamed).await.is_err());
        assert!(files.get_blob(&named).await.is_ok());
        let cleaned = clean_up(&fresh.store, &files, at(100_000), &HOUR).await.unwrap();
        assert_eq!((cleaned.swept.tasks, cleaned.blobs), (1, 1));
        assert!(files.get_blob(&named).await.is_err());
        assert_eq!(fresh.store.task(&task.id).await.unwrap(), None);
    }
}

#[tokio::test]
async fn an_upload_that_comes_again_while_it_is_cleaned_up_is_there_in_the_end() {
    for fresh in each_database().await {
        let files = images(&fresh).await;
        for round in 0..20 {
            keep_blob(&fresh.store, &files, "again".into(), at(0)).await.unwrap();
            let late = at(UNNAMED_BLOB_SECONDS + 10);
            let limits = Retention::default();
            let (cleaned, kept) = tokio::join!(
                clean_up(&fresh.store, &files, late, &limits),
                keep_blob(&fresh.store, &files, "again".into(), late),
            );
            cleaned.unwrap();
            let blob = kept.unwrap();
            assert!(files.get_blob(&blob).await.is_ok(), "round {round}");
            insert_one(&fresh.store, new_task(vec![from_blob(&blob)], someone(), at(0))).await;
            let tasks = fresh.store.unfinished().await.unwrap();
            fresh.store.finish(&tasks[0].id, TaskStatus::Cancelled, None, at(1)).await.unwrap();
            fresh.store.sweep(at(100_000), &HOUR).await.unwrap();
        }
    }
}

#[tokio::test]
async fn files_that_no_row_speaks_of_go_and_those_of_unfinished_tasks_stay() {
    for fresh in each_database().await {
        let files = images(&fresh).await;
        let named = with_files(&fresh, &files, new_task(vec![spec(1)], someone(), at(0)), 10, at(1)).await;
        let unfinished = insert_one(&fresh.store, new_task(vec![spec(1)], someone(), at(0))).await;
        let cancelled = insert_one(&fresh.store, new_task(vec![spec(1)], someone(), at(0))).await;
        fresh.store.finish(&cancelled.id, TaskStatus::Cancelled, None, at(1)).await.unwrap();
        for task in [&unfinished, &cancelled] {
            files.put_image(&task.id.image(0), ImageFormat::Png, vec![0; 8].into()).await.unwrap();
        }
        let jpeg = TaskId::new(TaskKind::Images).image(0);
        files.put_image(&jpeg, ImageFormat::Jpeg { quality: 5 }, vec![0; 8].into()).await.unwrap();
        let lost = BlobId::of(b"lost");
        files.put_blob(&lost, "lost".into()).await.unwrap();
        let noted = keep_blob(&fresh.store, &files, "noted".into(), at(0)).await.unwrap();
        assert_eq!(remove_orphans(&fresh.store, &files).await.unwrap(), 3);
        assert!(has_file(&files, &named.drawn[0].id).await);
        assert!(has_file(&files, &unfinished.id.image(0)).await);
        assert!(!has_file(&files, &cancelled.id.image(0)).await);
        assert!(files.get_image(&jpeg, ImageFormat::Jpeg { quality: 5 }).await.is_err());
        assert!(files.get_blob(&lost).await.is_err());
        assert!(files.get_blob(&noted).await.is_ok());
    }
}
