//! A task's way to its end.

use super::*;
use crate::store::ImageStored;
use crate::task::{TaskError, TaskErrorKind, TaskStatus};

#[tokio::test]
async fn the_last_picture_completes_its_task_once() {
    for fresh in each_database().await {
        let store = &fresh.store;
        let task = insert_one(store, with_webhook(new_task(vec![spec(1), spec(2)], someone(), at(0)))).await;
        assert!(store.mark_processing(&task.id, at(1)).await.unwrap());
        assert!(!store.mark_processing(&task.id, at(2)).await.unwrap());
        let finish = async |index: usize, seconds| {
            let picture = drawn(&task.id, index, 10);
            store.finish_image(&task.id, &picture, &task.images[index], &usage(), at(seconds)).await.unwrap()
        };
        assert_eq!(finish(1, 3).await, ImageStored::New { completed: false });
        assert_eq!(finish(1, 4).await, ImageStored::Repeated { completed: false });
        assert_eq!(finish(0, 5).await, ImageStored::New { completed: true });
        assert_eq!(finish(0, 6).await, ImageStored::Repeated { completed: true });
        let done = stored(store, &task.id).await;
        assert_eq!(done.status, TaskStatus::Completed);
        assert_eq!((done.started_at, done.finished_at), (Some(at(1)), Some(at(5))));
        assert_eq!(done.drawn, [drawn(&task.id, 0, 10), drawn(&task.id, 1, 10)]);
        assert_eq!(done.usage, Usage { steps: 8, pixels: 8192, device_seconds: 0.5 });
        assert_eq!(store.due_deliveries(at(9), 10).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn pictures_finished_all_at_once_complete_their_task_exactly_once() {
    for fresh in each_database().await {
        let task = new_task((0..20).map(spec).collect(), someone(), at(0));
        let task = insert_one(&fresh.store, with_webhook(task)).await;
        // Each twice, as when a picture is drawn again after a crash.
        let finishing = (0..40).map(|n| {
            let (store, task) = (fresh.store.clone(), task.clone());
            tokio::spawn(async move {
                let index = n / 2;
                let picture = drawn(&task.id, index, 10);
                store.finish_image(&task.id, &picture, &task.images[index], &usage(), at(1)).await.unwrap()
            })
        });
        let (mut new, mut completed) = (0, 0);
        for finished in finishing.collect::<Vec<_>>() {
            match finished.await.unwrap() {
                ImageStored::New { completed: last } => {
                    new += 1;
                    completed += usize::from(last);
                }
                ImageStored::Repeated { .. } => {}
                ImageStored::TaskIsFinal => panic!("a picture of the task was refused"),
            }
        }
        assert_eq!((new, completed), (20, 1));
        assert_eq!(stored(&fresh.store, &task.id).await.usage.steps, 80);
        assert_eq!(fresh.store.due_deliveries(at(1), 10).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_cancelled_task_takes_no_more_pictures_and_keeps_those_it_has() {
    for fresh in each_database().await {
        let store = &fresh.store;
        let task = insert_one(store, new_task(vec![spec(1), spec(2)], someone(), at(0))).await;
        let (first, second) = (drawn(&task.id, 0, 10), drawn(&task.id, 1, 10));
        store.finish_image(&task.id, &first, &task.images[0], &usage(), at(1)).await.unwrap();
        assert!(store.finish(&task.id, TaskStatus::Cancelled, None, at(2)).await.unwrap());
        let late = store.finish_image(&task.id, &second, &task.images[1], &usage(), at(3)).await.unwrap();
        assert_eq!(late, ImageStored::TaskIsFinal);
        let cancelled = stored(store, &task.id).await;
        assert_eq!(cancelled.status, TaskStatus::Cancelled);
        assert_eq!(cancelled.finished_at, Some(at(2)));
        assert_eq!(cancelled.drawn, [first]);
        assert_eq!(store.image(&second.id).await.unwrap(), None);
        assert!(!store.mark_processing(&task.id, at(4)).await.unwrap());
    }
}

#[tokio::test]
async fn a_task_is_final_once_and_says_why_it_failed() {
    for fresh in each_database().await {
        let store = &fresh.store;
        let task = insert_one(store, with_webhook(new_task(vec![spec(1)], someone(), at(0)))).await;
        let error = TaskError { kind: TaskErrorKind::OutOfMemory, message: "too \u{0} large".into() };
        assert!(store.finish(&task.id, TaskStatus::Failed, Some(&error), at(1)).await.unwrap());
        assert!(!store.finish(&task.id, TaskStatus::Cancelled, None, at(2)).await.unwrap());
        let failed = stored(store, &task.id).await;
        assert_eq!((failed.status, failed.error), (TaskStatus::Failed, Some(error)));
        let owed = store.due_deliveries(at(9), 10).await.unwrap();
        assert!(matches!(&owed[..], [owed] if owed.event == "task.failed"));
        let unknown = TaskId::new(TaskKind::Images);
        assert!(!store.finish(&unknown, TaskStatus::Cancelled, None, at(2)).await.unwrap());
    }
}

#[tokio::test]
async fn a_task_has_no_more_pictures_than_were_asked_for() {
    for fresh in each_database().await {
        let task = insert_one(&fresh.store, new_task(vec![spec(1)], someone(), at(0))).await;
        let extra = drawn(&task.id, 1, 10);
        let refused = fresh.store.finish_image(&task.id, &extra, &task.images[0], &usage(), at(1)).await;
        assert!(matches!(refused, Err(StoreError::Defect { .. })), "{refused:?}");
        assert_eq!(stored(&fresh.store, &task.id).await, task);
        let complete = fresh.store.finish(&task.id, TaskStatus::Completed, None, at(1)).await;
        assert!(matches!(complete, Err(StoreError::Defect { .. })), "{complete:?}");
    }
}

#[tokio::test]
async fn a_picture_is_its_tasks_owners() {
    for fresh in each_database().await {
        let task = completed(&fresh.store, new_task(vec![spec(1)], someone(), at(0)), 10, at(1)).await;
        let found = fresh.store.image(&task.drawn[0].id).await.unwrap();
        assert_eq!(found, Some((task.drawn[0].clone(), someone())));
    }
}
