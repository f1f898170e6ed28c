//! How much memory there is for this process.

use std::path::Path;

/// What `functions.memory` is where nobody says and the system doesn't either.
const UNKNOWN: u64 = 4 << 30;

/// Half of the memory that this process may use: of the machine's, or of what its control group allows, whichever is
/// less. The other half is for the node itself and for the system's cache of its files.
pub(super) fn half() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| of_machine(&text));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group =
        of_group(&groups, |path| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(path)).ok());
    machine.into_iter().chain(group).min().unwrap_or(UNKNOWN) / 2
}

/// From `/proc/meminfo`.
fn of_machine(meminfo: &str) -> Option<u64> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix(" kB")?;
    kib.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// From `/proc/self/cgroup`: the least that the process's group, or one above it, allows.
fn of_group(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    // Version 2 has one hierarchy, number 0.
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limit = |folder: &Path| read(&folder.join("memory.max"))?.trim().parse::<u64>().ok();
    Path::new(path).ancestors().filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_all_groups_around_the_process_counts() {
        let read = |path: &Path| match path.to_str()? {
            "a/b/memory.max" => Some("max\n".to_owned()),
            "a/memory.max" => Some("1073741824\n".to_owned()),
            "memory.max" => Some("2147483648\n".to_owned()),
            _ => None,
        };
        assert_eq!(of_group("1:cpu:/x\n0::/a/b\n", read), Some(1 << 30));
        assert_eq!(of_group("0::/\n", |_| None), None);
        assert_eq!(of_machine("MemTotal:       24660000 kB\nMemFree: 1 kB\n"), Some(24_660_000 << 10));
    }

    #[test]
    fn there_is_always_some() {
        assert!(half() > 1 << 20);
    }
}
