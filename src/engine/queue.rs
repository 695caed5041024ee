//! Who is served next. Pictures wait in lanes, one for each priority, owner and batch key; at every step boundary
//! a device asks for its next step batch, made of samples that are running and pictures that join them.
//!
//! Order: by priority; within a priority the owner who has been served least; then the oldest. So that nothing
//! starves, every fourth batch is headed by the oldest of those that have waited longer than `age_after`.
//! Pure bookkeeping: no threads, no clocks, no tensors; [`super::device`] drives it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::forecast::Forecast;
use super::job::{BatchKey, Job};
use crate::task::{Owner, Priority, TaskId};

/// Every so many batches one is headed by the picture that has waited longest.
const AGED_TURN: u64 = 4;
/// How long pictures of models that are there may go before one whose model waits for room.
const MODEL_PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Lane {
    priority: Priority,
    owner: Owner,
    key: BatchKey,
    /// Whether its pictures keep features between their steps.
    caches: bool,
}

/// A picture in the queue, or one that has left it to be drawn.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// The picture.
    pub job: Job,
    /// What it can be batched with.
    pub key: BatchKey,
    /// Its place in the order of arrival.
    pub sequence: u64,
    /// When it came.
    pub since: Instant,
}

/// What a device can do for a batch key now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    /// Draw so many pictures at once.
    Ready(usize),
    /// Nothing yet: the weights are on their way, or must first wait for room.
    Later {
        /// Whether others must finish first, so that pictures behind this one should not start before it.
        needs_room: bool,
    },
}

/// How many pictures may leave the queue. Urgent ones have some room of their own, so that a device whose running
/// samples are as many as they should be still takes them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joins {
    /// Of any priority.
    pub any: usize,
    /// With urgent ones.
    pub urgent: usize,
}

impl Joins {
    fn allow(self, priority: Priority) -> bool {
        if priority == Priority::Urgent { self.urgent > 0 } else { self.any > 0 }
    }

    fn took_one(&mut self) {
        self.any = self.any.saturating_sub(1);
        self.urgent = self.urgent.saturating_sub(1);
    }
}

/// What a device does next.
#[derive(Debug)]
pub struct StepBatch {
    /// What all of it shares.
    pub key: BatchKey,
    /// Positions, in the list of running samples, of those that advance.
    pub advance: Vec<usize>,
    /// Pictures that join.
    pub join: Vec<Ticket>,
}

/// Pictures that wait, and how much each owner has been served.
#[derive(Debug)]
pub struct Queue {
    lanes: BTreeMap<Lane, VecDeque<Ticket>>,
    /// Work done for each owner, on a common scale; an owner who comes back does not get what was missed.
    served: HashMap<Owner, f64>,
    running: HashMap<Owner, usize>,
    next_sequence: u64,
    batches: u64,
    age_after: Duration,
    /// What each task still needs.
    pub(super) forecast: Forecast,
}

/// Position in the order of service; less is sooner.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rank {
    priority: Priority,
    served: f64,
    sequence: u64,
}

impl Rank {
    fn before(&self, other: &Self) -> Ordering {
        (other.priority.cmp(&self.priority))
            .then(self.served.total_cmp(&other.served))
            .then(self.sequence.cmp(&other.sequence))
    }
}

/// A picture whose model waits for room, which others may not keep from it for ever.
#[derive(Debug, Clone, Copy)]
struct Barrier {
    rank: Rank,
    /// Whether it has waited long enough for everything behind it to stand back.
    strict: bool,
}

impl Barrier {
    /// Whether a picture may start before it. Swapping weights costs more than a few steps: for a while, pictures of
    /// models that are there go first, so that each load serves many.
    fn lets_pass(&self, rank: &Rank) -> bool {
        rank.before(&self.rank).is_lt() || (!self.strict && rank.priority == self.rank.priority)
    }
}

