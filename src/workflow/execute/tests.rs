//! Toy nodes, run as real ones are: order, lists, cache, failures, interrupts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use darkroom_pipelines::{Picture, Source};

use super::*;
use crate::config::Config;
use crate::engine::{EngineOptions, Sources};
use crate::metrics::Metrics;
use crate::service::engine_options;
use crate::task::{BlobId, ImageSpec, TaskError, TaskErrorKind};
use crate::workflow::check::check;
use crate::workflow::context::{Outputs, Slot};
use crate::workflow::graph::Graph;
use crate::workflow::interface::{Choices, Hidden, Interface, int, link as linked};
use crate::workflow::value::Kind;

struct NoSources;

impl Sources for NoSources {
    fn open(&self, _: &ImageSpec) -> Result<Source, TaskError> {
        Err(TaskError { kind: TaskErrorKind::Internal, message: "there are none".into() })
    }

    fn picture(&self, _: &BlobId, _: &str) -> Result<Picture, TaskError> {
        Err(TaskError { kind: TaskErrorKind::Internal, message: "there are none".into() })
    }
}

fn number(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    Ok(Outputs::one(Value::Int(inputs.int("value")?)))
}

fn add(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    Ok(Outputs::one(Value::Int(inputs.int("a")? + inputs.int("b")?)))
}

fn count(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let values = (0..inputs.int("n")?).map(Value::Int).collect();
    Ok(Outputs { slots: vec![Slot::List(values)], ui: None })
}

fn sum(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let mut sum = 0;
    for value in inputs.list("a")? {
        let Value::Int(value) = value else { return Err(NodeError::input("a", "is no number")) };
        sum += value;
    }
    Ok(Outputs::one(Value::Int(sum)))
}

fn show(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let value = inputs.int("a")?;
    Ok(Outputs::default().showing(json!({ "text": [value.to_string()] })))
}

fn pass(_: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    Ok(Outputs::one(Value::Int(0)))
}

fn pass_shown(_: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    Ok(Outputs::one(Value::Int(0)).showing(json!({ "dump": [context.node] })))
}

fn fail(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    match inputs.int("how")? {
        0 => Err(NodeError::Failed("it is broken".into())),
        1 => Err(NodeError::OutOfMemory("Allocation on device".into())),
        2 => Err(NodeError::input("how", "is not good")),
        _ => panic!("on purpose"),
    }
}

fn until_interrupted(_: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    context.progress(1, 9);
    loop {
        context.check_interrupt()?;
        std::thread::yield_now();
    }
}

/// How often `Gate` ran, and whether it may go on.
static GATE: (Mutex<(usize, bool)>, Condvar) = (Mutex::new((0, false)), Condvar::new());

fn gate(_: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let mut gate = GATE.0.lock().unwrap();
    gate.0 += 1;
    GATE.1.notify_all();
    drop(GATE.1.wait_timeout_while(gate, Duration::from_secs(60), |gate| !gate.1).unwrap());
    Ok(Outputs::one(Value::Int(7)))
}

fn metadata_text(_: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    Ok(Outputs::default().showing(json!({ "chunks": context.metadata.chunks() })))
}

static FRESH: AtomicUsize = AtomicUsize::new(0);

fn fresh(_: &Inputs, _: &Context<'_>) -> Option<String> {
    Some(FRESH.fetch_add(1, Ordering::Relaxed).to_string())
}

/// A node with links of any type from `a` to `f`, all optional, which gives 0.
fn joint(class: &'static str) -> Interface {
    ["a", "b", "c", "d", "e", "f"]
        .into_iter()
        .fold(Interface::new(class, "t"), |node, name| node.optional(linked(name, Kind::ANY)))
        .output(Kind::ANY)
}

