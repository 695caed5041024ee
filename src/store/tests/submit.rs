//! Storing tasks and finding them again.

use super::*;
use crate::task::TaskStatus;

#[tokio::test]
async fn a_stored_task_reads_back_as_it_was_also_after_a_restart() {
    for fresh in each_database().await {
        let task = with_webhook(new_task(vec![spec(u64::MAX), spec(0)], someone(), Timestamp::now()));
        let inserted = insert_one(&fresh.store, task.clone()).await;
        assert_eq!(inserted.images, task.images);
        assert_eq!(inserted.created_at, task.created_at);
        assert_eq!(inserted.status, TaskStatus::Queued);
        assert_eq!(stored(&fresh.store, &task.id).await, inserted);
        let fresh = fresh.reopened().await;
        assert_eq!(stored(&fresh.store, &task.id).await, inserted);
        assert_eq!(fresh.store.unfinished().await.unwrap(), [inserted]);
    }
}

#[tokio::test]
async fn an_unknown_task_is_none() {
    for fresh in each_database().await {
        assert_eq!(fresh.store.task(&TaskId::new(TaskKind::Images)).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_repeated_request_under_its_idempotency_key_is_the_same_task() {
    for fresh in each_database().await {
        let first = new_task(vec![spec(1)], someone(), at(0));
        fresh.store.insert(vec![(first.clone(), idempotency("key", "request"))]).await.unwrap();
        let again = new_task(vec![spec(1)], someone(), at(1));
        let inserted = fresh.store.insert(vec![(again, idempotency("key", "request"))]).await.unwrap();
        assert!(matches!(&inserted[..], [Inserted::Existing(task)] if task.id == first.id));
        assert_eq!(fresh.store.count_unfinished(None).await.unwrap(), 1);
        let known = |owner, key| fresh.store.has_idempotency_key(owner, key);
        assert!(known(&first.owner, "key").await.unwrap());
        assert!(!known(&first.owner, "other").await.unwrap());
        assert!(!known(&Owner::Anyone, "key").await.unwrap());
    }
}

#[tokio::test]
async fn another_request_under_a_used_key_is_refused_and_nothing_of_its_submission_is_stored() {
    for fresh in each_database().await {
        let task = || new_task(vec![spec(1)], someone(), at(0));
        fresh.store.insert(vec![(task(), idempotency("key", "request"))]).await.unwrap();
        let submission = vec![(task(), None), (task(), idempotency("key", "another"))];
        assert_eq!(
            fresh.store.insert(submission).await,
            Err(StoreError::IdempotencyConflict { key: "key".into() })
        );
        assert_eq!(fresh.store.count_unfinished(None).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn an_idempotency_key_is_its_owners_alone_and_may_be_any_text() {
    for fresh in each_database().await {
        let key = "k\u{0}é".repeat(5000);
        for owner in [Owner::Anyone, someone()] {
            let task = new_task(vec![spec(1)], owner, at(0));
            let inserted = fresh.store.insert(vec![(task, idempotency(&key, "request"))]).await.unwrap();
            assert!(matches!(inserted[..], [Inserted::New(_)]));
        }
    }
}

#[tokio::test]
async fn pages_show_an_owners_tasks_newest_first_each_once() {
    for fresh in each_database().await {
        let mut expected = Vec::new();
        for second in 0..7 {
            // Several share their moment.
            expected.push(insert_one(&fresh.store, new_task(vec![spec(1)], someone(), at(second / 3))).await);
            insert_one(&fresh.store, new_task(vec![spec(1)], Owner::Anyone, at(second))).await;
        }
        expected.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        let mut seen = Vec::new();
        while let page = fresh.store.list(&someone(), None, seen.last(), 3).await.unwrap()
            && !page.is_empty()
        {
            seen.extend(page.into_iter().map(|task| task.id));
        }
        let expected: Vec<TaskId> = expected.into_iter().map(|task| task.id).collect();
        assert_eq!(seen, expected);
    }
}

#[tokio::test]
async fn a_page_can_be_of_one_status_and_starts_behind_no_one_elses_task() {
    for fresh in each_database().await {
        let waiting = insert_one(&fresh.store, new_task(vec![spec(1)], someone(), at(0))).await;
        let done = completed(&fresh.store, new_task(vec![spec(1)], someone(), at(1)), 10, at(2)).await;
        let foreign = insert_one(&fresh.store, new_task(vec![spec(1)], Owner::Anyone, at(3))).await;
        let of = async |status| fresh.store.list(&someone(), Some(status), None, 10).await.unwrap();
        assert_eq!(of(TaskStatus::Queued).await, [waiting]);
        assert_eq!(of(TaskStatus::Completed).await, [done]);
        assert_eq!(of(TaskStatus::Failed).await, []);
        assert_eq!(fresh.store.list(&someone(), None, Some(&foreign.id), 10).await.unwrap(), []);
    }
}

#[tokio::test]
async fn unfinished_tasks_come_oldest_first_and_are_counted_by_owner() {
    for fresh in each_database().await {
        let late = insert_one(&fresh.store, new_task(vec![spec(1)], someone(), at(9))).await;
        let early = insert_one(&fresh.store, new_task(vec![spec(1)], Owner::Anyone, at(1))).await;
        completed(&fresh.store, new_task(vec![spec(1)], someone(), at(0)), 10, at(2)).await;
        assert_eq!(fresh.store.unfinished().await.unwrap(), [early, late]);
        assert_eq!(fresh.store.count_unfinished(None).await.unwrap(), 2);
        assert_eq!(fresh.store.count_unfinished(Some(&someone())).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn many_submissions_at_once_are_all_stored() {
    for fresh in each_database().await {
        let submissions = (0..300).map(|n| {
            let store = fresh.store.clone();
            tokio::spawn(async move {
                let tasks = (0..2).map(|_| (new_task(vec![spec(n)], someone(), at(0)), None)).collect();
                store.insert(tasks).await
            })
        });
        for submission in submissions.collect::<Vec<_>>() {
            assert_eq!(submission.await.unwrap().unwrap().len(), 2);
        }
        assert_eq!(fresh.store.count_unfinished(None).await.unwrap(), 600);
    }
}

#[tokio::test]
async fn one_refused_submission_among_many_at_once_takes_none_of_the_others_with_it() {
    for fresh in each_database().await {
        let first = new_task(vec![spec(1)], someone(), at(0));
        fresh.store.insert(vec![(first, idempotency("key", "request"))]).await.unwrap();
        let submissions = (0..60).map(|n| {
            let store = fresh.store.clone();
            let idempotency = if n % 2 == 0 { None } else { idempotency("key", "another") };
            let task = new_task(vec![spec(n)], someone(), at(1));
            tokio::spawn(async move { store.insert(vec![(task, idempotency)]).await })
        });
        let mut refused = 0;
        for submission in submissions.collect::<Vec<_>>() {
            refused += usize::from(submission.await.unwrap().is_err());
        }
        assert_eq!(refused, 30);
        assert_eq!(fresh.store.count_unfinished(None).await.unwrap(), 31);
    }
}

#[tokio::test]
async fn a_task_whose_pictures_are_all_there_is_completed_at_once_and_owes_its_webhook() {
    for fresh in each_database().await {
        let source = completed(&fresh.store, new_task(vec![spec(1)], someone(), at(0)), 10, at(1)).await;
        let picture = DrawnImage { cached: true, ..source.drawn[0].clone() };
        let mut task = with_webhook(new_task(vec![spec(1)], someone(), at(2)));
        task.drawn = vec![picture.clone()];
        let inserted = insert_one(&fresh.store, task).await;
        assert_eq!(inserted.status, TaskStatus::Completed);
        assert_eq!(inserted.finished_at, Some(at(2)));
        assert_eq!(inserted.drawn, [picture]);
        assert_eq!(stored(&fresh.store, &inserted.id).await, inserted);
        let owed = fresh.store.due_deliveries(at(2), 10).await.unwrap();
        assert!(matches!(&owed[..], [owed] if owed.task == inserted.id && owed.event == "task.completed"));
    }
}

#[tokio::test]
async fn a_picture_that_is_gone_or_someone_elses_is_left_to_be_drawn() {
    for fresh in each_database().await {
        let source = completed(&fresh.store, new_task(vec![spec(1)], someone(), at(0)), 10, at(1)).await;
        let gone = drawn(&TaskId::new(TaskKind::Images), 0, 10);
        for (owner, picture) in [(someone(), gone), (Owner::Anyone, source.drawn[0].clone())] {
            let mut task = new_task(vec![spec(1)], owner, at(2));
            task.drawn = vec![picture];
            let inserted = insert_one(&fresh.store, task).await;
            assert_eq!(inserted.drawn, []);
            assert_eq!(inserted.status, TaskStatus::Queued);
            assert_eq!(stored(&fresh.store, &inserted.id).await, inserted);
        }
    }
}

#[tokio::test]
async fn a_task_cannot_start_from_an_upload_that_is_not_kept() {
    for fresh in each_database().await {
        let blob = BlobId::of(b"picture");
        let task = || new_task(vec![from_blob(&blob)], someone(), at(0));
        assert_eq!(
            fresh.store.insert(vec![(task(), None)]).await,
            Err(StoreError::UploadGone { blob: blob.to_string() })
        );
        assert_eq!(fresh.store.count_unfinished(None).await.unwrap(), 0);
        fresh.store.note_blob(&blob, 7, at(0)).await.unwrap();
        insert_one(&fresh.store, task()).await;
    }
}

#[tokio::test]
async fn what_could_not_be_read_back_is_not_stored() {
    for fresh in each_database().await {
        let broken = ImageSpec { cfg: f64::NAN, ..spec(1) };
        for images in [vec![broken], vec![]] {
            let refused = fresh.store.insert(vec![(new_task(images, someone(), at(0)), None)]).await;
            assert!(matches!(refused, Err(StoreError::Defect { .. })), "{refused:?}");
        }
        assert_eq!(fresh.store.unfinished().await.unwrap(), []);
    }
}
