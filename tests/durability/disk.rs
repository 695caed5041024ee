//! A data folder that can run out of room while a server writes to it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::server::{Server, program};

/// Mounts a small disk of its own on `$1`, which only this process and its children see, and becomes the server.
const ON_SMALL_DISK: &str = r#"mount -t tmpfs -o size=24m none "$1" && shift && exec "$@""#;
/// Writes beyond a file's greatest length fail as they do on a full disk, and do not end the process.
const WITH_FILE_LIMIT: &str = r#"trap '' XFSZ; shift; exec "$@""#;
/// The greatest length of a file while it counts as full, bytes: less than any picture or database has.
const FULL_AT: u64 = 256;

/// How it runs out of room.
pub(crate) enum Disk {
    /// A small disk, filled by this file.
    Small { filler: PathBuf },
    /// A limit on the length of files, for whoever may not mount disks.
    Limit { pid: u32 },
}

impl Disk {
    /// Starts a server on `data`, which is such a disk.
    pub(crate) fn start(data: &Path, more: &[&str]) -> (Server, Self) {
        let small = may_mount(data);
        let mut command = if small {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", ON_SMALL_DISK, "sh"]);
            command
        } else {
            eprintln!("NO DISK CAN BE MOUNTED HERE: a limit on the length of files stands for a full one");
            let mut command = Command::new("sh");
            command.args(["-c", WITH_FILE_LIMIT, "sh"]);
            command
        };
        let inner = program();
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.arg(data).arg(inner.get_program());
        command.args(["serve", "--port", "0", "--data-dir"]).arg(data).args(more).stderr(Stdio::null());
        let server = Server::start_command(command);
        let pid = server.pid();
        let seen_by_server = format!("/proc/{pid}/root{}", data.display());
        let disk = if small {
            Self::Small { filler: Path::new(&seen_by_server).join("filler") }
        } else {
            Self::Limit { pid }
        };
        (server, disk)
    }

    /// From now on nothing can be written.
    pub(crate) fn fill(&self) {
        match self {
            Self::Small { filler } => {
                let mut file = File::create(filler).unwrap();
                for size in [1 << 16, 1 << 12, 1] {
                    let zeros = vec![0; size];
                    while file.write_all(&zeros).is_ok() {}
                }
            }
            Self::Limit { pid } => limit_files(*pid, &FULL_AT.to_string()),
        }
    }

    /// There is room again.
    pub(crate) fn make_room(&self) {
        match self {
            Self::Small { filler } => std::fs::remove_file(filler).unwrap(),
            Self::Limit { pid } => limit_files(*pid, "unlimited"),
        }
    }
}

fn limit_files(pid: u32, bytes: &str) {
    let arguments = [format!("--pid={pid}"), format!("--fsize={bytes}:")];
    assert!(Command::new("prlimit").args(arguments).status().unwrap().success());
}

fn may_mount(data: &Path) -> bool {
    if std::env::var_os("DARKROOM_TEST_NO_MOUNT").is_some() {
        return false;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", ON_SMALL_DISK, "sh"]).arg(data).arg("true");
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