fn registry() -> Registry {
    let mut registry = Registry::default();
    let value = |name| linked(name, Kind::INT);
    registry.add(Interface::new("Number", "t").input(int("value", 0, -1000, 1000)).output(Kind::INT), number);
    let adding = Interface::new("Add", "t").input(value("a")).optional(int("b", 100, 0, 1000));
    registry.add(adding.output(Kind::INT), add);
    let counting = Interface::new("Count", "t").input(int("n", 0, 0, 1000));
    registry.add(counting.list_output("n", Kind::INT), count);
    registry.add(Interface::new("Sum", "t").input(value("a")).output(Kind::INT).takes_lists(), sum);
    registry.add(Interface::new("Show", "t").input(value("a")).output_node(), show);
    registry.add(joint("Joint"), pass);
    registry.add(joint("Out").hidden("id", Hidden::UniqueId).output_node(), pass_shown);
    registry.add(Interface::new("Fail", "t").input(int("how", 0, 0, 9)).output(Kind::INT), fail);
    registry.add(Interface::new("Forever", "t").output(Kind::INT), until_interrupted);
    registry.add(Interface::new("Gate", "t").output(Kind::INT), gate);
    registry.add(Interface::new("Metadata", "t").output_node(), metadata_text);
    registry.add(Interface::new("Fresh", "t").output(Kind::INT), pass).changed = Some(fresh);
    registry
}

/// Writes down what it hears.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>, CancellationToken, Option<&'static str>);

impl Listener for Heard {
    fn tell(&self, event: Event) {
        let line = match event {
            Event::Started => "started".to_owned(),
            Event::Cached { nodes } => format!("cached [{}]", nodes.join(",")),
            Event::Executing { node } => format!("+{node}"),
            Event::Progress { node, value, max } => format!("{node}: {value}/{max}"),
            Event::Executed { node, output, .. } => format!("!{node} {output}"),
            Event::Finished { node } => format!("-{node}"),
            Event::Succeeded => "succeeded".to_owned(),
            Event::Failed(failure) => format!("failed {} {}", failure.node, failure.message),
            Event::Interrupted { node, class, executed } => {
                format!("interrupted {node} {class} [{}]", executed.join(","))
            }
            other => format!("{other:?}"),
        };
        if self.2.is_some_and(|last| last == line) {
            self.1.cancel();
        }
        self.0.lock().unwrap().push(line);
    }
}

impl Heard {
    fn lines(self) -> Vec<String> {
        self.0.into_inner().unwrap()
    }
}

struct World {
    registry: Registry,
    cache: Cache,
    engine: Engine,
    catalog: Arc<Catalog>,
    folders: Folders,
}

impl World {
    fn new() -> Self {
        let catalog = Arc::new(Catalog::open(None, None).unwrap());
        let options = EngineOptions { devices: Vec::new(), ..engine_options(&Config::default()) };
        let metrics = Arc::new(Metrics::default());
        let (engine, _) = Engine::start(options, Arc::clone(&catalog), metrics, Arc::new(NoSources)).unwrap();
        let folders = Folders::below(std::path::Path::new("nowhere"), None);
        Self { registry: registry(), cache: Cache::new(1 << 20), engine, catalog, folders }
    }

    fn checked(&self, prompt: &Ordered) -> Checked {
        let graph = Graph::new(prompt.clone()).unwrap();
        let choices = |_: &Choices| Vec::new();
        check(&graph, &self.registry, &choices, &self.folders, None).unwrap()
    }

