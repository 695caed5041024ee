//! Listening to one task: its state now, then everything that happens. A listener that fell behind is told the newest
//! state instead of what it missed, so memory stays bounded however slow a client reads.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;

use crate::http::app::App;
use crate::http::error::ApiError;
use crate::http::task_json::progress;
use crate::service::{Subscription, TaskView};
use crate::task::{Change, DrawnImage, Event, Owner, Preview, Task, TaskError, TaskId, TaskStatus};

/// Something to tell a listener.
#[derive(Debug, Clone)]
pub(super) struct Update {
    /// Counts up within the task.
    pub(super) sequence: u64,
    /// What it is.
    pub(super) news: News,
    /// The task as it is then.
    pub(super) state: State,
}

/// What there is to tell.
#[derive(Debug, Clone)]
pub(super) enum News {
    /// A new status; the last one is final.
    Status(Option<TaskError>),
    /// Steps were made.
    Progress,
    /// What a picture looks like so far.
    Preview(Preview),
    /// A picture is done.
    Image(DrawnImage),
}

/// A task's state, as far as listeners are told.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    pub(super) status: TaskStatus,
    /// 0 to 1.
    pub(super) progress: f64,
    pub(super) current_step: Option<Arc<str>>,
    pub(super) eta_seconds: Option<f64>,
}

/// What is known of a task, and what of it is still to be told.
struct Account {
    /// The task when listening began; what its pictures were to be does not change.
    task: Task,
    state: State,
    sequence: u64,
    previews: bool,
    told_images: BTreeSet<usize>,
    pending: VecDeque<Update>,
    ended: bool,
}

/// A listener to one task.
pub(super) struct Follower {
    app: App,
    owner: Owner,
    subscription: Subscription,
    account: Account,
    /// Something was missed.
    stale: bool,
    /// Nothing more will come.
    closed: bool,
}

impl Follower {
    pub(super) async fn start(app: App, owner: Owner, id: &TaskId, previews: bool) -> Result<Self, ApiError> {
        let subscription = app.service.subscribe(&owner, id, previews).await?;
        let account = Account::new(&subscription.view, subscription.sequence, previews);
        Ok(Self { app, owner, subscription, account, stale: false, closed: false })
    }

    /// The task when listening began.
    pub(super) fn task(&self) -> &Task {
        &self.account.task
    }

    /// The next thing to tell; `None` after the final status. May be dropped and asked again at any time.
    pub(super) async fn next(&mut self) -> Option<Result<Update, ApiError>> {
        loop {
            if let Some(update) = self.account.pending.pop_front() {
                return Some(Ok(update));
            }
            if self.account.ended {
                return None;
            }
            if self.stale {
                match self.app.service.task(&self.owner, &self.account.task.id).await {
                    Ok(view) => self.account.catch_up(&view),
                    Err(error) => {
                        self.account.ended = true;
                        return Some(Err(error.into()));
                    }
                }
                self.stale = false;
                self.account.ended |= self.closed;
                continue;
            }
            match self.subscription.events.recv().await {
                Ok(event) => self.account.hear(event),
                Err(RecvError::Lagged(_)) => self.stale = true,
                Err(RecvError::Closed) => (self.stale, self.closed) = (true, true),
            }
        }
    }
}

impl Account {
    fn new(view: &TaskView, sequence: u64, previews: bool) -> Self {
        let mut account = Self {
            task: view.task.clone(),
            state: State::of(view),
            sequence,
            previews,
            told_images: BTreeSet::new(),
            pending: VecDeque::new(),
            ended: false,
        };
        account.catch_up(view);
        account
    }

    /// Tells all of the state that was not told yet. The final status comes last, for it ends the listening.
    fn catch_up(&mut self, view: &TaskView) {
        self.state = State::of(view);
        let is_final = view.task.status.is_final();
        if !is_final {
            self.tell(News::Status(None));
        }
        self.tell(News::Progress);
        let mut drawn: Vec<&DrawnImage> = view.task.drawn.iter().collect();
        drawn.sort_by_key(|image| image.index);
        for image in drawn {
            if self.told_images.insert(image.index) {
                self.tell(News::Image(image.clone()));
            }
        }
        if is_final {
            self.tell(News::Status(view.task.error.clone()));
            self.ended = true;
        }
    }

    fn hear(&mut self, event: Event) {
        // The state that was told may include what is heard only now.
        if event.sequence <= self.sequence {
            return;
        }
        self.sequence = event.sequence;
        match event.change {
            Change::Status { status, error } => {
                self.state.status = status;
                if status == TaskStatus::Completed {
                    self.state.progress = 1.0;
                }
                if status.is_final() {
                    self.state.eta_seconds = None;
                    self.ended = true;
                }
                self.tell(News::Status(error));
            }
            Change::Progress { steps_done, steps_total, current_step, eta_seconds } => {
                let share = progress(self.state.status, steps_done, steps_total);
                // Older than the state that listening began with, which was looked up after it.
                if share < self.state.progress {
                    return;
                }
                self.state.progress = share;
                self.state.current_step = Some(current_step);
                self.state.eta_seconds = eta_seconds;
                self.tell(News::Progress);
            }
            Change::Preview(preview) if self.previews => self.tell(News::Preview(preview)),
            Change::Preview(_) => {}
            Change::Image(image) => {
                if self.told_images.insert(image.index) {
                    self.tell(News::Image(image));
                }
            }
        }
    }

