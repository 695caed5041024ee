//! The command line: `generate`, `pack`, `run`, `preprocess`, `inspect`, `config`, `doctor`, `health`, `keys`. Each command is one
//! file; `run.rs` alone talks to networks (`run_workflow` through the engine), so that a server can take its place.

mod args;
mod bench;
mod config;
mod doctor;
mod error;
mod generate;
mod guide;
mod guide_args;
mod health;
mod inspect;
mod keys;
mod model;
mod options;
mod pack;
mod preprocess;
mod progress;
mod run;
mod run_workflow;
mod serve;
mod source;
mod speed_args;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command};
use error::CommandError;

/// Runs the program: reads the command line, does what it says, and says what went wrong.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // A server's log has a form of its own.
    if !matches!(cli.command, Command::Serve(_)) {
        start_logging(cli.verbose, cli.quiet);
    }
    let done = match &cli.command {
        Command::Generate(args) => generate::run(args, cli.quiet),
        Command::Pack(args) => pack::run(args, cli.quiet),
        Command::Run(args) => run_workflow::run(args, cli.quiet),
        Command::Preprocess(args) => preprocess::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Serve(args) => serve::run(args, cli.verbose, cli.quiet),
        Command::Config(args) => config::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Health(args) => health::run(args),
        Command::Bench(args) => bench::run(args, cli.quiet),
        Command::Keys(args) => keys::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{}", error.lines());
            error.status()
        }
    }
}

fn start_logging(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

/// Writes a line of results to standard output. A reader that has gone away is no error: the files are there.
fn print_result(line: &str) -> Result<(), CommandError> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(CommandError::plain(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}
