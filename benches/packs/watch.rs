//! What a process took over a while: peak memory, and how much of the machine's processors others took meanwhile, which
//! tells whether the times mean anything.

use std::fs;
use std::time::Instant;

use crate::spread::rounded;

/// A process that is being watched.
pub(crate) struct Watch {
    pid: u32,
    started: Instant,
    ticks: Ticks,
}

/// What was seen.
pub(crate) struct Seen {
    pub(crate) seconds: f64,
    /// Largest resident size, MiB.
    pub(crate) peak_mib: u64,
    /// Part of the machine's processor time that other processes took.
    pub(crate) others: f64,
}

impl Watch {
    /// Forgets the process' peak so far; where the system refuses, the peak is that of its life.
    pub(crate) fn begin(pid: u32) -> Self {
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        Self { pid, ticks: Ticks::now(pid), started: Instant::now() }
    }

    pub(crate) fn end(self) -> Seen {
        let seconds = self.started.elapsed().as_secs_f64();
        let (from, to) = (self.ticks, Ticks::now(self.pid));
        let others = (to.busy - from.busy) - (to.own - from.own);
        let all = (to.all - from.all).max(1.0);
        Seen { seconds, peak_mib: peak_mib(self.pid), others: rounded((others / all).max(0.0)) }
    }
}

/// Processor time in clock ticks: of the machine, and of one process.
struct Ticks {
    all: f64,
    busy: f64,
    own: f64,
}

impl Ticks {
    fn now(pid: u32) -> Self {
        let machine = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = machine.lines().next().unwrap_or_default();
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user already.
        let spent: Vec<f64> =
            line.split_whitespace().skip(1).take(8).filter_map(|text| text.parse().ok()).collect();
        let all: f64 = spent.iter().sum();
        let idle: f64 = spent.iter().skip(3).take(2).sum();
        let process = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in brackets, may hold anything; user and system time are 12 and 13 fields behind it.
        let fields = process.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let own = fields.skip(11).take(2).filter_map(|text| text.parse::<f64>().ok()).sum();
        Self { all, busy: all - idle, own }
    }
}

fn peak_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) >> 10
}
