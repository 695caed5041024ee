//! How long things will take: work that each unfinished task still needs, against the measured rate of each model.
//! Kept by [`super::queue::Queue`] as pictures come, start, step and end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::job::Job;
use crate::task::{Owner, Priority, TaskId};

/// Weight of the newest measurement in the moving average.
const NEWEST: f64 = 0.2;

/// What a task still needs.
#[derive(Debug, Clone)]
struct Load {
    priority: Priority,
    owner: Owner,
    sequence: u64,
    model: Arc<str>,
    waiting: usize,
    running: usize,
    started: bool,
    /// Work left, in the unit of [`Job::work`].
    work: f64,
}

/// Work left and measured rates.
#[derive(Debug, Default)]
pub struct Forecast {
    tasks: HashMap<TaskId, Load>,
    /// Work a second, by model.
    rates: HashMap<Arc<str>, f64>,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Outlook {
    /// Tasks that will start before it; `None` once it has started.
    pub position: Option<usize>,
    /// Seconds until it is done; `None` before a step of its model was measured.
    pub seconds: Option<f64>,
}

impl Forecast {
    pub(super) fn add(&mut self, job: &Job, sequence: u64) {
        let load = self.tasks.entry(job.id.task.clone()).or_insert_with(|| Load {
            priority: job.priority,
            owner: job.owner.clone(),
            sequence,
            model: job.key().model,
            waiting: 0,
            running: 0,
            started: false,
            work: 0.0,
        });
        load.waiting += 1;
        load.work += job.work();
    }

    pub(super) fn started(&mut self, job: &Job) {
        if let Some(load) = self.tasks.get_mut(&job.id.task) {
            load.waiting = load.waiting.saturating_sub(1);
            load.running += 1;
            load.started = true;
        }
    }

    /// A waiting picture will not be drawn.
    pub(super) fn withdrawn(&mut self, job: &Job) {
        if let Some(load) = self.tasks.get_mut(&job.id.task) {
            load.waiting = load.waiting.saturating_sub(1);
            load.work -= job.work();
        }
        self.drop_if_done(&job.id.task);
    }

    /// A picture has been denoised, or will not be.
    pub(super) fn ended(&mut self, job: &Job) {
        if let Some(load) = self.tasks.get_mut(&job.id.task) {
            load.running = load.running.saturating_sub(1);
        }
        self.drop_if_done(&job.id.task);
    }

    fn drop_if_done(&mut self, task: &TaskId) {
        if self.tasks.get(task).is_some_and(|load| load.waiting == 0 && load.running == 0) {
            self.tasks.remove(task);
        }
    }

    /// `work` of a task was done.
    pub fn worked(&mut self, task: &TaskId, work: f64) {
        if let Some(load) = self.tasks.get_mut(task) {
            load.work = (load.work - work).max(0.0);
        }
    }

    /// A model did `work` in `time`.
    pub fn measured(&mut self, model: &Arc<str>, work: f64, time: Duration) {
        let rate = work / time.as_secs_f64().max(1e-9);
        self.rates
            .entry(Arc::clone(model))
            .and_modify(|known| *known += (rate - *known) * NEWEST)
            .or_insert(rate);
    }

    fn seconds(&self, load: &Load) -> Option<f64> {
        Some(load.work / self.rates.get(&load.model)?)
    }

    /// Every unfinished task in the order in which it will be served (those that run first, then by priority, owners
    /// of one priority taking turns by work), with the time until it is done.
    pub fn outlooks(&self, served: &HashMap<Owner, f64>) -> HashMap<TaskId, Outlook> {
        let mut outlooks = HashMap::with_capacity(self.tasks.len());
        // Samples that run share every step, so each waits for the work of all.
        let running: Vec<_> = self.tasks.iter().filter(|(_, load)| load.started).collect();
        let mut elapsed = Some(0.0);
        for (_, load) in &running {
            elapsed = add(elapsed, self.seconds(load));
        }
        for (task, load) in running {
            let alone = self.seconds(load);
            // Done at the latest when all that runs is done, at the soonest after its own work.
            let seconds = match (elapsed, alone) {
                (Some(all), Some(alone)) => Some(all.max(alone)),
                (_, alone) => alone,
            };
            outlooks.insert(task.clone(), Outlook { position: None, seconds });
        }
        let mut position = 0;
        for priority in Priority::ALL.into_iter().rev() {
            let mut owners: BTreeMap<&Owner, Vec<(&TaskId, &Load)>> = BTreeMap::new();
            for (task, load) in &self.tasks {
                if !load.started && load.priority == priority {
                    owners.entry(&load.owner).or_default().push((task, load));
                }
            }
            let mut turns: Vec<(f64, _)> = owners
                .into_iter()
                .map(|(owner, mut tasks)| {
                    tasks.sort_unstable_by_key(|(_, load)| load.sequence);
                    (served.get(owner).copied().unwrap_or(0.0), tasks.into_iter().peekable())
                })
                .collect();
            loop {
                let next = turns.iter_mut().filter_map(|(served, tasks)| {
                    let sequence = tasks.peek()?.1.sequence;
                    Some((*served, sequence, served, tasks))
                });
                let Some((.., served, tasks)) = next.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
                else {
                    break;
                };
                let Some((task, load)) = tasks.next() else { break };
                *served += load.work;
                elapsed = add(elapsed, self.seconds(load));
                outlooks.insert(task.clone(), Outlook { position: Some(position), seconds: elapsed });
                position += 1;
            }
        }
        outlooks
    }

    /// Tasks of which no picture has started, by priority; and those that have started.
    pub fn counts(&self) -> ([usize; 3], usize) {
        let (mut queued, mut processing) = ([0; 3], 0);
        for load in self.tasks.values() {
            if load.started {
                processing += 1;
            } else {
                queued[load.priority as usize] += 1;
            }
        }
        (queued, processing)
    }

    /// Seconds until all of it is done.
    pub fn total_seconds(&self) -> Option<f64> {
        self.tasks.values().map(|load| self.seconds(load)).sum()
    }
}

fn add(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? + b?)
}
