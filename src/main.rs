//! The `darkroom` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    keep_freed_memory();
    darkroom::cli::main()
}

/// A step allocates and frees the same large tensors as the step before. glibc would map each anew and give it
/// back to the system, at the cost of a page fault every 4 KiB. Kept on the heap they are used again; the peak stays
/// the same.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    const NEVER: libc::c_int = -1;
    // SAFETY: called before any thread is started; both settings only change how memory is had from the system.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, NEVER);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}
