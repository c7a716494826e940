//! Where a process stands in the tree of cgroups, and what that says of it: unit, slice, run,
//! container.
//!
//! A path in `/proc/PID/cgroup` is the kernel's word, the names in it are whoever's who made the
//! directories. Below a directory that belongs to a user (a delegated subtree: `user@1000.service`,
//! a rootless container), that user chooses names freely. So a unit, a slice or a container is
//! believed only as far as every directory above the name belongs to root and to nobody else.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, fgetxattr, fstat, openat, statat};
use rustix::io::Errno;

use super::process::{FileId, no_descriptors};
use super::selector::hexadecimal;

/// The suffixes of units that have processes (systemd.unit(5), "unit files" with a cgroup).
const UNIT_SUFFIXES: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// The longest unit name (systemd.unit(5)).
const UNIT_NAME_LIMIT: usize = 255;

/// Where the service manager says which run of a unit is the present one.
const UNITS: &str = "/run/systemd/units";

/// Where in the tree a process stands. Two that are equal are the same place, in the same run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Place {
    /// The cgroup's path; nothing if the kernel doesn't say.
    pub(super) path: Option<String>,
    /// Which directory that is: one of the same name that is made later is another one.
    pub(super) directory: Option<FileId>,
    /// The unit of the system's service manager.
    pub(super) unit: Option<String>,
    /// The innermost slice above it.
    pub(super) slice: Option<String>,
    /// The run of that unit.
    pub(super) invocation: Option<[u8; 16]>,
    /// The container.
    pub(super) container: Option<[u8; 32]>,
    /// Why nothing, or not all, can be said.
    pub(super) doubt: Option<String>,
    /// The tree that the path is of.
    tree: Option<Tree>,
    /// The path of the unit's own cgroup.
    unit_path: Option<String>,
}

/// The mounted trees, opened once.
#[derive(Debug, Default)]
pub(super) struct Trees {
    unified: Option<OwnedFd>,
    named: Option<OwnedFd>,
}

/// Which tree a path is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tree {
    /// cgroup v2.
    Unified,
    /// v1, the hierarchy without controllers that systemd and its like use.
    Named,
}

impl Trees {
    /// Opens what is mounted in the agent's mount namespace.
    pub(super) fn open() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let open = |tree| {
            let point = mount_point(&mounts, tree)?;
            rustix::fs::open(point, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
        };
        Self { unified: open(Tree::Unified), named: open(Tree::Named) }
    }

