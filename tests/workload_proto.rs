//! The generated code of the Workload API and of tasks is checked in, so that a build needs no generator;
//! this test regenerates it from the `.proto` files and compares. `LEASEHOLD_REGENERATE=1` writes it anew.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![cfg(feature = "agent")]

use std::path::{Path, PathBuf};

use prost_types::FileDescriptorSet;
use protox::prost::Message;

fn room() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/delivery/workload_api")
}

#[test]
fn generated_code_and_descriptors_are_those_of_the_proto_files() {
    // Those with a private key in them have no Debug.
    let workload = ["X509SVID", "X509SVIDResponse"];
    let tasks = ["leasehold.task.v1.X509", "leasehold.task.v1.Jwt", "leasehold.task.v1.TaskUpdate"];
    for (room, name, silent) in [(room(), "workload", &workload[..]), (room().join("tasks"), "tasks", &tasks[..])] {
        let file = format!("{name}.proto");
        let descriptors = protox::compile([&file], [&room]).expect("the proto file is valid");
        hold(&room.join(format!("{name}.fds")), &without_comments(descriptors.clone()).encode_to_vec(), &file);
        hold(&room.join("generated.rs"), generate(descriptors, silent, &file).as_bytes(), &file);
    }
}

/// Compares a checked-in file with what it should be, or writes it if asked to.
fn hold(path: &Path, wanted: &[u8], proto: &str) {
    if std::env::var_os("LEASEHOLD_REGENERATE").is_some() {
        std::fs::write(path, wanted).expect("the file can be written");
    }
    let found = std::fs::read(path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is not what {proto} gives: run this test once with LEASEHOLD_REGENERATE=1",
        path.display()
    );
}

fn generate(descriptors: FileDescriptorSet, silent: &[&str], proto: &str) -> String {
    let directory = tempfile::tempdir().expect("a temporary directory");
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        // The same content always gives the same bytes, which is how a stream sees that nothing changed.
        .btree_map(".")
        .skip_debug(silent)
        .out_dir(directory.path())
        .compile_fds(descriptors)
        .expect("the descriptors can be compiled");
    let mut files = std::fs::read_dir(directory.path()).expect("the directory can be read");
    let file = files.next().expect("there is a file").expect("it can be read").path();
    assert!(files.next().is_none(), "one package gives one file");
    let code = std::fs::read_to_string(file).expect("the code can be read");

    format!("// Generated from {proto} by tests/workload_proto.rs. Do not edit.\n{code}")
}

/// Reflection has no use for comments, and the binaries carry the descriptors.
fn without_comments(mut descriptors: FileDescriptorSet) -> FileDescriptorSet {
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    descriptors
}
