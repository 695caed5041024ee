//! The expression bank.

use super::*;

async fn found(store: &TaskStore, key: &str, now: Timestamp) -> Option<DrawnImage> {
    store.bank_lookup(&[key.to_owned(), "missing".into()], now).await.unwrap().remove(key)
}

#[tokio::test]
async fn a_picture_with_a_place_in_the_bank_is_found_there() {
    for fresh in each_database().await {
        let task = new_task(vec![in_bank("smile", "fox"), spec(2)], someone(), at(0));
        let task = completed(&fresh.store, task, 10, at(1)).await;
        let hit = found(&fresh.store, "smile", at(2)).await.unwrap();
        assert_eq!(hit, DrawnImage { cached: true, ..task.drawn[0].clone() });
    }
}

#[tokio::test]
async fn a_picture_drawn_anew_takes_the_first_ones_place() {
    for fresh in each_database().await {
        let task = || new_task(vec![in_bank("smile", "fox")], someone(), at(0));
        completed(&fresh.store, task(), 10, at(1)).await;
        let second = completed(&fresh.store, task(), 10, at(2)).await;
        assert_eq!(found(&fresh.store, "smile", at(3)).await.unwrap().id, second.drawn[0].id);
    }
}

#[tokio::test]
async fn forgetting_takes_one_owners_entries_of_one_character_or_all() {
    for fresh in each_database().await {
        let store = &fresh.store;
        let entries = [("a", "fox", someone()), ("b", "o'wl\u{0}", someone()), ("c", "fox", Owner::Anyone)];
        for (key, character, owner) in entries {
            completed(store, new_task(vec![in_bank(key, character)], owner, at(0)), 10, at(1)).await;
        }
        assert_eq!(store.bank_invalidate(&someone(), Some("fox")).await.unwrap(), 1);
        assert_eq!(found(store, "a", at(2)).await, None);
        assert!(found(store, "b", at(2)).await.is_some());
        assert!(found(store, "c", at(2)).await.is_some());
        assert_eq!(store.bank_invalidate(&someone(), None).await.unwrap(), 1);
        assert_eq!(found(store, "b", at(2)).await, None);
        assert!(found(store, "c", at(2)).await.is_some());
    }
}

#[tokio::test]
async fn a_forgotten_entrys_picture_stays_its_tasks() {
    for fresh in each_database().await {
        let task = new_task(vec![in_bank("smile", "fox")], someone(), at(0));
        let task = completed(&fresh.store, task, 10, at(1)).await;
        fresh.store.bank_invalidate(&someone(), None).await.unwrap();
        assert!(fresh.store.image(&task.drawn[0].id).await.unwrap().is_some());
        assert_eq!(fresh.store.doomed_images().await.unwrap(), []);
    }
}
