use std::collections::HashMap;
use std::sync::Arc;

use super::*;
use crate::engine::{Content, JobId, Viewers};
use crate::task::{ApiKeyId, ImageFormat, ImageSpec, SourceSpec, TaskKind};

fn spec(model: &str, side: usize) -> ImageSpec {
    ImageSpec {
        model: model.into(),
        prompt: "a cube".into(),
        negative_prompt: String::new(),
        width: side,
        height: side,
        steps: 10,
        cfg: 7.0,
        sampler: "euler".into(),
        scheduler: "normal".into(),
        seed: 1,
        denoise: 1.0,
        clip_skip: None,
        source: SourceSpec::Empty,
        loras: Vec::new(),
        controls: Vec::new(),
        speed: darkroom_pipelines::Speed::default(),
        shift: None,
        detail: None,
        background: crate::task::Background::Keep,
        format: ImageFormat::Png,
        metadata: true,
        label: None,
        bank: None,
    }
}

fn owner(name: u8) -> Owner {
    Owner::Key(format!("{name:016x}").parse::<ApiKeyId>().unwrap())
}

struct Line {
    queue: Queue,
    running: Vec<Ticket>,
    names: HashMap<TaskId, &'static str>,
    start: Instant,
}

impl Line {
    fn new() -> Self {
        Self {
            queue: Queue::new(Duration::from_secs(30)),
            running: Vec::new(),
            names: HashMap::new(),
            start: Instant::now(),
        }
    }

    fn add(
        &mut self,
        name: &'static str,
        owner: Owner,
        priority: Priority,
        model: &str,
        side: usize,
    ) -> TaskId {
        let task = TaskId::new(TaskKind::Images);
        let job = Job {
            id: JobId { task: task.clone(), index: 0 },
            content: Content::Picture(Arc::new(spec(model, side))),
            owner,
            priority,
            viewers: Viewers::default(),
        };
        self.queue.push(job, self.start);
        self.names.insert(task.clone(), name);
        task
    }

    /// One step boundary; the names in the step batch.
    fn step(&mut self, places: usize, after: u64) -> Vec<&'static str> {
        self.step_with(&|_| Places::Ready(places), 100, after)
    }

    fn step_with(
        &mut self,
        places: &dyn Fn(&BatchKey) -> Places,
        any: usize,
        after: u64,
    ) -> Vec<&'static str> {
        let joins = Joins { any, urgent: 100 };
        let running: Vec<Ticket> = self.running.clone();
        let now = self.start + Duration::from_secs(after);
        let Some(batch) = self.queue.next_batch(&running.iter().collect::<Vec<_>>(), places, joins, now)
        else {
            return Vec::new();
        };
        let mut stepped: Vec<Ticket> = batch.advance.iter().map(|i| running[*i].clone()).collect();
        self.running.extend(batch.join.iter().cloned());
        stepped.extend(batch.join);
        for ticket in &stepped {
            assert_eq!(ticket.key, batch.key);
            self.queue.account(&ticket.job.owner, ticket.job.work_a_step());
        }
        stepped.iter().map(|ticket| self.names[&ticket.job.id.task]).collect()
    }

    fn end(&mut self, name: &str) {
        let at = self.running.iter().position(|t| self.names[&t.job.id.task] == name).unwrap();
        let ticket = self.running.remove(at);
        self.queue.ended(&ticket.job);
    }
}

#[test]
fn an_urgent_picture_joins_at_the_next_step_and_displaces_a_standard_one() {
    let mut line = Line::new();
    for name in ["a", "b", "c", "d"] {
        line.add(name, owner(1), Priority::Standard, "m", 64);
    }
    assert_eq!(line.step(2, 0), ["a", "b"]);
    line.add("now", owner(2), Priority::Urgent, "m", 64);
    let mut batch = line.step(2, 0);
    batch.sort_unstable();
    assert_eq!(batch, ["a", "now"], "b pauses, keeping what it has");
    line.end("now");
    assert_eq!(line.step(2, 0), ["a", "b"]);
}

#[test]
fn owners_of_one_priority_take_turns_however_much_one_has_queued() {
    let mut line = Line::new();
    for name in ["a1", "a2", "a3", "a4", "a5", "a6"] {
        line.add(name, owner(1), Priority::Standard, "m", 64);
    }
    assert_eq!(line.step(4, 0), ["a1", "a2", "a3", "a4"]);
    line.add("b1", owner(2), Priority::Standard, "m", 64);
    line.add("b2", owner(2), Priority::Standard, "m", 64);
    let mut batch = line.step(4, 0);
    batch.sort_unstable();
    assert_eq!(batch, ["a1", "a2", "b1", "b2"]);
}

#[test]
fn an_owner_who_comes_back_does_not_get_what_was_missed() {
    let mut line = Line::new();
    line.add("a1", owner(1), Priority::Standard, "m", 64);
    for _ in 0..50 {
        assert_eq!(line.step(1, 0), ["a1"]);
    }
    line.add("b1", owner(2), Priority::Standard, "m", 64);
    line.add("b2", owner(2), Priority::Standard, "m", 64);
    let turns: Vec<_> = (0..8).flat_map(|_| line.step(1, 0)).collect();
    let of_a = turns.iter().filter(|name| **name == "a1").count();
    assert!((3..=5).contains(&of_a), "{turns:?}");
}