    fn execute(&self, checked: &Checked, heard: &Heard, keep: &[String]) -> RunResult {
        let surroundings = Surroundings {
            registry: &self.registry,
            cache: &self.cache,
            engine: &self.engine,
            catalog: &self.catalog,
            folders: &self.folders,
        };
        let extra: Ordered = serde_json::from_str(r#"{"workflow": {"z": 1, "a": 2}}"#).unwrap();
        execute(
            surroundings,
            Run {
                prompt_id: "p",
                checked,
                extra_pnginfo: Some(&extra),
                listener: heard,
                interrupt: &heard.1,
                keep,
            },
        )
    }

    fn run(&self, prompt: &Ordered) -> (RunResult, Vec<String>) {
        let heard = Heard::default();
        let result = self.execute(&self.checked(prompt), &heard, &[]);
        (result, heard.lines())
    }
}

/// `1 Number value=5; 2 Add a=@1 b=3`: nodes and inputs in this order, `@` for links.
fn prompt(text: &str) -> Ordered {
    let nodes = text.split(';').map(str::trim).filter(|node| !node.is_empty()).map(|node| {
        let mut words = node.split_whitespace();
        let (id, class) = (words.next().unwrap(), words.next().unwrap());
        let inputs = words.map(|input| {
            let (name, value) = input.split_once('=').unwrap();
            let value = match value.strip_prefix('@') {
                Some(node) => json!([node, 0]),
                None => serde_json::from_str(value).unwrap(),
            };
            (name.to_owned(), Ordered::from(value))
        });
        let inputs = Ordered::Object(inputs.collect());
        let class = Ordered::String(class.to_owned());
        let members = [("class_type".to_owned(), class), ("inputs".to_owned(), inputs)];
        (id.to_owned(), Ordered::Object(members.into_iter().collect()))
    });
    Ordered::Object(nodes.collect())
}

#[test]
fn values_travel_along_links_and_what_is_left_out_has_its_default() {
    let world = World::new();
    let (result, heard) = world.run(&prompt("1 Number value=5; 2 Add a=@1; 3 Add a=@2 b=3; 4 Show a=@3"));
    assert_eq!(result.ending, Ending::Succeeded);
    let expected = [
        "started",
        "cached []",
        "+1",
        "-1",
        "+2",
        "-2",
        "+3",
        "-3",
        "+4",
        "!4 {\"text\":[\"108\"]}",
        "-4",
        "succeeded",
    ];
    assert_eq!(heard, expected);
    assert_eq!(result.executed, ["1", "2", "3", "4"]);
    let (outputs, meta) = result.history();
    assert_eq!(outputs, json!({ "4": { "text": ["108"] } }));
    let about = json!({ "node_id": "4", "display_node": "4", "parent_node": null, "real_node_id": "4" });
    assert_eq!(meta, json!({ "4": about }));
}

/// Order in which nodes were told to run, and to show something.
fn steps(heard: &[String]) -> Vec<&str> {
    let lines = heard.iter().filter(|line| line.starts_with(['+', '!']));
    lines.map(|line| line.split(' ').next().unwrap_or_default()).collect()
}

#[test]
fn nodes_run_in_the_order_that_comfyui_told_of_two_recorded_prompts() {
    // Wiring, outputs in the order that ComfyUI picked, and what its `executing` and `executed` said.
    let recorded = [
        (
            "1 Joint; 2 Joint a=@1; 3 Joint a=@1; 4 Out a=@2; 5 Out a=@3; 6 Joint a=@1; 7 Joint;
             8 Joint a=@6 b=@4 c=@5 d=@7; 9 Out a=@8; 10 Joint a=@9 b=@1; 11 Out a=@10; 12 Out a=@10",
            "11 9 12 4 5",
            "+1 +3 +5 !5 +2 +4 !4 +7 +6 +8 +9 !9 +10 +11 !11 +12 !12",
        ),
        (
            "1 Joint; 2 Joint a=@1; 3 Joint a=@1; 4 Out a=@2; 5 Out a=@3; 6 Joint a=@1; 7 Joint; 8 Joint;
             9 Joint a=@8; 10 Out a=@9; 11 Out a=@9; 12 Joint a=@4 b=@5 c=@7 d=@9; 13 Joint;
             14 Joint a=@6 b=@12 c=@12 d=@13; 15 Out a=@14; 16 Joint a=@15 b=@1; 17 Out a=@16; 18 Out a=@16",
            "11 4 10 15 17 5 18",
            "+8 +9 +11 !11 +10 !10 +1 +2 +4 !4 +3 +5 !5 +13 +6 +7 +12 +14 +15 !15 +16 +17 !17 +18 !18",
        ),
    ];
    for (wiring, outputs, expected) in recorded {
        // Nodes of one wiring would be taken for each other: each gets a value of its own.
        let mut prompt = prompt(wiring);
        let Ordered::Object(nodes) = &mut prompt else { panic!("an object") };
        for (id, node) in nodes {
            let Ordered::Object(node) = node else { panic!("an object") };
            let Some(Ordered::Object(inputs)) = node.get_mut("inputs") else { panic!("an object") };
            inputs.insert("own".into(), Ordered::String(id.clone()));
        }
        let world = World::new();
        let mut checked = world.checked(&prompt);
        checked.outputs = outputs.split(' ').map(str::to_owned).collect();
        let heard = Heard::default();
        world.execute(&checked, &heard, &[]);
        assert_eq!(steps(&heard.lines()), expected.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn only_what_the_wanted_outputs_need_runs() {
    let world = World::new();
    let prompt = prompt("1 Number value=5; 2 Show a=@1; 3 Number value=6; 4 Show a=@3; 5 Number value=7");
    let mut checked = world.checked(&prompt);
    checked.outputs = vec!["4".into()];
    let heard = Heard::default();
    world.execute(&checked, &heard, &[]);
    assert_eq!(steps(&heard.lines()), ["+3", "+4", "!4"]);
}

#[test]
fn a_list_makes_the_next_nodes_run_for_each_value_and_shorter_ones_repeat_their_last() {
    let world = World::new();
    let (result, _) = world.run(&prompt(
        "1 Count n=3; 2 Number value=10; 3 Add a=@1; 4 Add a=@3 b=1; 5 Show a=@4; 6 Add a=@2 b=0; 7 Show a=@6",
    ));
    assert_eq!(result.outputs["5"], json!({ "text": ["101", "102", "103"] }));
    assert_eq!(result.outputs["7"], json!({ "text": ["10"] }));
    let (result, _) = world
        .run(&prompt("1 Count n=3; 2 Count n=2; 3 Joint a=@1 b=@2; 4 Add a=@1; 5 Sum a=@4; 6 Show a=@5"));
    assert_eq!(result.outputs["6"], json!({ "text": ["303"] }));
}

#[test]
fn an_empty_list_is_an_error_that_names_the_input() {
    let (result, _) = World::new().run(&prompt("1 Count n=0; 2 Add a=@1; 3 Show a=@2"));
    let Ending::Failed(failure) = result.ending else { panic!("{:?}", result.ending) };
    assert_eq!((&*failure.node, &*failure.message), ("2", "a: the list that comes to it is empty\n"));
}

#[test]
fn what_was_computed_before_is_taken_from_the_cache_and_outputs_are_told_again() {
    let world = World::new();
    let first = prompt("1 Number value=5; 2 Add a=@1; 3 Show a=@2");
    world.run(&first);
    let (result, heard) = world.run(&first);
    assert_eq!(heard, ["started", "cached [1,2,3]", "!3 {\"text\":[\"105\"]}", "-3", "succeeded"]);
    assert_eq!(result.outputs["3"], json!({ "text": ["105"] }));
    assert!(result.executed.is_empty());
    // Ids and undeclared order do not matter; another value does, with all that comes after it.
    let renamed = prompt("9 Show a=@8; 8 Add a=@7; 7 Number value=5");
    assert_eq!(steps(&world.run(&renamed).1), ["!9"]);
    let other = prompt("1 Number value=5; 2 Add a=@1 b=7; 3 Show a=@2");
    let (_, heard) = world.run(&other);
    assert_eq!(heard[1], "cached [1]");
    assert_eq!(steps(&heard), ["+2", "+3", "!3"]);
    world.cache.clear();
    assert_eq!(world.run(&first).1[1], "cached []");
}

#[test]
fn two_nodes_that_do_the_same_run_once() {
    let (result, heard) =
        World::new().run(&prompt("1 Number value=5; 2 Number value=5; 3 Joint a=@1 b=@2; 4 Out a=@3"));
    // As in ComfyUI, what is found in the cache on the way is told with nothing to show.
    assert_eq!(steps(&heard), ["+2", "!1", "+3", "+4", "!4"]);
    assert!(heard.contains(&"!1 null".to_owned()), "{heard:?}");
    assert_eq!(result.executed, ["2", "3", "4"]);
}

#[test]
fn a_node_that_asks_for_its_id_is_not_taken_for_another() {
    let (_, heard) = World::new().run(&prompt("1 Number value=5; 2 Out a=@1; 3 Out a=@1"));
    assert_eq!(steps(&heard), ["+1", "+2", "!2", "+3", "!3"]);
}

#[test]
fn a_node_that_says_it_has_changed_runs_again_with_all_after_it() {
    let world = World::new();
    let prompt = prompt("1 Fresh; 2 Number value=5; 3 Joint a=@1 b=@2; 4 Out a=@3");
    world.run(&prompt);
    assert_eq!(steps(&world.run(&prompt).1), ["+1", "+3", "+4", "!4"]);
}

#[test]
fn a_cache_without_room_changes_nothing_but_the_time() {
    let world = World { cache: Cache::new(0), ..World::new() };
    let prompt = prompt("1 Number value=5; 2 Add a=@1; 3 Add a=@2; 4 Show a=@3; 5 Show a=@1");
    for _ in 0..2 {
        let (result, heard) = world.run(&prompt);
        assert_eq!(heard[1], "cached []");
        assert_eq!(result.outputs["4"], json!({ "text": ["205"] }));
        assert_eq!(result.outputs["5"], json!({ "text": ["5"] }));
    }
}

#[test]
fn a_failure_names_the_node_its_inputs_and_what_had_run() {
    let world = World::new();
    let expect = [
        (0, "RuntimeError", "it is broken\n"),
        (2, "ValueError", "how: is not good\n"),
        (3, "RuntimeError", "the node stopped at a mistake of its own: on purpose\n"),
    ];
    for (how, kind, message) in expect {
        let text = format!("1 Number value={how}; 2 Show a=@1; 3 Fail how={how}; 4 Add a=@3; 5 Show a=@4");
        let (result, heard) = world.run(&prompt(&text));
        let Ending::Failed(failure) = result.ending else { panic!("{:?}", result.ending) };
        let expected = Failure {
            node: "3".into(),
            class: "Fail".into(),
            executed: vec!["1".into(), "2".into()],
            message: message.into(),
            kind: kind.into(),
            inputs: json!({ "how": [how] }),
        };
        assert_eq!(*failure, expected);
        assert_eq!(heard.last().unwrap(), &format!("failed 3 {message}"));
        assert!(result.outputs.contains_key("2"), "what was shown before stays");
    }
    let (result, _) = world.run(&prompt("1 Fail how=1; 2 Show a=@1"));
    let Ending::Failed(failure) = result.ending else { panic!("{:?}", result.ending) };
    assert_eq!(failure.kind, "torch.OutOfMemoryError");
    assert!(failure.message.starts_with("Allocation on device\nThis error means you ran out of memory"));
}

#[test]
fn what_failed_is_tried_again() {
    let world = World::new();
    let prompt = prompt("1 Fail how=0; 2 Show a=@1");
    for _ in 0..2 {
        let (_, heard) = world.run(&prompt);
        assert_eq!(heard, ["started", "cached []", "+1", "failed 1 it is broken\n"]);
    }
}

#[test]
fn an_interrupt_ends_the_node_that_runs() {
    let world = World::new();
    let checked = world.checked(&prompt("1 Number value=1; 2 Show a=@1; 3 Forever; 4 Show a=@3"));
    let heard = Heard(Mutex::default(), CancellationToken::new(), Some("3: 1/9"));
    let result = world.execute(&checked, &heard, &[]);
    assert_eq!(result.ending, Ending::Interrupted { node: "3".into(), class: "Forever".into() });
    assert_eq!(heard.lines().last().unwrap(), "interrupted 3 Forever [1,2]");
}

#[test]
fn an_interrupt_between_nodes_is_told_of_the_next_one() {
    let world = World::new();
    let checked = world.checked(&prompt("1 Number value=1; 2 Add a=@1; 3 Show a=@2"));
    let heard = Heard(Mutex::default(), CancellationToken::new(), Some("-1"));
    world.execute(&checked, &heard, &[]);
    assert_eq!(heard.lines(), ["started", "cached []", "+1", "-1", "+2", "interrupted 2 Add [1]"]);
}

#[test]
fn prompts_at_once_that_want_the_same_compute_it_once() {
    let world = World::new();
    let checked = world.checked(&prompt("1 Gate; 2 Show a=@1"));
    let all: Vec<Vec<String>> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let heard = Heard::default();
                    let result = world.execute(&checked, &heard, &[]);
                    assert_eq!(result.outputs["2"], json!({ "text": ["7"] }));
                    heard.lines()
                })
            })
            .collect();
        let gate = GATE.0.lock().unwrap();
        let (mut gate, _) =
            GATE.1.wait_timeout_while(gate, Duration::from_secs(60), |gate| gate.0 == 0).unwrap();
        gate.1 = true;
        drop(gate);
        GATE.1.notify_all();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(GATE.0.lock().unwrap().0, 1);
    for heard in all {
        assert_eq!(heard.last().unwrap(), "succeeded");
        assert!(heard.contains(&"!2 {\"text\":[\"7\"]}".to_owned()), "{heard:?}");
    }
}

