//! What a person sees while a workflow runs: two bars on a terminal, a line a node elsewhere, nothing with `--quiet`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::named;
use crate::workflow::event::{Event, Listener};
use crate::workflow::{Checked, Graph};

/// Hears what happens.
pub(super) struct Watch<'a> {
    graph: &'a Graph,
    nodes: usize,
    bars: Option<Bars>,
    quiet: bool,
}

struct Bars {
    all: MultiProgress,
    nodes: ProgressBar,
    steps: ProgressBar,
}

impl<'a> Watch<'a> {
    /// Of a prompt that is about to run.
    pub(super) fn new(checked: &'a Checked, quiet: bool) -> Self {
        let nodes = checked.needed().len();
        let bars = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let all = MultiProgress::new();
            let style = |template: &str| {
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("━╸─")
            };
            let bar = all.add(ProgressBar::new(nodes as u64));
            bar.set_style(style("nodes {bar:32.red} {pos:>4}/{len}  {msg:.dim}"));
            let steps = all.add(ProgressBar::new(1));
            steps.set_style(style("steps {bar:32.red} {pos:>4}/{len}  {per_sec:.dim}  {eta:.dim}"));
            steps.enable_steady_tick(Duration::from_millis(200));
            Bars { all, nodes: bar, steps }
        });
        Self { graph: &checked.graph, nodes, bars, quiet }
    }

    /// A line for the person.
    pub(super) fn say(&self, line: &str) {
        if self.quiet {
            return;
        }
        let line = line.replace(['\n', '\r'], " ");
        match &self.bars {
            // Above the bars, so that it neither breaks them nor is overwritten.
            Some(bars) if !bars.nodes.is_finished() => {
                let _ = bars.all.println(line);
            }
            _ => {
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
    }

    /// Takes the bars off the screen.
    pub(super) fn finish(&self) {
        if let Some(bars) = &self.bars {
            bars.steps.finish_and_clear();
            bars.nodes.finish_and_clear();
        }
    }
}

impl Listener for Watch<'_> {
    fn tell(&self, event: Event) {
        match (event, &self.bars) {
            (Event::Executing { node }, Some(bars)) => {
                bars.nodes.set_message(named(self.graph, &node));
                bars.steps.set_position(0);
                bars.steps.set_length(1);
                bars.steps.reset_eta();
            }
            (Event::Executing { node }, None) => self.say(&format!("node {}", named(self.graph, &node))),
            (Event::Progress { value, max, .. }, Some(bars)) => {
                bars.steps.set_length(max as u64);
                bars.steps.set_position(value as u64);
            }
            (Event::Finished { .. }, Some(bars)) => bars.nodes.inc(1),
            (Event::Text { node, text }, _) => {
                self.say(&format!("node {}: {text}", named(self.graph, &node)));
            }
            (Event::Succeeded, None) => self.say(&format!("{} nodes done", self.nodes)),
            _ => {}
        }
    }
}
