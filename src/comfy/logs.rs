//! The last lines of the log, for the terminal of ComfyUI's front end. A layer of `tracing` feeds them.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use jiff::Zoned;
use serde::Serialize;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that are kept, as many as ComfyUI keeps.
const LINES: usize = 300;
/// Bytes of a line; the rest is cut off.
const LINE: usize = 4096;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// When, as `2025-10-04T12:00:00.123456`, local time.
    pub t: String,
    /// The line, with its end.
    pub m: String,
}

/// The lines of this process: like the log itself, there is one.
static LOG: LazyLock<Log> = LazyLock::new(Log::default);

#[derive(Debug, Default)]
struct Log(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<Entry>,
    /// Lines that there have been.
    count: u64,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8]) {
        let mut m = String::from_utf8_lossy(&line[..line.len().min(LINE)]).into_owned();
        if line.len() > LINE {
            m.push_str("…\n");
        }
        let t = Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%.6f").to_string();
        let mut lines = self.lock();
        if lines.kept.len() >= LINES {
            lines.kept.pop_front();
        }
        lines.kept.push_back(Entry { t, m });
        lines.count += 1;
    }

    fn since(&self, count: u64) -> (Vec<Entry>, u64) {
        let lines = self.lock();
        let new = usize::try_from(lines.count.saturating_sub(count)).unwrap_or(usize::MAX);
        let skip = lines.kept.len().saturating_sub(new);
        (lines.kept.iter().skip(skip).cloned().collect(), lines.count)
    }
}

/// The lines after the first `count` that there have been, as far as they are kept, and how many there have been.
pub fn since(count: u64) -> (Vec<Entry>, u64) {
    LOG.since(count)
}

/// Writes the log's lines here.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogWriter;

/// One line that is being written.
#[derive(Debug, Default)]
pub struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = (LINE + 1).saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            LOG.add(&self.0);
        }
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_new_ones_are_told_apart() {
        let log = Log::default();
        for line in 0..LINES + 10 {
            log.add(format!("{line}\n").as_bytes());
        }
        let (all, count) = log.since(0);
        assert_eq!((all.len(), all[0].m.as_str()), (LINES, "10\n"));
        assert_eq!(all[0].t.len(), 26);
        log.add(b"new\n");
        let (new, _) = log.since(count);
        assert_eq!(new.iter().map(|entry| entry.m.as_str()).collect::<Vec<_>>(), ["new\n"]);
        assert!(log.since(count + 1).0.is_empty());
    }

    #[test]
    fn a_line_is_bounded() {
        let log = Log::default();
        let mut line = Line::default();
        line.write_all(&vec![b'x'; 1 << 20]).unwrap();
        log.add(&std::mem::take(&mut line.0));
        assert!(log.since(0).0[0].m.len() < LINE + 10);
    }
}
