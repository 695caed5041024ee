//! The `darkroom` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    darkroom::cli::main()
}
