//! Webhooks owed.

use super::*;
use crate::task::TaskStatus;

#[tokio::test]
async fn only_tasks_that_asked_for_it_are_told_of() {
    for fresh in each_database().await {
        completed(&fresh.store, new_task(vec![spec(1)], someone(), at(0)), 10, at(1)).await;
        assert_eq!(fresh.store.next_delivery_at().await.unwrap(), None);
        assert_eq!(fresh.store.due_deliveries(at(9), 10).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_delivery_is_due_until_it_is_done_and_keeps_its_id_over_retries_and_restarts() {
    for fresh in each_database().await {
        let task = with_webhook(new_task(vec![spec(1)], someone(), at(0)));
        let task = completed(&fresh.store, task, 10, at(5)).await;
        assert_eq!(fresh.store.next_delivery_at().await.unwrap(), Some(at(5)));
        assert_eq!(fresh.store.due_deliveries(at(4), 10).await.unwrap(), []);
        let first = fresh.store.due_deliveries(at(5), 10).await.unwrap().remove(0);
        assert_eq!((&first.task, first.attempts, first.created_at), (&task.id, 0, at(5)));
        assert_eq!(first.url, "https://example.com/hook");
        fresh.store.delivery_retry(&first.id, at(20)).await.unwrap();
        let fresh = fresh.reopened().await;
        assert_eq!(fresh.store.due_deliveries(at(19), 10).await.unwrap(), []);
        let again = fresh.store.due_deliveries(at(20), 10).await.unwrap().remove(0);
        assert_eq!((again.id, again.attempts), (first.id, 1));
        fresh.store.delivery_done(&first.id).await.unwrap();
        assert_eq!(fresh.store.next_delivery_at().await.unwrap(), None);
        // An answer that came too late changes nothing.
        fresh.store.delivery_retry(&first.id, at(30)).await.unwrap();
        assert_eq!(fresh.store.due_deliveries(at(99), 10).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_delivery_given_up_is_not_due_again_and_others_are() {
    for fresh in each_database().await {
        for second in [1, 2] {
            let task =
                insert_one(&fresh.store, with_webhook(new_task(vec![spec(1)], someone(), at(0)))).await;
            assert!(fresh.store.finish(&task.id, TaskStatus::Cancelled, None, at(second)).await.unwrap());
        }
        let due = fresh.store.due_deliveries(at(9), 1).await.unwrap();
        assert_eq!(due.len(), 1);
        assert_eq!(due[0].created_at, at(1));
        fresh.store.delivery_given_up(&due[0].id).await.unwrap();
        let rest = fresh.store.due_deliveries(at(9), 10).await.unwrap();
        assert!(matches!(&rest[..], [rest] if rest.created_at == at(2) && rest.event == "task.cancelled"));
    }
}
