//! The peak memory of a server on this machine: the process that listens on its port, as Linux tells it. `None`
//! elsewhere, and for servers that are not on this machine or not ours to look at.

use url::Url;

/// Most bytes that the process behind `url` has held (`VmHWM`).
pub(super) fn peak(url: &Url) -> Option<u64> {
    let local = match url.host()? {
        url::Host::Domain(name) => name == "localhost",
        url::Host::Ipv4(address) => address.is_loopback(),
        url::Host::Ipv6(address) => address.is_loopback(),
    };
    if !local {
        return None;
    }
    let inode = listening_inode(url.port_or_known_default()?)?;
    let process = owner(&format!("socket:[{inode}]"))?;
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// The socket that listens on a port.
fn listening_inode(port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|path| std::fs::read_to_string(path).ok());
    let suffix = format!(":{port:04X}");
    for table in tables {
        for line in table.lines().skip(1) {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, .., _] = &columns[..] else { continue };
            if local.ends_with(&suffix) && *state == LISTEN {
                return columns.get(9).map(|inode| (*inode).to_owned());
            }
        }
    }
    None
}

/// The process that has a file of this name open.
fn owner(name: &str) -> Option<std::path::PathBuf> {
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        for file in files.flatten() {
            if std::fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == name) {
                return Some(process.path());
            }
        }
    }
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_listens_on_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        assert!(peak(&url).unwrap() > 1 << 20);
        drop(listener);
        assert_eq!(peak(&Url::parse("http://192.0.2.1:80/").unwrap()), None);
    }
}