#[test]
fn pictures_of_other_shapes_and_models_are_not_in_one_batch_and_the_oldest_decides() {
    let mut line = Line::new();
    line.add("small", owner(1), Priority::Standard, "m", 64);
    line.add("large", owner(1), Priority::Standard, "m", 128);
    line.add("other", owner(1), Priority::Standard, "n", 64);
    line.add("small2", owner(1), Priority::Standard, "m", 64);
    assert_eq!(line.step(8, 0), ["small", "small2"]);
    line.end("small");
    // small2 came after the two others: they go first now, then it goes on.
    assert_eq!(line.step(8, 0), ["large"]);
    line.end("large");
    assert_eq!(line.step(8, 0), ["other"]);
    line.end("other");
    assert_eq!(line.step(8, 0), ["small2"]);
}

#[test]
fn nothing_starves_behind_a_stream_of_urgent_work() {
    let mut line = Line::new();
    line.add("patient", owner(1), Priority::Standard, "m", 64);
    for i in 0..40 {
        line.add(["u0", "u1", "u2", "u3"][i % 4], owner(2), Priority::Urgent, "m", 64);
    }
    let early: Vec<_> = (0..8).flat_map(|_| line.step(1, 1)).collect();
    assert!(!early.contains(&"patient"), "{early:?}");
    let late: Vec<_> = (0..8).flat_map(|_| line.step(1, 31)).collect();
    assert!(late.contains(&"patient"), "{late:?}");
}

#[test]
fn a_model_that_waits_for_room_is_not_overtaken_by_younger_pictures() {
    let mut line = Line::new();
    line.add("m1", owner(1), Priority::Standard, "m", 64);
    let places = |key: &BatchKey| match &*key.model {
        "m" => Places::Ready(4),
        _ => Places::Later { needs_room: true },
    };
    assert_eq!(line.step_with(&places, 100, 0), ["m1"]);
    line.add("n1", owner(1), Priority::Standard, "n", 64);
    line.add("m2", owner(1), Priority::Standard, "m", 64);
    assert_eq!(line.step_with(&places, 100, 1), ["m1", "m2"], "one load should serve all who wait");
    line.add("m3", owner(1), Priority::Standard, "m", 64);
    assert_eq!(line.step_with(&places, 100, 9), ["m1", "m2"], "m3 would keep m in use for ever");
    line.end("m1");
    line.end("m2");
    assert_eq!(line.step_with(&places, 100, 9), [""; 0]);
    assert_eq!(line.step(1, 9), ["n1"], "there is room now");
}

#[test]
fn an_urgent_picture_of_a_model_that_waits_for_room_holds_lesser_ones_back_at_once() {
    let mut line = Line::new();
    line.add("u", owner(1), Priority::Urgent, "n", 64);
    line.add("m", owner(1), Priority::Standard, "m", 64);
    let places = |key: &BatchKey| match &*key.model {
        "m" => Places::Ready(4),
        _ => Places::Later { needs_room: true },
    };
    assert_eq!(line.step_with(&places, 100, 0), [""; 0]);
}

#[test]
fn when_no_more_may_join_only_urgent_ones_do() {
    let mut line = Line::new();
    line.add("a", owner(1), Priority::Standard, "m", 64);
    assert_eq!(line.step_with(&|_| Places::Ready(4), 0, 0), [""; 0]);
    line.add("u", owner(1), Priority::Urgent, "m", 64);
    assert_eq!(line.step_with(&|_| Places::Ready(4), 0, 0), ["u"]);
}

#[test]
fn a_task_that_is_taken_back_leaves_the_queue_and_the_forecast() {
    let mut line = Line::new();
    let a = line.add("a", owner(1), Priority::Standard, "m", 64);
    line.add("b", owner(1), Priority::Standard, "m", 64);
    assert_eq!(line.queue.remove_task(&a).len(), 1);
    assert_eq!(line.queue.waiting(), [1, 0, 0]);
    assert_eq!(line.queue.forecast.counts(), ([1, 0, 0], 0));
    assert_eq!(line.step(4, 0), ["b"]);
}

#[test]
fn the_forecast_follows_the_order_of_service_and_measured_rates() {
    let mut line = Line::new();
    let a = line.add("a", owner(1), Priority::Standard, "m", 64);
    let b = line.add("b", owner(1), Priority::Standard, "m", 64);
    let c = line.add("c", owner(2), Priority::Standard, "m", 64);
    let u = line.add("u", owner(3), Priority::Urgent, "m", 64);
    let outlooks = line.queue.forecast.outlooks(line.queue.served());
    let order = |task: &TaskId| outlooks[task].position;
    assert_eq!([order(&u), order(&a), order(&c), order(&b)], [Some(0), Some(1), Some(2), Some(3)]);
    assert!(outlooks.values().all(|outlook| outlook.seconds.is_none()), "nothing was measured yet");
    // 64 cells, 2 rows, 10 steps: 1280 a task; at 1280 a second each takes one.
    line.queue.forecast.measured(&"m".into(), 1280.0, Duration::from_secs(1));
    let outlooks = line.queue.forecast.outlooks(line.queue.served());
    assert_eq!(outlooks[&b].seconds, Some(4.0));
    assert_eq!(line.step(1, 0), ["u"]);
    line.queue.forecast.worked(&u, 640.0);
    let outlooks = line.queue.forecast.outlooks(line.queue.served());
    assert_eq!((outlooks[&u].position, outlooks[&u].seconds), (None, Some(0.5)));
    assert_eq!((outlooks[&a].position, outlooks[&a].seconds), (Some(0), Some(1.5)));
}
