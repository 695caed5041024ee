//! Prompts that wait and prompts that run. Lower numbers first, then in the order in which they came; up to a number of
//! them run at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Number as JsonNumber;
use tokio_util::sync::CancellationToken;

use super::keep::Number;
use super::runner::Work;
use crate::task::Owner;
use crate::workflow::Ordered;

/// Bytes of prompts that may wait.
const BYTES: usize = 128 << 20;

/// A prompt that was accepted.
pub(super) struct Prompt {
    /// Its row, and its place among those of the same `rank`.
    pub(super) number: Number,
    pub(super) owner: Owner,
    pub(super) id: Arc<str>,
    /// Who is told.
    pub(super) client: Option<String>,
    /// The lowest is next.
    pub(super) rank: f64,
    /// `[number, id, prompt, extra_data, outputs]`.
    pub(super) item: Arc<str>,
    /// Ids of its nodes.
    pub(super) nodes: Vec<String>,
    /// `extra_data.extra_pnginfo`.
    pub(super) extra_pnginfo: Option<Ordered>,
    /// Whether pictures are shown while they are sampled.
    pub(super) previews: bool,
}

/// One that waits.
struct Pending {
    prompt: Arc<Prompt>,
    work: Box<dyn Work>,
    /// Its sender has been told that it is there.
    answered: bool,
}

/// One that runs.
struct Running {
    prompt: Arc<Prompt>,
    interrupt: CancellationToken,
}

/// What is to be run next.
pub(super) struct Next {
    pub(super) prompt: Arc<Prompt>,
    pub(super) work: Box<dyn Work>,
    pub(super) interrupt: CancellationToken,
}

/// A number with an order, which JSON's have.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rank(f64);

impl Eq for Rank {}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Zero has two signs, and is one number all the same.
        (self.0 + 0.0).total_cmp(&(other.0 + 0.0))
    }
}

/// Who waits and who runs.
#[derive(Default)]
pub(super) struct Queue {
    pending: BTreeMap<(Rank, Number), Pending>,
    /// By row; the smallest `order` began first.
    running: HashMap<Number, (u64, Running)>,
    begun: u64,
    bytes: usize,
    /// Being checked and written down, not yet in `pending`.
    reserved: usize,
    /// ComfyUI's counter for prompts that bring no number.
    counter: i64,
}

/// The number of a prompt, as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Numbered {
    pub(super) rank: f64,
    pub(super) shown: JsonNumber,
}

impl Queue {
    /// The number of the next prompt: its own, or the counter, negative for the front.
    pub(super) fn number(&mut self, own: Option<f64>, front: bool) -> Numbered {
        if let Some((own, shown)) = own.and_then(|own| Some((own, JsonNumber::from_f64(own)?))) {
            return Numbered { rank: own, shown };
        }
        let number = if front { -self.counter } else { self.counter };
        self.counter = self.counter.saturating_add(1);
        Numbered { rank: number as f64, shown: number.into() }
    }

    /// Prompts that were there before go first.
    pub(super) fn count_from(&mut self, rank: f64) {
        // Far more prompts than anyone sends.
        let next = rank.clamp(0.0, 1e15) as i64 + 1;
        self.counter = self.counter.max(next);
    }

    /// Room for one more of so many bytes; to be given back by [`Self::add`] or [`Self::release`].
    pub(super) fn reserve(&mut self, most: usize, bytes: usize) -> bool {
        let room = self.pending.len() + self.reserved < most
            && (self.bytes.saturating_add(bytes) <= BYTES || self.pending.is_empty());
        self.reserved += usize::from(room);
        room
    }

    /// The prompt will not come.
    pub(super) fn release(&mut self) {
        self.reserved -= 1;
    }

    /// Adds a prompt that room was reserved for. It waits until its sender has been [answered](Self::answered).
    pub(super) fn add(&mut self, prompt: Arc<Prompt>, work: Box<dyn Work>) {
        self.reserved -= 1;
        self.bytes += prompt.item.len();
        self.pending.insert((Rank(prompt.rank), prompt.number), Pending { prompt, work, answered: false });
    }

    /// Adds a prompt that was accepted before; it always fits.
    pub(super) fn restore(&mut self, prompt: &Arc<Prompt>, work: Box<dyn Work>) {
        self.reserved += 1;
        self.add(Arc::clone(prompt), work);
        self.answered(prompt);
    }

    /// A prompt's sender knows of it: it may begin.
    pub(super) fn answered(&mut self, prompt: &Prompt) {
        if let Some(pending) = self.pending.get_mut(&(Rank(prompt.rank), prompt.number)) {
            pending.answered = true;
        }
    }

    /// What is to be run now, if fewer than `most` run.
    pub(super) fn next(&mut self, most: usize) -> Option<Next> {
        if self.running.len() >= most {
            return None;
        }
        let key = self.pending.iter().find(|(_, pending)| pending.answered).map(|(key, _)| *key)?;
        let Pending { prompt, work, .. } = self.pending.remove(&key)?;
        self.bytes -= prompt.item.len();
        let interrupt = CancellationToken::new();
        let running = Running { prompt: Arc::clone(&prompt), interrupt: interrupt.clone() };
        self.running.insert(prompt.number, (self.begun, running));
        self.begun += 1;
        Some(Next { prompt, work, interrupt })
    }

    /// One has ended.
    pub(super) fn end(&mut self, number: Number) {
        self.running.remove(&number);
    }