#[test]
fn ten_thousand_nodes_in_a_row_and_side_by_side_run() {
    let world = World::new();
    let mut text = "0 Number value=1;".to_owned();
    for index in 1..10_000 {
        text.push_str(&format!("{index} Add a=@{} b=1;", index - 1));
    }
    text.push_str("s Show a=@9999");
    let (result, _) = world.run(&prompt(&text));
    assert_eq!(result.outputs["s"], json!({ "text": ["10000"] }));
    let mut text = "0 Number value=1;".to_owned();
    for index in 1..5_000 {
        text.push_str(&format!("{index} Add a=@0 b={}; s{index} Show a=@{index};", index % 1000));
    }
    let (result, _) = world.run(&prompt(&text));
    assert_eq!((result.ending, result.outputs.len()), (Ending::Succeeded, 4_999));
}

#[test]
fn values_of_nodes_that_are_asked_for_are_kept() {
    let world = World { cache: Cache::new(0), ..World::new() };
    let checked = world.checked(&prompt("1 Count n=2; 2 Add a=@1; 3 Show a=@2; 4 Number value=9"));
    let keep = ["2".to_owned(), "4".to_owned(), "none".to_owned()];
    let result = world.execute(&checked, &Heard::default(), &keep);
    let ints = |id: &str| -> Vec<i128> {
        let values = result.values[id].slots[0].iter();
        values.map(|value| if let Value::Int(value) = value { *value } else { panic!("{value:?}") }).collect()
    };
    assert_eq!((ints("2"), ints("4"), result.values.len()), (vec![100, 101], vec![9], 2));
}

#[test]
fn pictures_carry_the_prompt_as_it_runs_in_the_order_it_came() {
    let (result, _) = World::new().run(&prompt("9 Metadata; 1 Number value=\"5\"; 2 Show a=@1"));
    let text = concat!(
        r#"{"9": {"class_type": "Metadata", "inputs": {}}, "#,
        r#""1": {"class_type": "Number", "inputs": {"value": 5}}, "#,
        r#""2": {"class_type": "Show", "inputs": {"a": ["1", 0]}}}"#
    );
    let chunks = json!([["prompt", text], ["workflow", r#"{"z": 1, "a": 2}"#]]);
    assert_eq!(result.outputs["9"]["chunks"], chunks);
}