    fn tell(&mut self, news: News) {
        self.pending.push_back(Update { sequence: self.sequence, news, state: self.state.clone() });
    }
}

impl State {
    fn of(view: &TaskView) -> Self {
        Self {
            status: view.task.status,
            progress: progress(view.task.status, view.steps_done, view.steps_total),
            current_step: view.current_step.clone(),
            eta_seconds: view.eta_seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::http::task_json::testing::view;

    fn told(account: &mut Account) -> Vec<&'static str> {
        let name = |update: Update| match update.news {
            News::Status(_) => "status",
            News::Progress => "progress",
            News::Preview(_) => "preview",
            News::Image(_) => "image",
        };
        account.pending.drain(..).map(name).collect()
    }

    fn event(account: &Account, sequence: u64, change: Change) -> Event {
        Event { task: account.task.id.clone(), sequence, change }
    }

    #[test]
    fn listening_begins_with_the_state_now() {
        let mut account = Account::new(&view(TaskStatus::Processing, 3, 2), 9, false);
        assert_eq!(told(&mut account), ["status", "progress", "image", "image"]);
        assert!(!account.ended);
    }

    #[test]
    fn a_final_task_is_told_whole_and_its_status_last() {
        let mut account = Account::new(&view(TaskStatus::Completed, 2, 2), 9, false);
        assert_eq!(told(&mut account), ["progress", "image", "image", "status"]);
        assert!(account.ended);
    }

    #[test]
    fn progress_never_goes_back() {
        let running = view(TaskStatus::Processing, 2, 1); // 5 of 20 steps
        let mut account = Account::new(&running, 9, false);
        told(&mut account);
        for (steps_done, heard) in [(4, None), (5, Some(0.25)), (6, Some(0.3))] {
            let step: Arc<str> = "Generating".into();
            let change =
                Change::Progress { steps_done, steps_total: 20, current_step: step, eta_seconds: None };
            let event = event(&account, 10 + steps_done as u64, change);
            account.hear(event);
            assert_eq!(account.pending.pop_front().map(|update| update.state.progress), heard);
        }
    }

    #[test]
    fn an_event_that_the_state_included_is_not_told_again() {
        let running = view(TaskStatus::Processing, 2, 1);
        let mut account = Account::new(&running, 9, false);
        told(&mut account);
        let image = running.task.drawn[0].clone();
        account.hear(event(&account, 9, Change::Image(image.clone())));
        account.hear(event(&account, 10, Change::Image(image)));
        assert!(told(&mut account).is_empty());
    }

    #[test]
    fn previews_are_for_those_who_asked() {
        let preview = Change::Preview(Preview { index: 0, jpeg: Bytes::from_static(b"x") });
        for (asked, expected) in [(false, 0), (true, 1)] {
            let mut account = Account::new(&view(TaskStatus::Processing, 1, 0), 0, asked);
            told(&mut account);
            account.hear(event(&account, 1, preview.clone()));
            assert_eq!(told(&mut account).len(), expected);
        }
    }

    #[test]
    fn whoever_fell_behind_hears_of_missed_pictures_once() {
        let mut account = Account::new(&view(TaskStatus::Processing, 3, 1), 0, false);
        told(&mut account);
        let mut later = view(TaskStatus::Processing, 3, 3);
        later.task.id = account.task.id.clone();
        account.catch_up(&later);
        assert_eq!(told(&mut account), ["status", "progress", "image", "image"]);
    }

    #[test]
    fn each_update_carries_the_whole_state() {
        let mut account = Account::new(&view(TaskStatus::Queued, 1, 0), 0, false);
        told(&mut account);
        account.hear(event(&account, 1, Change::Status { status: TaskStatus::Processing, error: None }));
        account.hear(event(
            &account,
            2,
            Change::Progress {
                steps_done: 10,
                steps_total: 20,
                current_step: "half".into(),
                eta_seconds: Some(1.0),
            },
        ));
        account.hear(event(&account, 3, Change::Status { status: TaskStatus::Completed, error: None }));
        let states: Vec<State> = account.pending.drain(..).map(|update| update.state).collect();
        assert_eq!((states[1].status, states[1].progress), (TaskStatus::Processing, 0.5));
        assert_eq!((states[2].status, states[2].progress), (TaskStatus::Completed, 1.0));
        assert!(account.ended);
    }
}