/// Something that could be in the next batch.
#[derive(Clone, Copy)]
enum Candidate<'q> {
    Running(usize, &'q Ticket),
    Waiting(&'q Lane, &'q Ticket),
}

impl<'q> Candidate<'q> {
    fn ticket(&self) -> &'q Ticket {
        match self {
            Self::Running(_, ticket) | Self::Waiting(_, ticket) => ticket,
        }
    }
}

impl Queue {
    /// An empty one.
    pub fn new(age_after: Duration) -> Self {
        Self {
            lanes: BTreeMap::new(),
            served: HashMap::new(),
            running: HashMap::new(),
            next_sequence: 0,
            batches: 0,
            age_after,
            forecast: Forecast::default(),
        }
    }

    /// Adds a picture at the end of its lane.
    pub fn push(&mut self, job: Job, now: Instant) {
        let busy = |owner: &Owner| {
            self.running.get(owner).is_some_and(|n| *n > 0) || self.lanes.keys().any(|l| l.owner == *owner)
        };
        if !busy(&job.owner) {
            let others = self.served.iter().filter(|(owner, _)| busy(owner)).map(|(_, served)| *served);
            let least = others.min_by(f64::total_cmp).unwrap_or(0.0);
            let served = self.served.entry(job.owner.clone()).or_insert(least);
            *served = served.max(least);
        }
        self.forecast.add(&job, self.next_sequence);
        let lane =
            Lane { priority: job.priority, owner: job.owner.clone(), key: job.key(), caches: job.caches() };
        let ticket = Ticket { job, key: lane.key.clone(), sequence: self.next_sequence, since: now };
        self.next_sequence += 1;
        self.lanes.entry(lane).or_default().push_back(ticket);
    }

    /// Counts in a picture that came about while another was drawn and is never in a lane: a face of it.
    pub fn adopt(&mut self, job: Job, now: Instant) -> Ticket {
        self.forecast.add(&job, self.next_sequence);
        self.forecast.started(&job);
        *self.running.entry(job.owner.clone()).or_default() += 1;
        let ticket = Ticket { key: job.key(), job, sequence: self.next_sequence, since: now };
        self.next_sequence += 1;
        ticket
    }

    /// The next step batch of a device that has `running` samples. `places` says what it can do for a batch key
    /// (1 at least where ready); `joins` how many pictures may join.
    pub fn next_batch(
        &mut self,
        running: &[&Ticket],
        places: &dyn Fn(&BatchKey) -> Places,
        joins: Joins,
        now: Instant,
    ) -> Option<StepBatch> {
        let mut candidates: Vec<Candidate<'_>> =
            running.iter().enumerate().map(|(i, ticket)| Candidate::Running(i, ticket)).collect();
        let mut barrier: Option<Barrier> = None;
        let mut free: HashMap<&BatchKey, usize> = HashMap::new();
        for ticket in running {
            if let Places::Ready(n) = places(&ticket.key) {
                free.insert(&ticket.key, n.max(1));
            }
        }
        for (lane, tickets) in &self.lanes {
            let Some(head) = tickets.front() else { continue };
            match places(&lane.key) {
                Places::Ready(n) => {
                    free.insert(&lane.key, n.max(1));
                    candidates.push(Candidate::Waiting(lane, head));
                }
                Places::Later { needs_room: true } => {
                    let rank = self.rank(head, 0.0);
                    if barrier.is_none_or(|b| rank.before(&b.rank).is_lt()) {
                        let waited = now.saturating_duration_since(head.since);
                        barrier = Some(Barrier { rank, strict: waited >= MODEL_PATIENCE });
                    }
                }
                Places::Later { needs_room: false } => {}
            }
        }
        // What cannot start now does not head a batch.
        candidates.retain(|candidate| match candidate {
            Candidate::Running(..) => true,
            Candidate::Waiting(_, ticket) => {
                joins.allow(ticket.job.priority)
                    && barrier.is_none_or(|b| b.lets_pass(&self.rank(ticket, 0.0)))
            }
        });
        let by_rank = |a: &&Candidate<'_>, b: &&Candidate<'_>| {
            self.rank(a.ticket(), 0.0).before(&self.rank(b.ticket(), 0.0))
        };
        let first = *candidates.iter().min_by(by_rank)?;
        let aged = (self.batches % AGED_TURN == AGED_TURN - 1)
            .then(|| candidates.iter().min_by_key(|c| (c.ticket().since, c.ticket().sequence)))
            .flatten()
            .filter(|c| now.saturating_duration_since(c.ticket().since) >= self.age_after);
        let head = *aged.unwrap_or(&first);
        let key = head.ticket().key.clone();
        let places = free.get(&key).copied().unwrap_or(1);
        let (advance, taken) = self.fill(&candidates, head, &key, places, joins, barrier);

        self.batches += 1;
        let mut join = Vec::with_capacity(taken.iter().map(|(_, n)| n).sum());
        for (lane, count) in taken {
            if let Some(tickets) = self.lanes.get_mut(&lane) {
                join.extend(tickets.drain(..count.min(tickets.len())));
                if tickets.is_empty() {
                    self.lanes.remove(&lane);
                }
            }
        }
        join.sort_unstable_by_key(|ticket: &Ticket| ticket.sequence);
        for ticket in &join {
            *self.running.entry(ticket.job.owner.clone()).or_default() += 1;
            self.forecast.started(&ticket.job);
        }
        Some(StepBatch { key, advance, join })
    }