    /// The place that `text`, a `/proc/PID/cgroup`, names, where `before` was one of the same process.
    ///
    /// Whose names are believed was settled when the place was first looked at: while the same directories
    /// stand, nobody else has made them since.
    ///
    /// # Errors
    /// As [`Self::place`].
    pub(super) fn again(&self, before: &Place, text: &str) -> io::Result<Place> {
        let (tree, path) = match chosen(text) {
            Ok(Some((tree, path))) if before.tree == Some(tree) && before.path.as_deref() == Some(path) => (tree, path),
            _ => return self.place(text),
        };
        let Some(root) = self.root(tree) else { return self.place(text) };
        let here = statat(root, relative(path), AtFlags::empty()).ok();
        if here.map(|stat| FileId { device: stat.st_dev, inode: stat.st_ino }) != before.directory {
            return self.place(text);
        }
        let mut place = before.clone();
        if let (Some(unit), Some(path)) = (&before.unit, &before.unit_path) {
            let directory =
                openat(root, relative(path), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            place.invocation = invocation(&directory, unit);
        }
        Ok(place)
    }

    /// The place that `text`, a `/proc/PID/cgroup`, names.
    ///
    /// # Errors
    /// Only when descriptors ran out, which says nothing about the process.
    pub(super) fn place(&self, text: &str) -> io::Result<Place> {
        let (tree, path) = match chosen(text) {
            Ok(Some(chosen)) => chosen,
            Ok(None) => return Ok(Place { doubt: Some("it is in no cgroup".to_owned()), ..Place::default() }),
            Err(doubt) => return Ok(Place { doubt: Some(doubt), ..Place::default() }),
        };
        let mut place = Place { path: Some(path.to_owned()), tree: Some(tree), ..Place::default() };
        let Some(root) = self.root(tree) else {
            place.doubt = Some("the agent sees no cgroup file system".to_owned());
            return Ok(place);
        };
        let mut directory = root.try_clone()?;
        let (mut trusted, mut so_far) = (true, String::new());
        let mut unit = Outer::default();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            trusted = trusted && is_roots_alone(&directory)?;
            directory =
                match openat(&directory, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
                    Ok(next) => next,
                    Err(error) if no_descriptors(&error.into()) => return Err(error.into()),
                    Err(error) => {
                        place.doubt = Some(format!("{path}: {error}"));
                        return Ok(place);
                    }
                };
            so_far = format!("{so_far}/{name}");
            if trusted {
                let known = unit.unit.is_some();
                unit.take(name);
                place.container = place.container.or_else(|| container_of(name));
                if let Some(unit) = unit.unit.as_ref().filter(|_| !known) {
                    place.invocation = invocation(&directory, unit);
                    place.unit_path = Some(so_far.clone());
                }
            } else if place.doubt.is_none() {
                place.doubt = Some(format!("who named {name} is not root: that part of the tree is a user's"));
            }
        }
        (place.unit, place.slice) = (unit.unit, unit.slice);
        place.directory = fstat(&directory).ok().map(|stat| FileId { device: stat.st_dev, inode: stat.st_ino });
        Ok(place)
    }

    const fn root(&self, tree: Tree) -> Option<&OwnedFd> {
        match tree {
            Tree::Unified => self.unified.as_ref(),
            Tree::Named => self.named.as_ref(),
        }
    }
}

/// A path of a tree from its root.
fn relative(path: &str) -> &str {
    match path.trim_start_matches('/') {
        "" => ".",
        path => path,
    }
}

/// The outermost unit and the slices that lead to it, as systemd's own `cg_path_get_unit` reads a path:
/// first slices, then the unit; what follows is the unit's own affair.
#[derive(Debug, Default)]
struct Outer {
    slice: Option<String>,
    unit: Option<String>,
    beyond: bool,
}

impl Outer {
    fn take(&mut self, name: &str) {
        // systemd puts `_` before names that would collide with the kernel's files.
        let name = name.strip_prefix('_').unwrap_or(name);
        if self.beyond {
        } else if is_slice_name(name) {
            self.slice = Some(name.to_owned());
        } else {
            self.beyond = true;
            if is_unit_name(name) {
                self.unit = Some(name.to_owned());
                self.slice.get_or_insert_with(|| "-.slice".to_owned());
            }
        }
    }
}

/// The path that counts: v2's, or the named v1 hierarchy's where everything stands in v2's root.
///
/// # Errors
/// In words, when the two disagree or the path leads out of the agent's own cgroup namespace.
fn chosen(text: &str) -> Result<Option<(Tree, &str)>, String> {
    let of = |head: &str| {
        text.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            rest.strip_prefix(head)
        })
    };
    // `0::/path` and `N:name=systemd:/path` (cgroups(7)); the path may hold colons.
    let (unified, named) = (of(":"), of("name=systemd:"));
    let deep = |path: &&str| *path != "/";
    let found = match (unified, named) {
        (Some(v2), Some(v1)) if deep(&v2) && deep(&v1) && v1 != v2 => {
            return Err(format!("its two hierarchies disagree: {v2} and {v1}"));
        }
        (Some(v2), v1) if deep(&v2) || v1.is_none() => Some((Tree::Unified, v2)),
        (_, Some(v1)) => Some((Tree::Named, v1)),
        (v2, None) => v2.map(|v2| (Tree::Unified, v2)),
    };
    match found {
        Some((_, path)) if path.split('/').any(|part| part == "..") => {
            Err(format!("{path} is outside of the agent's cgroup namespace"))
        }
        Some((_, path)) if !path.starts_with('/') => Err(format!("{path} is no path")),
        found => Ok(found),
    }
}

