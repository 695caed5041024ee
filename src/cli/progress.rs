//! What a person sees while pictures are drawn: two bars on a terminal, a line a picture elsewhere, nothing with
//! `--quiet`. All of it on standard error; standard output belongs to results.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Progress of one command.
pub(super) struct Progress {
    bars: Option<Bars>,
    quiet: bool,
}

struct Bars {
    all: MultiProgress,
    steps: ProgressBar,
    images: ProgressBar,
}

impl Progress {
    /// Progress of `images` pictures of `steps` steps each.
    pub(super) fn new(images: usize, steps: usize, quiet: bool) -> Self {
        let bars = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let all = MultiProgress::new();
            let style = |template: &str| {
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("━╸─")
            };
            let pictures = all.add(ProgressBar::new(images as u64));
            pictures.set_style(style("pictures {bar:32.red} {pos:>4}/{len}"));
            let bar = all.add(ProgressBar::new((images * steps) as u64));
            bar.set_style(style("steps    {bar:32.red} {pos:>4}/{len}  {per_sec:.dim}  {eta:.dim}"));
            bar.enable_steady_tick(Duration::from_millis(200));
            Bars { all, steps: bar, images: pictures }
        });
        Self { bars, quiet }
    }

    /// `done` steps of all pictures together are behind.
    pub(super) fn steps_done(&self, done: usize) {
        if let Some(bars) = &self.bars {
            bars.steps.set_position(done as u64);
        }
    }

    /// One more picture is on the disk.
    pub(super) fn picture_done(&self, line: &str) {
        match &self.bars {
            Some(bars) => bars.images.inc(1),
            None => self.say(line),
        }
    }

    /// Runs `print`, which writes to standard output, with the bars off the screen: both may be one terminal.
    pub(super) fn beside_bars<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bars {
            Some(bars) => bars.all.suspend(print),
            None => print(),
        }
    }

    /// A line for the person.
    pub(super) fn say(&self, line: &str) {
        if self.quiet {
            return;
        }
        match &self.bars {
            // Above the bars, so that it neither breaks them nor is overwritten.
            Some(bars) => {
                let _ = bars.all.println(line);
            }
            None => {
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
    }

    /// Takes the bars off the screen.
    pub(super) fn finish(&self) {
        if let Some(bars) = &self.bars {
            bars.steps.finish_and_clear();
            bars.images.finish_and_clear();
        }
    }
}