    /// Those that run, the first to begin first, and those that wait, the next first.
    pub(super) fn list(&self, owner: &Owner) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        let item = |prompt: &Prompt| (prompt.owner == *owner).then(|| Arc::clone(&prompt.item));
        let mut running: Vec<_> = self.running.values().collect();
        running.sort_by_key(|(order, _)| *order);
        (
            running.into_iter().filter_map(|(_, running)| item(&running.prompt)).collect(),
            self.pending.values().filter_map(|pending| item(&pending.prompt)).collect(),
        )
    }

    /// Ends those that run under this id; without one, the one that began first.
    pub(super) fn interrupt(&self, owner: &Owner, id: Option<&str>) {
        let mut own: Vec<_> =
            self.running.values().filter(|(_, running)| running.prompt.owner == *owner).collect();
        own.sort_by_key(|(order, _)| *order);
        match id {
            Some(id) => own.into_iter().filter(|(_, running)| &*running.prompt.id == id).for_each(cancel),
            None => own.into_iter().take(1).for_each(cancel),
        }
    }

    /// Ends all that run.
    pub(super) fn interrupt_all(&self) {
        self.running.values().for_each(cancel);
    }

    /// Takes out the next of those that wait under this id.
    pub(super) fn delete(&mut self, owner: &Owner, id: &str) -> Option<Number> {
        let mut own = self.pending.iter().filter(|(_, pending)| pending.prompt.owner == *owner);
        let key = own.find(|(_, pending)| &*pending.prompt.id == id).map(|(key, _)| *key)?;
        self.take_out(key)
    }

    /// Takes out all that wait.
    pub(super) fn clear(&mut self, owner: &Owner) -> Vec<Number> {
        let own = self.pending.iter().filter(|(_, pending)| pending.prompt.owner == *owner);
        let keys: Vec<_> = own.map(|(key, _)| *key).collect();
        keys.into_iter().filter_map(|key| self.take_out(key)).collect()
    }

    fn take_out(&mut self, key: (Rank, Number)) -> Option<Number> {
        let pending = self.pending.remove(&key)?;
        self.bytes -= pending.prompt.item.len();
        Some(pending.prompt.number)
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// How many run.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }
}

fn cancel((_, running): &(u64, Running)) {
    running.interrupt.cancel();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comfy::runner::Running as RunsAs;

    struct Nothing;
    impl Work for Nothing {
        fn run(self: Box<Self>, _: &RunsAs<'_>) -> BTreeMap<String, serde_json::Value> {
            BTreeMap::new()
        }
    }

    fn add(queue: &mut Queue, number: Number, own: Option<f64>, front: bool) {
        assert!(queue.reserve(100, 1));
        let numbered = queue.number(own, front);
        let prompt = Prompt {
            number,
            owner: Owner::Anyone,
            id: format!("p{number}").into(),
            client: None,
            rank: numbered.rank,
            item: numbered.shown.to_string().into(),
            nodes: Vec::new(),
            extra_pnginfo: None,
            previews: false,
        };
        let prompt = Arc::new(prompt);
        queue.add(Arc::clone(&prompt), Box::new(Nothing));
        queue.answered(&prompt);
    }

    fn ids(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.next(usize::MAX)).map(|next| next.prompt.id.to_string()).collect()
    }

    #[test]
    fn lower_numbers_go_first_and_the_front_is_before_all() {
        let mut queue = Queue::default();
        for (number, own, front) in
            [(0, None, false), (1, None, false), (2, None, true), (3, Some(0.5), false), (4, None, true)]
        {
            add(&mut queue, number, own, front);
        }
        let (_, pending) = queue.list(&Owner::Anyone);
        let shown: Vec<&str> = pending.iter().map(|item| &**item).collect();
        assert_eq!(shown, ["-3", "-2", "0", "0.5", "1"]);
        assert_eq!(ids(&mut queue), ["p4", "p2", "p0", "p3", "p1"]);
    }

    #[test]
    fn as_many_run_as_may_and_an_interrupt_meets_one() {
        let mut queue = Queue::default();
        for number in 0..5 {
            add(&mut queue, number, None, false);
        }
        let run: Vec<Next> = std::iter::from_fn(|| queue.next(3)).collect();
        assert_eq!((run.len(), queue.running(), queue.waiting()), (3, 3, 2));
        let cancelled = || run.iter().map(|next| next.interrupt.is_cancelled()).collect::<Vec<_>>();
        queue.interrupt(&Owner::Anyone, Some("p1"));
        assert_eq!(cancelled(), [false, true, false]);
        queue.interrupt(&Owner::Anyone, Some("p4"));
        queue.interrupt(&Owner::Key(crate::task::ApiKeyId::random()), None);
        assert_eq!(cancelled(), [false, true, false]);
        queue.interrupt(&Owner::Anyone, None);
        assert_eq!(cancelled(), [true, true, false]);
        queue.end(run[0].prompt.number);
        assert_eq!(queue.next(3).unwrap().prompt.id.as_ref(), "p3");
    }

    #[test]
    fn room_is_bounded_in_number_and_in_bytes() {
        let mut queue = Queue::default();
        assert!(queue.reserve(2, BYTES * 2), "one always fits");
        queue.release();
        add(&mut queue, 0, None, false);
        assert!(queue.reserve(3, 1) && queue.reserve(3, 1) && !queue.reserve(3, 1));
        queue.release();
        assert!(!queue.reserve(3, BYTES));
        assert_eq!(queue.clear(&Owner::Anyone), [0]);
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn a_prompt_that_waits_can_be_taken_out() {
        let mut queue = Queue::default();
        add(&mut queue, 7, None, false);
        add(&mut queue, 8, None, false);
        assert_eq!(queue.delete(&Owner::Anyone, "p8"), Some(8));
        assert_eq!(queue.delete(&Owner::Anyone, "p8"), None);
        assert_eq!(queue.delete(&Owner::Key(crate::task::ApiKeyId::random()), "p7"), None);
        assert_eq!(ids(&mut queue), ["p7"]);
    }
}