/// Where a tree is mounted whole, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn mount_point(mounts: &str, tree: Tree) -> Option<String> {
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let (kind, options) = (filesystem.next()?, filesystem.nth(1)?);
        let right = match tree {
            Tree::Unified => kind == "cgroup2",
            Tree::Named => kind == "cgroup" && options.split(',').any(|option| option == "name=systemd"),
        };
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        (right && root == "/").then(|| point.to_owned())
    })
}

/// Whether only root may make directories in this one.
fn is_roots_alone(directory: &OwnedFd) -> io::Result<bool> {
    let stat = fstat(directory)?;
    Ok(stat.st_uid == 0 && stat.st_mode & 0o002 == 0 && (stat.st_mode & 0o020 == 0 || stat.st_gid == 0))
}

/// The run of a unit: what the service manager left at its cgroup where only it can write, or in its
/// own directory. Two that differ are none.
fn invocation(cgroup: &OwnedFd, unit: &str) -> Option<[u8; 16]> {
    let mut buffer = [0; 33];
    // Only a process with CAP_SYS_ADMIN writes `trusted.`, and only such a one reads it; `user.` may be
    // written by whoever owns the directory.
    let marked = match fgetxattr(cgroup, "trusted.invocation_id", &mut buffer) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) if is_roots_alone(cgroup).unwrap_or(false) => {
            fgetxattr(cgroup, "user.invocation_id", &mut buffer)
        }
        answer => answer,
    };
    let marked = marked.ok().and_then(|length| {
        let text = std::str::from_utf8(buffer.get(..length)?).ok()?;
        hexadecimal(text)
    });
    let linked =
        std::fs::read_link(format!("{UNITS}/invocation:{unit}")).ok().and_then(|target| hexadecimal(target.to_str()?));
    match (marked, linked) {
        (Some(marked), Some(linked)) if marked != linked => None,
        (marked, linked) => marked.or(linked),
    }
}

/// A container's id from the name of the cgroup that its runtime made: `docker-ID.scope`,
/// `libpod-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`, or the id alone.
fn container_of(name: &str) -> Option<[u8; 32]> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    match name.rsplit_once('-') {
        // The monitor of a container is outside of it.
        Some((runtime, _)) if runtime.ends_with("conmon") => None,
        Some((_, id)) => container_id(id),
        None => container_id(name),
    }
}

/// A container's full id in its only spelling.
pub(super) fn container_id(text: &str) -> Option<[u8; 32]> {
    hexadecimal(text)
}

/// A unit that has processes, by its full name.
pub(super) fn is_unit_name(name: &str) -> bool {
    UNIT_SUFFIXES.iter().any(|suffix| is_named(name, suffix))
}

/// A slice, by its full name.
pub(super) fn is_slice_name(name: &str) -> bool {
    is_named(name, ".slice")
}

/// A name of the characters that units may have (systemd.unit(5)), and this suffix.
fn is_named(name: &str, suffix: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    name.len() <= UNIT_NAME_LIMIT
        && name.strip_suffix(suffix).is_some_and(|stem| !stem.is_empty() && stem.bytes().all(plain))
}

