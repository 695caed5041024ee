//! What only the running server knows of unfinished tasks: steps done, who listens, who watches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::TaskView;
use crate::engine::{Viewers, Viewing};
use crate::task::{
    Change, DrawnImage, Event, ImageSpec, Owner, Preview, Task, TaskError, TaskId, TaskKind, TaskStatus,
};

/// Events that a listener may be behind before it is told to ask for the state instead.
const BEHIND: usize = 64;

/// A listener's end.
#[derive(Debug)]
pub struct Subscription {
    /// The task when the subscription began.
    pub view: TaskView,
    /// Sequence number of the last event that `view` includes.
    pub sequence: u64,
    /// What happens from then on; closed after the final status, and from the start for a final task. `Lagged` means:
    /// ask again for the state.
    pub events: broadcast::Receiver<Event>,
    /// Dropping it ends the wish for previews.
    pub viewing: Option<Viewing>,
}

/// One unfinished task.
pub(super) struct Live {
    pub(super) kind: TaskKind,
    pub(super) owner: Owner,
    pub(super) images: Arc<[ImageSpec]>,
    pub(super) status: TaskStatus,
    /// Steps done and in all, a picture each.
    steps: Vec<(usize, usize)>,
    pub(super) drawn: Vec<DrawnImage>,
    /// Whether the store has said that this task is completed.
    pub(super) completed: bool,
    pub(super) current_step: Option<Arc<str>>,
    pub(super) viewers: Viewers,
    events: broadcast::Sender<Event>,
    sequence: u64,
}

impl Live {
    fn new(task: &Task) -> Self {
        let steps = task
            .images
            .iter()
            .enumerate()
            .map(|(index, spec)| {
                let total = spec.expected_steps();
                let done = task.drawn.iter().any(|image| image.index == index);
                (if done { total } else { 0 }, total)
            })
            .collect();
        Self {
            kind: task.kind,
            owner: task.owner.clone(),
            images: task.images.as_slice().into(),
            status: task.status,
            steps,
            drawn: task.drawn.clone(),
            completed: false,
            current_step: None,
            viewers: Viewers::default(),
            events: broadcast::channel(BEHIND).0,
            sequence: 0,
        }
    }

    /// Steps done and in all.
    pub(super) fn steps(&self) -> (usize, usize) {
        self.steps.iter().fold((0, 0), |(done, total), (d, t)| (done + d, total + t))
    }

    /// A picture made steps.
    pub(super) fn stepped(&mut self, index: usize, done: usize, total: usize) {
        if let Some(steps) = self.steps.get_mut(index) {
            *steps = (done, total.max(done));
        }
        self.name_step();
    }

    /// Puts what is being made into words.
    pub(super) fn name_step(&mut self) {
        let first_unfinished = |(done, total): &(usize, usize)| done < total;
        let position =
            self.steps.iter().position(first_unfinished).unwrap_or(self.steps.len().saturating_sub(1));
        let line = step_line(self.kind, &self.images, position);
        if self.current_step.as_deref() != Some(line.as_str()) {
            self.current_step = Some(line.into());
        }
    }

    pub(super) fn tell(&mut self, id: &TaskId, change: Change) {
        self.sequence += 1;
        // Nobody may be listening.
        let _ = self.events.send(Event { task: id.clone(), sequence: self.sequence, change });
    }

    /// A picture is stored.
    pub(super) fn take_image(&mut self, id: &TaskId, image: DrawnImage) {
        if let Some(steps) = self.steps.get_mut(image.index) {
            steps.0 = steps.1;
        }
        if self.drawn.iter().any(|known| known.index == image.index) {
            return;
        }
        self.drawn.push(image.clone());
        self.drawn.sort_by_key(|image| image.index);
        self.tell(id, Change::Image(image));
    }
}

/// `Generating variant 3/4`.
fn step_line(kind: TaskKind, images: &[ImageSpec], index: usize) -> String {
    let what = match kind {
        TaskKind::Images => "image",
        TaskKind::Prototypes => "variant",
        TaskKind::Expressions => "expression",
        TaskKind::FullBody => "pose",
        TaskKind::OutfitChange => "outfit",
        TaskKind::Stickers => "sticker",
        TaskKind::Scene => "scene",
    };
    let place = format!("Generating {what} {}/{}", index + 1, images.len());
    match images.get(index).and_then(|spec| spec.label.as_deref()) {
        Some(label) => format!("{place}: {label}"),
        None => place,
    }
}

/// All unfinished tasks.
#[derive(Default)]
pub(super) struct LiveTasks(Mutex<HashMap<TaskId, Live>>);

impl LiveTasks {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Live>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task begins its life here.
    pub(super) fn add(&self, task: &Task) -> Viewers {
        let live = Live::new(task);
        let viewers = live.viewers.clone();
        self.lock().insert(task.id.clone(), live);
        viewers
    }

    /// A task is final: listeners hear it and are let go.
    pub(super) fn finish(&self, id: &TaskId, status: TaskStatus, error: Option<TaskError>) -> Option<Live> {
        let mut live = self.lock().remove(id)?;
        live.status = status;
        live.tell(id, Change::Status { status, error });
        Some(live)
    }

    /// A picture of a task looks like this.
    pub(super) fn preview(&self, id: &TaskId, preview: Preview) {
        if let Some(live) = self.lock().get_mut(id) {
            live.tell(id, Change::Preview(preview));
        }
    }

    /// Listens to a task; `None` if it is not unfinished.
    pub(super) fn listen(
        &self,
        id: &TaskId,
        previews: bool,
    ) -> Option<(broadcast::Receiver<Event>, u64, Option<Viewing>)> {
        let tasks = self.lock();
        let live = tasks.get(id)?;
        Some((live.events.subscribe(), live.sequence, previews.then(|| live.viewers.join())))
    }
}

/// A receiver that is closed already: what listeners of final tasks get.
pub(super) fn closed() -> broadcast::Receiver<Event> {
    broadcast::channel(1).1
}
