//! How often the kernel killed for want of memory.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use crate::clock::BootInstant;

/// A count older than this explains no end of now: between a kill and the end of what was killed lies
/// the time to give its memory back.
const SETTLED: Duration = Duration::from_secs(5);

/// Where the machine's count stands.
const MACHINE: &str = "/proc/vmstat";

/// The counts that would tell of a kill, and what they said before.
#[derive(Debug)]
pub(super) struct Kills {
    /// Where the process's own cgroup counts. Opened anew each time: a watch holds no descriptor for it.
    cgroup: Vec<String>,
    /// What was counted at the last two looks that were far enough apart, the older one first.
    before: [Counts; 2],
    looked_at: BootInstant,
}

/// What was counted; nothing where a count can't be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counts {
    cgroup: Option<u64>,
    machine: Option<u64>,
}

impl Kills {
    /// Begins to count for a process whose `/proc/PID/cgroup` says `cgroups`.
    pub(super) fn of(cgroups: &str) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let cgroup = counters(cgroups, &mounts);
        let mut kills = Self { cgroup, before: [Counts::default(); 2], looked_at: BootInstant::now() };
        kills.before = [kills.counts(); 2];
        kills
    }

    /// Counts anew, so that what happened long ago explains nothing.
    pub(super) fn look(&mut self) {
        let now = BootInstant::now();
        if now.since(self.looked_at) >= SETTLED {
            self.looked_at = now;
            let [_, newer] = self.before;
            self.before = [newer, self.counts()];
        }
    }

    /// Whether the kernel killed lately: in the cgroup, or on the machine where no cgroup is counted any more.
    pub(super) fn went_up(&self) -> bool {
        let ([before, _], now) = (self.before, self.counts());
        match (before.cgroup, now.cgroup) {
            (Some(before), Some(now)) => now > before,
            _ => before.machine.zip(now.machine).is_some_and(|(before, now)| now > before),
        }
    }

    fn counts(&self) -> Counts {
        Counts { cgroup: self.cgroup.iter().find_map(|path| oom_kills(path)), machine: oom_kills(MACHINE) }
    }
}

/// The line `oom_kill N` of `memory.events.local`, `memory.oom_control` or `/proc/vmstat`.
fn oom_kills(path: &str) -> Option<u64> {
    let mut text = String::new();
    File::open(path).ok()?.take(64 << 10).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// The files that count the kills in a process's own cgroup, the one that the controller is in first.
fn counters(cgroups: &str, mounts: &str) -> Vec<String> {
    cgroups
        .lines()
        .filter_map(|line| {
            // `4:memory:/path` of v1, `0::/path` of v2 (cgroups(7)).
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let file = match controllers {
                "" => "memory.events.local",
                _ if controllers.split(',').any(|one| one == "memory") => "memory.oom_control",
                _ => return None,
            };
            let (root, point) = mount(mounts, !controllers.is_empty())?;
            let below = if root == "/" { path } else { path.strip_prefix(root)? };
            // What leads out of the agent's own view isn't the process's cgroup.
            (!below.split('/').any(|part| part == "..")).then(|| format!("{point}{below}/{file}"))
        })
        .collect()
}

/// What of a hierarchy is mounted where (proc_pid_mountinfo(5)).
fn mount(mounts: &str, v1: bool) -> Option<(&str, &str)> {
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let found = match kind.next()? {
            "cgroup2" => !v1,
            "cgroup" => v1 && kind.nth(1)?.split(',').any(|option| option == "memory"),
            _ => false,
        };
        let mut place = place.split(' ').skip(3);
        found.then_some((place.next()?, place.next()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        33 30 0:29 /box /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_counting_file_is_the_one_of_the_process_s_own_cgroup() {
        let of = |cgroups: &str| counters(cgroups, MOUNTS);
        assert_eq!(of("4:memory:/a:b\n"), ["/sys/fs/cgroup/memory/a:b/memory.oom_control"]);
        assert_eq!(of("5:cpu:/a\n0::/box/a\n"), ["/sys/fs/cgroup/unified/a/memory.events.local"]);
        // Beyond what is mounted here, nothing is said of it.
        assert!(of("0::/elsewhere\n").is_empty());
        assert!(of("4:memory:/../a\n").is_empty());
        assert!(of("nonsense\n").is_empty());
        assert!(counters("0::/a\n", "").is_empty());
    }

    #[test]
    fn the_machine_counts_where_no_cgroup_does() {
        let kills = Kills::of("0::/nowhere-at-all\n");
        assert_eq!(kills.counts().cgroup, None);
        assert!(kills.counts().machine.is_some());
        assert!(!kills.went_up());
        let older = Counts { cgroup: None, machine: kills.counts().machine.map(|count| count.wrapping_sub(1)) };
        let kills = Kills { before: [older; 2], ..kills };
        assert_eq!(kills.went_up(), older.machine < kills.counts().machine);
    }
}
