//! The house rules that a compiler doesn't hold.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines a file may have before it should be split; a list of tests may be longer.
const FILE_LIMITS: [(&str, usize); 2] = [("src", 600), ("tests", 900)];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files under `directory`, with their text. Generated code is nobody's style.
fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "generated") {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.clone(), std::fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

/// The corridor's modules, and each room's place in the order of lib.rs.
fn plan() -> (Vec<String>, BTreeMap<String, usize>) {
    let text = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let (corridor, rooms) = text.split_once("// The rooms.").unwrap();
    let modules = |text: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';'))
            .map(str::to_owned)
            .collect()
    };
    let rooms: BTreeMap<_, _> = modules(rooms).into_iter().enumerate().map(|(n, room)| (room, n)).collect();
    assert!(rooms.len() > 10 && rooms["tpm"] < rooms["verify"] && rooms["gate"] < rooms["delivery"]);
    (modules(corridor), rooms)
}

/// The modules of this crate that a source text names, with the line. Comments and the tests at
/// a file's end don't count: a room's tests may stand on the development TPM.
fn uses(text: &str) -> Vec<(usize, String)> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    let mut found = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let line = line.split("//").next().unwrap_or(line);
        for rest in line.split("crate::").skip(1) {
            let names = match rest.strip_prefix('{') {
                Some(group) => group.split(',').map(first_name).collect(),
                None => vec![first_name(rest)],
            };
            found.extend(names.into_iter().filter(|name| !name.is_empty()).map(|name| (number + 1, name)));
        }
    }
    found
}