/// Whether a path says that it is of a person's session: below `user.slice`, in a session's scope or in a
/// user's own service manager (systemd-logind). Names count wherever they stand: this only takes away.
pub(super) fn is_session(path: &str) -> bool {
    path.split('/').any(|name| {
        name == "user.slice"
            || name.starts_with("session-") && name.ends_with(".scope")
            || name.starts_with("user@") && name.ends_with(".service")
            || name.starts_with("user-") && name.ends_with(".slice")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_tree_counts_unless_nothing_is_in_it() {
        let v2 = |path| Ok(Some((Tree::Unified, path)));
        let v1 = |path| Ok(Some((Tree::Named, path)));
        assert_eq!(chosen("0::/system.slice/a.service\n"), v2("/system.slice/a.service"));
        assert_eq!(chosen("0::/a:b\n"), v2("/a:b"));
        assert_eq!(chosen("0::/\n"), v2("/"));
        assert_eq!(chosen("4:memory:/x\n1:name=systemd:/a.service\n0::/\n"), v1("/a.service"));
        assert_eq!(chosen("4:memory:/x\n1:name=systemd:/a.service\n"), v1("/a.service"));
        assert_eq!(chosen("1:name=systemd:/\n0::/docker/1\n"), v2("/docker/1"));
        assert_eq!(chosen("1:name=systemd:/a.service\n0::/a.service\n"), v2("/a.service"));
        assert_eq!(chosen("4:memory:/x\n"), Ok(None));
        assert_eq!(chosen(""), Ok(None));
        // Two answers are none, and neither is one that leads out of what the agent sees.
        assert!(chosen("1:name=systemd:/a.service\n0::/b.service\n").is_err());
        assert!(chosen("0::/../../b.service\n").is_err());
        assert!(chosen("0::b\n").is_err());
    }

    #[test]
    fn the_outermost_unit_is_the_systems() {
        let read = |path: &str| {
            let mut outer = Outer::default();
            path.split('/').filter(|name| !name.is_empty()).for_each(|name| outer.take(name));
            (outer.unit.unwrap_or_default(), outer.slice.unwrap_or_default())
        };
        let is = |unit: &str, slice: &str| (unit.to_owned(), slice.to_owned());
        assert_eq!(read("/system.slice/app.service"), is("app.service", "system.slice"));
        assert_eq!(read("/system.slice/app.service/inner.service"), is("app.service", "system.slice"));
        assert_eq!(read("/system.slice/system-a.slice/a@1.service/x"), is("a@1.service", "system-a.slice"));
        assert_eq!(read("/init.scope"), is("init.scope", "-.slice"));
        assert_eq!(read("/_mount.service"), is("mount.service", "-.slice"));
        assert_eq!(
            read("/user.slice/user-1000.slice/user@1000.service/app.slice/app.service"),
            is("user@1000.service", "user-1000.slice")
        );
        // No service manager's: a name further in isn't a unit.
        assert_eq!(read("/docker/app.service"), is("", ""));
        assert_eq!(read("/"), is("", ""));
    }

    #[test]
    fn containers_are_known_by_the_names_that_runtimes_give() {
        let id = "ab".repeat(32);
        for name in ["docker-#.scope", "libpod-#.scope", "cri-containerd-#.scope", "crio-#.scope", "#", "libpod-#"] {
            assert_eq!(container_of(&name.replace('#', &id)), Some([0xab; 32]), "{name}");
        }
        for name in ["libpod-conmon-#.scope", "crio-conmon-#", "docker-0#.scope", "#0", "docker-#.service", "x", "#x"] {
            assert_eq!(container_of(&name.replace('#', &id)), None, "{name}");
        }
        assert_eq!(container_of(&format!("docker-{}.scope", id.to_uppercase())), None);
    }

    #[test]
    fn sessions_of_people_are_told_by_their_place() {
        for path in [
            "/user.slice/user-1000.slice/session-3.scope",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/x.service",
            "/session-3.scope",
            "/user@0.service",
        ] {
            assert!(is_session(path), "{path}");
        }
        for path in ["/", "/system.slice/app.service", "/system.slice/session-app.service", "/docker/x"] {
            assert!(!is_session(path), "{path}");
        }
    }

    #[test]
    fn trees_are_found_where_they_are_mounted_whole() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755\n\
             31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n\
             32 30 0:28 /below /sys/fs/cgroup/part rw - cgroup cgroup rw,xattr,name=systemd\n\
             33 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        assert_eq!(mount_point(mounts, Tree::Unified).as_deref(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(mount_point(mounts, Tree::Named).as_deref(), Some("/sys/fs/cgroup/systemd"));
        assert_eq!(mount_point("nonsense\n1 - \n", Tree::Named), None);
    }
}