    /// Fills the places of a batch: `head` first, then by rank, each place taken counting for its owner at once so
    /// that owners alternate. Returns the running ones, and how many come from the front of which lane.
    fn fill(
        &self,
        candidates: &[Candidate<'_>],
        head: Candidate<'_>,
        key: &BatchKey,
        places: usize,
        mut joins: Joins,
        barrier: Option<Barrier>,
    ) -> (Vec<usize>, Vec<(Lane, usize)>) {
        let mut advance = Vec::new();
        let mut taken: Vec<(&Lane, usize)> = Vec::new();
        let mut extra: HashMap<&Owner, f64> = HashMap::new();
        let mut runners: Vec<(usize, &Ticket)> = Vec::new();
        let mut lanes: Vec<(&Lane, &VecDeque<Ticket>)> = Vec::new();
        for candidate in candidates.iter().filter(|c| c.ticket().key == *key) {
            match candidate {
                Candidate::Running(index, ticket) => runners.push((*index, ticket)),
                Candidate::Waiting(lane, _) => {
                    lanes.extend(self.lanes.get(lane).map(|tickets| (*lane, tickets)));
                }
            }
        }
        let mut forced = Some(head);
        for _ in 0..places {
            let share = |owner: &Owner| extra.get(owner).copied().unwrap_or(0.0);
            let choice = forced.take().or_else(|| {
                let running = runners.iter().map(|(i, ticket)| Candidate::Running(*i, ticket));
                let waiting = lanes.iter().filter_map(|(lane, tickets)| {
                    let from = taken.iter().find(|(known, _)| known == lane).map_or(0, |(_, n)| *n);
                    let ticket = tickets.get(from)?;
                    let may = joins.allow(ticket.job.priority)
                        && barrier.is_none_or(|b| b.lets_pass(&self.rank(ticket, 0.0)));
                    may.then_some(Candidate::Waiting(lane, ticket))
                });
                running.chain(waiting).min_by(|a, b| {
                    let (a, b) = (a.ticket(), b.ticket());
                    self.rank(a, share(&a.job.owner)).before(&self.rank(b, share(&b.job.owner)))
                })
            });
            let Some(choice) = choice else { break };
            let job = &choice.ticket().job;
            match choice {
                Candidate::Running(index, _) => {
                    runners.retain(|(i, _)| *i != index);
                    advance.push(index);
                }
                Candidate::Waiting(lane, _) => {
                    joins.took_one();
                    match taken.iter_mut().find(|(known, _)| *known == lane) {
                        Some((_, n)) => *n += 1,
                        None => taken.push((lane, 1)),
                    }
                }
            }
            *extra.entry(&job.owner).or_default() += job.work_a_step();
        }
        advance.sort_unstable();
        (advance, taken.into_iter().map(|(lane, n)| (lane.clone(), n)).collect())
    }

    fn rank(&self, ticket: &Ticket, extra: f64) -> Rank {
        let served = self.served.get(&ticket.job.owner).copied().unwrap_or(0.0) + extra;
        Rank { priority: ticket.job.priority, served, sequence: ticket.sequence }
    }

    /// Work was done for an owner.
    pub fn account(&mut self, owner: &Owner, work: f64) {
        *self.served.entry(owner.clone()).or_default() += work;
    }

    /// A running sample has ended, whatever way.
    pub fn ended(&mut self, job: &Job) {
        self.forecast.ended(job);
        if let Some(n) = self.running.get_mut(&job.owner) {
            *n -= 1;
            if *n == 0 {
                self.running.remove(&job.owner);
                self.forget_idle_owners();
            }
        }
    }

    /// Takes a task's waiting pictures out.
    pub fn remove_task(&mut self, task: &TaskId) -> Vec<Job> {
        let mut removed = Vec::new();
        for tickets in self.lanes.values_mut() {
            if tickets.iter().any(|ticket| ticket.job.id.task == *task) {
                let (out, stay) = tickets.drain(..).partition(|ticket| ticket.job.id.task == *task);
                *tickets = stay;
                let out: VecDeque<Ticket> = out;
                removed.extend(out.into_iter().map(|ticket| ticket.job));
            }
        }
        self.lanes.retain(|_, tickets| !tickets.is_empty());
        for job in &removed {
            self.forecast.withdrawn(job);
        }
        removed
    }

    /// Takes every waiting picture of a model out.
    pub fn remove_model(&mut self, model: &str) -> Vec<Job> {
        let (out, stay): (BTreeMap<_, _>, _) =
            std::mem::take(&mut self.lanes).into_iter().partition(|(lane, _)| &*lane.key.model == model);
        self.lanes = stay;
        let removed: Vec<Job> = out.into_values().flatten().map(|ticket| ticket.job).collect();
        for job in &removed {
            self.forecast.withdrawn(job);
        }
        removed
    }

    /// Models that pictures wait for, those who would be served first in front.
    pub fn wanted_models(&self) -> Vec<std::sync::Arc<str>> {
        let heads = self.lanes.iter().filter_map(|(lane, tickets)| Some((lane, tickets.front()?)));
        let mut ranked: Vec<_> = heads.map(|(lane, head)| (self.rank(head, 0.0), &lane.key.model)).collect();
        ranked.sort_by(|(a, _), (b, _)| a.before(b));
        let mut seen = HashSet::new();
        ranked.into_iter().filter(|(_, model)| seen.insert(*model)).map(|(_, model)| model.clone()).collect()
    }

    /// Batch keys of waiting pictures that keep features of the network between their steps.
    pub(super) fn caching_keys(&self) -> HashSet<BatchKey> {
        self.lanes.keys().filter(|lane| lane.caches).map(|lane| lane.key.clone()).collect()
    }

    /// Pictures that wait, by priority, least first.
    pub fn waiting(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for (lane, tickets) in &self.lanes {
            counts[lane.priority as usize] += tickets.len();
        }
        counts
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// What each owner was served so far.
    pub(super) fn served(&self) -> &HashMap<Owner, f64> {
        &self.served
    }

    /// Owners who have nothing here keep no account: their number is not bounded by anything else.
    fn forget_idle_owners(&mut self) {
        let waiting: HashSet<&Owner> = self.lanes.keys().map(|lane| &lane.owner).collect();
        let running = &self.running;
        self.served.retain(|owner, _| waiting.contains(owner) || running.contains_key(owner));
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
