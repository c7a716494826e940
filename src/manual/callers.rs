//! Who is calling: selectors, login sessions, and what a process must stay.
//!
//! A process that asks the agent for a credential shows nothing and says nothing about itself: the kernel does.
//! The agent takes a pidfd of it when its connection is accepted, keeps it as long as the connection lives, and
//! never goes by a process number.
//!
//! # Selectors
//! A registration names conditions, and all of them must hold (`leasehold-server workload add --selector …`).
//! Each has one spelling.
//!
//! | selector | holds for a process | read from |
//! |---|---|---|
//! | `unix:uid:1000` | with this effective user id | `SO_PEERCRED`, `/proc/PID/status` |
//! | `unix:gid:1000` | with this effective group id | the same |
//! | `unix:supplementary-gid:27` | with this supplementary group | `/proc/PID/status` |
//! | `unix:path:/usr/bin/app` | that runs this file, and under this path the agent finds the same file (device and inode); in the agent's PID and user namespace and under its root directory | `/proc/PID/exe`, `ns/`, `root` |
//! | `unix:sha256:HEX` | whose program has this digest, hashed by the agent | the file behind `/proc/PID/exe` |
//! | `unix:fsverity:sha256:HEX`, `unix:fsverity:sha512:HEX` | whose program the kernel itself measures so (`fsverity measure FILE`); on ext4, f2fs and btrfs | `FS_IOC_MEASURE_VERITY` on the file behind `/proc/PID/exe` |
//! | `systemd:unit:app.service` | in this unit of the system's service manager; units of a user's own manager are all `user@UID.service` | its cgroup |
//! | `systemd:slice:batch.slice` | in a unit of this slice | its cgroup |
//! | `systemd:invocation:HEX` | in this one run of its unit (`systemctl show -P InvocationID`) | the cgroup's `trusted.invocation_id`, `/run/systemd/units` |
//! | `cgroup:path:/system.slice/app.service` | in exactly this cgroup | `/proc/PID/cgroup` |
//! | `container:id:HEX` | in this container, by its full id | its cgroup's name |
//!
//! In the tree of cgroups a name is believed as far as root alone made it: below a directory that belongs to a
//! user (a delegated subtree, a rootless container) names are that user's, and neither unit nor container is read
//! from them. Only `cgroup:path` takes the whole path: use it with `unix:uid`. cgroup v2 counts; where everything
//! stands in its root (hybrid and v1 machines) the hierarchy `name=systemd` does. Two that disagree, or a path
//! that leads out of the agent's cgroup namespace, are no answer.
//!
//! Good registrations name the user and the unit: `unix:uid` keeps other users away, `systemd:unit` the same user's
//! other processes as far as they can't steer each other. `unix:sha256` pins a build, and needs a new registration
//! with each.
//!
//! `unix:fsverity` says more for less: nothing is hashed for it, and the kernel holds every page of the program against
//! that digest whenever it reads one from the disk, also after the start. The file must have fs-verity enabled
//! (`fsverity enable FILE`, on ext4 after `tune2fs -O verity`), and then can be replaced but not changed. Where the
//! file system or the kernel has no fs-verity, or the file doesn't, the selector doesn't hold, and the refusal says
//! so. FUSE isn't believed: there the answer comes from whoever serves the files. It is shown in the machine of
//! `tests/run boot`, by SHA-256; that kernel has SHA-512 only as a module.
//!
//! A program started by an interpreter or a loader (`python3 app.py`, `/lib64/ld-linux-x86-64.so.2 app`) is that one to every
//! selector of `unix`.
//!
//! Not there: a container's image. Only its runtime knows which image a container was made of; the kernel knows a cgroup,
//! a root directory and mounts. A runtime's word, over a socket or in a file, is a process's claim about another one,
//! which no measurement covers, and with a rootless runtime it is the user's own. `container:id` is what the
//! cgroup tree proves; what runs in it is said by `unix:sha256` or `unix:fsverity`.
//!
//! # What a process must stay
//! A connection is one user, with its groups, running one program, at one place in the tree of cgroups, in one run of
//! its unit, in somebody's login session or in none. The agent looks every 500 ms, and before each answer. If any of
//! that changes, the connection's streams end with `PermissionDenied` and the process has to connect again. A cgroup
//! that is removed and made again under the same name is another one. Where the agent can't look (no descriptor or no
//! thread is left, or `/proc` doesn't answer in 5 s) nothing is concluded, `workload.unseen`: nothing is released
//! meanwhile, and nothing ends by it. To execute the same file again is no change:
//! whoever does could connect anew and would be the same workload.
//!
//! # People
//! A process belongs to a login session when the kernel has a login's user for it (`/proc/PID/loginuid`, kept through
//! `sudo` and `su`), or when it stands below `user.slice`, in a `session-*.scope` or in a `user@*.service`. On a kernel
//! without audit a controlling terminal counts instead of the login's user. Such a process is refused with
//! `workload.login_session`, logged as a warning and recorded, unless the workload was added with `--interactive`.
//! Jobs of cron carry the login that PAM gives them: use a systemd timer, or `--interactive`.
//!
//! # Measured by this kernel
//! Where the lease names rules for what runs, a caller's program must also stand in IMA's list: by the digest of the
//! file that it runs now, in an entry that the attested value of PCR 10 vouches for. Else it is refused with
//! `workload.unmeasured`, which names path and digest. Rules in mode `warn` only log it. The kernel's policy must
//! measure what is executed (`func=BPRM_CHECK`), and file systems that it leaves out (tmpfs in the `tcb` policy) hold
//! no workload's program.
//!
//! # Denials explain themselves
//! Of the registration that a process comes nearest to, the agent's log and journal name the selector that failed and
//! what was found instead. The caller is told only that no identity was issued.
