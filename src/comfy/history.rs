//! Prompts that have ended, newest last, as `GET /history` shows them. Bounded in number and in bytes; the entries
//! themselves are in memory as far as they fit there, and otherwise on disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::keep::{Ended, Number};
use crate::task::Owner;

/// Bytes of entries in memory.
const IN_MEMORY: usize = 64 << 20;
/// Bytes of entries on disk.
const ON_DISK: usize = 2 << 30;

/// Where a prompt stands among those that have ended.
pub(super) type Place = i64;

/// The prompts that have ended.
#[derive(Debug)]
pub(super) struct History {
    entries: BTreeMap<Place, Entry>,
    by_id: HashMap<(Owner, Arc<str>), Place>,
    most: usize,
    next: Place,
    /// Entries before this are on disk alone.
    in_memory_from: Place,
    in_memory: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    number: Number,
    owner: Owner,
    id: Arc<str>,
    bytes: usize,
    text: Option<Bytes>,
}

/// An entry that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The prompt's id.
    pub id: Arc<str>,
    pub(super) number: Number,
    /// JSON; `None`: only on disk.
    pub(super) text: Option<Bytes>,
}

impl Found {
    /// Its entry as JSON, if it is in memory.
    pub fn in_memory(&self) -> Option<&Bytes> {
        self.text.as_ref()
    }
}

impl History {
    /// With what an earlier server kept; and what of it is beyond `most`.
    pub(super) fn new(most: usize, kept: Vec<Ended>) -> (Self, Vec<Number>) {
        let mut history = Self {
            entries: BTreeMap::new(),
            by_id: HashMap::new(),
            most,
            next: 0,
            in_memory_from: 0,
            in_memory: 0,
            bytes: 0,
        };
        let mut forgotten = Vec::new();
        for ended in kept {
            let Ended { number, place, owner, prompt_id, bytes } = ended;
            history.next = history.next.max(place.saturating_add(1));
            let entry = Entry { number, owner, id: prompt_id.into(), bytes, text: None };
            forgotten.extend(history.insert(place, entry));
        }
        history.in_memory_from = history.next;
        (history, forgotten)
    }

    /// The place of the next prompt to end.
    pub(super) fn next_place(&mut self) -> Place {
        let place = self.next;
        self.next += 1;
        place
    }

    /// A prompt has ended; what has to go for it.
    pub(super) fn add(
        &mut self,
        place: Place,
        number: Number,
        owner: Owner,
        id: Arc<str>,
        text: Bytes,
    ) -> Vec<Number> {
        self.in_memory += text.len();
        let forgotten = self.insert(place, Entry { number, owner, id, bytes: text.len(), text: Some(text) });
        while self.in_memory > IN_MEMORY {
            let Some((place, entry)) = self.entries.range_mut(self.in_memory_from..).next() else { break };
            self.in_memory_from = place + 1;
            if let Some(text) = entry.text.take() {
                self.in_memory -= text.len();
            }
        }
        forgotten
    }

    fn insert(&mut self, place: Place, entry: Entry) -> Vec<Number> {
        let mut forgotten = Vec::new();
        // A later prompt of the same id takes the place of the earlier one.
        if let Some(old) = self.by_id.insert((entry.owner.clone(), Arc::clone(&entry.id)), place) {
            forgotten.extend(self.take_out(old));
        }
        self.bytes += entry.bytes;
        self.entries.insert(place, entry);
        while self.entries.len() > self.most || (self.bytes > ON_DISK && self.entries.len() > 1) {
            let Some(oldest) = self.entries.keys().next().copied() else { break };
            forgotten.extend(self.remove(oldest));
        }
        forgotten
    }

    fn take_out(&mut self, place: Place) -> Option<Number> {
        let entry = self.entries.remove(&place)?;
        self.bytes -= entry.bytes;
        self.in_memory -= entry.text.map_or(0, |text| text.len());
        Some(entry.number)
    }

    fn remove(&mut self, place: Place) -> Option<Number> {
        if let Some(entry) = self.entries.get(&place) {
            self.by_id.remove(&(entry.owner.clone(), Arc::clone(&entry.id)));
        }
        self.take_out(place)
    }

    /// One of them.
    pub(super) fn find(&self, owner: &Owner, id: &str) -> Option<Found> {
        let place = self.by_id.get(&(owner.clone(), id.into()))?;
        self.entries.get(place).map(found)
    }