fn first_name(path: &str) -> String {
    path.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

/// `file:line` of each use of a room that is not above the file's own.
fn wrong_way(file: &str, text: &str, corridor: &[String], rooms: &BTreeMap<String, usize>) -> Vec<String> {
    let own = file.split(['/', '.']).next().unwrap();
    // Only lib.rs and the binaries stand outside the order.
    let Some(place) = rooms.get(own).map(|place| Some(*place)).or(corridor.iter().any(|m| m == own).then_some(None))
    else {
        return Vec::new();
    };
    uses(text)
        .into_iter()
        .filter(|(_, used)| used != own && rooms.get(used).is_some_and(|used| place.is_none_or(|own| *used >= own)))
        .map(|(line, used)| format!("src/{file}:{line}: `{own}` uses `{used}`, which is not above it in lib.rs"))
        .collect()
}

#[test]
fn a_room_uses_only_rooms_above_it() {
    let (corridor, rooms) = plan();
    let source = root().join("src");
    let mut wrong = Vec::new();
    for (path, text) in sources(&source) {
        let file = path.strip_prefix(&source).unwrap().display().to_string();
        wrong.extend(wrong_way(&file, &text, &corridor, &rooms));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_direction_test_finds_what_it_is_for() {
    let (corridor, rooms) = plan();
    let found = |file: &str, text: &str| wrong_way(file, text, &corridor, &rooms).len();
    assert_eq!(found("verify/mod.rs", "use crate::gate::Gate;"), 1);
    assert_eq!(found("verify/mod.rs", "use crate::{codes, gate::Gate, tpm, agent};"), 2);
    assert_eq!(found("codes.rs", "fn f() { crate::tpm::x() }"), 1);
    assert_eq!(found("gate/mod.rs", "use crate::verify::Lease;\nuse crate::codes;\nuse crate::gate::x;"), 0);
    assert_eq!(found("verify/mod.rs", "// see crate::gate\n#[cfg(test)]\nmod tests { use crate::gate; }"), 0);
}

/// CLOCK_MONOTONIC, which `Instant` reads, stops during suspend; the wall clock jumps. A deadline of
/// one call may be counted on either, a term may not: these rooms count terms.
#[test]
fn terms_are_counted_on_boot_time_only() {
    let mut found = Vec::new();
    for room in ["verify", "credentials", "gate", "agent"] {
        for (path, text) in sources(&root().join("src").join(room)) {
            let code = text.split("#[cfg(test)]").next().unwrap_or(&text);
            for (number, line) in code.lines().enumerate() {
                let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                if words.any(|word| word == "Instant" || word == "SystemTime") {
                    found.push(format!("{}:{}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(found.is_empty(), "use clock::BootInstant: {}", found.join("\n"));
}

#[test]
fn no_file_is_a_room_of_its_own() {
    let mut long = Vec::new();
    for (directory, limit) in FILE_LIMITS {
        for (path, text) in sources(&root().join(directory)) {
            let lines = text.lines().count();
            if lines > limit {
                long.push(format!("{}: {lines} lines, at most {limit}", path.display()));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn every_code_of_the_table_is_used() {
    let text = std::fs::read_to_string(root().join("src/codes.rs")).unwrap();
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.trim().split_once(" = \"")?;
            (rest.contains("\", \"") && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')).then_some(name)
        })
        .collect();
    assert!(names.len() > 50, "the table was not found");
    // The table's own lines don't count as a use.
    let rest: Vec<String> = sources(&root().join("src")).into_iter().map(|(_, text)| text).collect();
    let rest = rest.iter().flat_map(|text| text.lines()).filter(|line| !line.contains(" = \""));
    let words: BTreeSet<&str> =
        rest.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')).collect();
    let unused: Vec<_> = names.into_iter().filter(|name| !words.contains(name)).collect();
    assert!(unused.is_empty(), "in the table of codes, but nothing refuses with them: {unused:?}");
}

/// The lines of one `[section]` of Cargo.toml.
fn section<'a>(manifest: &'a str, name: &str) -> Vec<&'a str> {
    let header = format!("[{name}]");
    manifest.lines().skip_while(|line| *line != header).skip(1).take_while(|line| !line.starts_with('[')).collect()
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let lines = section(&manifest, "dependencies");
    assert!(lines.len() > 20);
    let mut silent = Vec::new();
    let mut reason = false;
    for line in lines.iter().filter(|line| !line.trim().is_empty()) {
        if line.starts_with('#') {
            reason = true;
        } else {
            if !reason && !line.contains(" # ") {
                silent.push(line.split(' ').next().unwrap_or(line));
            }
            reason = false;
        }
    }
    assert!(silent.is_empty(), "without a reason above or beside them: {silent:?}");
}

#[test]
fn an_agent_only_build_has_nothing_of_the_control_plane() {
    let tree = |features: &str| {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
            .args(["--no-default-features", "--features", features])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let has = |tree: &str, name: &str| tree.lines().any(|line| line.split(' ').next() == Some(name));
    let (agent, server) = (tree("agent"), tree("control-plane"));
    assert!(has(&agent, "tss-esapi") && has(&server, "rusqlite"));
    for name in ["rusqlite", "rcgen", "tempfile"] {
        assert!(!has(&agent, name), "{name} is in the agent's tree");
    }
    for name in ["tss-esapi", "tonic"] {
        assert!(!has(&server, name), "{name} is in the control plane's tree");
    }
}

/// The manual's table of capabilities names tests; a renamed one must not leave it behind.
#[test]
fn every_test_that_the_manual_names_is_there() {
    let page = std::fs::read_to_string(root().join("src/manual/capabilities.rs")).unwrap();
    let mut named = 0;
    for quoted in page.split('`').skip(1).step_by(2) {
        let Some((file, test)) = quoted.split_once(".rs::") else { continue };
        let text = std::fs::read_to_string(root().join(format!("{file}.rs"))).unwrap_or_else(|_| panic!("{file}.rs"));
        assert!(text.contains(&format!("fn {test}(")), "{file}.rs has no test `{test}`");
        named += 1;
    }
    let rows = page.lines().filter(|line| line.starts_with("//! | ") && !line.starts_with("//! | #")).count();
    assert_eq!(rows, 31);
    assert!(named >= 31, "{named}");
}