    /// Those that ComfyUI would show: all from number `offset` on, at most `max_items` (but at least one where there is
    /// any, as there); a negative offset shows the last `max_items`.
    pub(super) fn list(&self, owner: &Owner, max_items: Option<i64>, offset: i64) -> Vec<Found> {
        let own: Vec<&Entry> = self.entries.values().filter(|entry| entry.owner == *owner).collect();
        let count = i64::try_from(own.len()).unwrap_or(i64::MAX);
        let start = match max_items {
            Some(most) if offset < 0 => count.saturating_sub(most),
            _ => offset,
        };
        let start = usize::try_from(start.max(0)).unwrap_or(usize::MAX);
        let most = max_items.map_or(usize::MAX, |most| usize::try_from(most.max(1)).unwrap_or(usize::MAX));
        own.into_iter().skip(start).take(most).map(found).collect()
    }

    /// Forgets one.
    pub(super) fn delete(&mut self, owner: &Owner, id: &str) -> Option<Number> {
        let place = *self.by_id.get(&(owner.clone(), id.into()))?;
        self.remove(place)
    }

    /// Forgets all.
    pub(super) fn clear(&mut self, owner: &Owner) -> Vec<Number> {
        let own = self.entries.iter().filter(|(_, entry)| entry.owner == *owner);
        let places: Vec<Place> = own.map(|(place, _)| *place).collect();
        places.into_iter().filter_map(|place| self.remove(place)).collect()
    }
}

fn found(entry: &Entry) -> Found {
    Found { id: Arc::clone(&entry.id), number: entry.number, text: entry.text.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(most: usize) -> History {
        History::new(most, Vec::new()).0
    }

    fn add(history: &mut History, number: Number, id: &str, bytes: usize) -> Vec<Number> {
        let place = history.next_place();
        history.add(place, number, Owner::Anyone, id.into(), vec![b' '; bytes].into())
    }

    fn ids(found: &[Found]) -> Vec<&str> {
        found.iter().map(|found| &*found.id).collect()
    }

    #[test]
    fn a_part_of_it_is_what_comfyui_would_show() {
        let mut history = history(100);
        for (number, id) in ["a", "b", "c", "d"].into_iter().enumerate() {
            add(&mut history, number as i64, id, 1);
        }
        let list = |max_items, offset| {
            let found = history.list(&Owner::Anyone, max_items, offset);
            ids(&found).concat()
        };
        assert_eq!(list(None, -1), "abcd");
        assert_eq!(list(Some(2), -1), "cd");
        assert_eq!(list(Some(9), -1), "abcd");
        assert_eq!(list(Some(2), 1), "bc");
        assert_eq!(list(None, 3), "d");
        assert_eq!(list(Some(0), -1), "");
        assert_eq!(list(Some(0), 1), "b");
        assert_eq!(list(Some(-3), 0), "a");
        assert_eq!(list(Some(i64::MIN), i64::MIN), "");
        assert_eq!(list(Some(1), i64::MAX), "");
    }

    #[test]
    fn the_oldest_go_and_an_id_is_there_once() {
        let mut history = history(3);
        for (number, id) in ["a", "b", "a", "c"].into_iter().enumerate() {
            let forgotten = add(&mut history, number as i64, id, 1);
            assert_eq!(forgotten, if number == 2 { vec![0] } else { vec![] });
        }
        assert_eq!(ids(&history.list(&Owner::Anyone, None, -1)), ["b", "a", "c"]);
        assert_eq!(add(&mut history, 9, "d", 1), [1]);
        assert_eq!(history.delete(&Owner::Anyone, "a"), Some(2));
        assert_eq!(history.delete(&Owner::Anyone, "a"), None);
        assert_eq!(history.clear(&Owner::Anyone), [3, 9]);
        assert!(history.by_id.is_empty() && history.bytes == 0 && history.in_memory == 0);
    }

    #[test]
    fn memory_is_bounded_and_the_newest_are_there() {
        let mut history = history(1000);
        for number in 0..100 {
            add(&mut history, number, &number.to_string(), 1 << 20);
        }
        assert!(history.in_memory <= IN_MEMORY);
        let in_memory =
            history.list(&Owner::Anyone, None, -1).iter().filter(|found| found.text.is_some()).count();
        assert_eq!(in_memory, IN_MEMORY >> 20);
        assert!(history.find(&Owner::Anyone, "99").unwrap().text.is_some());
        assert!(history.find(&Owner::Anyone, "0").unwrap().text.is_none());
    }

    #[test]
    fn nobody_sees_what_others_ran() {
        let mut history = history(10);
        add(&mut history, 1, "a", 1);
        let other = Owner::Key(crate::task::ApiKeyId::random());
        assert!(history.find(&other, "a").is_none() && history.list(&other, None, -1).is_empty());
        assert!(history.clear(&other).is_empty() && history.delete(&other, "a").is_none());
    }
}
