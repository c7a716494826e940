//! The schema and how it came about. `user_version` counts the steps that were taken.

use rusqlite::Connection;

use crate::codes::{self, Refusal};

/// `LSHD`, SQLite's application_id of this program's files.
const APPLICATION: i64 = 0x4C53_4844;

/// Each step, once released, stays as it is; changes are further steps.
const STEPS: &[&str] = &[
    FIRST,
    SECOND,
    THIRD,
    FOURTH,
    include_str!("steps/05-registry.sql"),
    include_str!("steps/06-policy.sql"),
    include_str!("steps/07-audit.sql"),
    include_str!("steps/08-tenure.sql"),
    include_str!("steps/09-tokens.sql"),
    include_str!("steps/10-operators.sql"),
    include_str!("steps/11-governance.sql"),
    include_str!("steps/12-bounds.sql"),
];

/// Brings the schema up to date, in one transaction.
///
/// # Errors
/// [`codes::STORE_FAILED`] when the file is another program's or a newer version's.
pub fn run(connection: &mut Connection) -> Result<(), Refusal> {
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    let application: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION && tables > 0 {
        return Err(Refusal::new(codes::STORE_FAILED, "the file is a database of another program"));
    }
    let known = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    if version > known {
        return Err(Refusal::new(
            codes::STORE_FAILED,
            format!("the store's schema {version} is newer than this program's {known}"),
        )
        .expected("the version that wrote it, or a newer one"));
    }
    // A credential leaves only after its record is on the disk: hence FULL, not NORMAL.
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")?;
    let transaction = connection.transaction()?;
    for step in STEPS.iter().skip(usize::try_from(version).unwrap_or(0)) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    Ok(())
}

const FIRST: &str = "
CREATE TABLE meta(
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;

-- CA keys; `key` is PKCS#8 under the wrapping key.
CREATE TABLE ca_keys(
    id INTEGER PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('prepared', 'active', 'retired')),
    certificate BLOB NOT NULL,
    key BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    activated_at INTEGER,
    retired_at INTEGER,
    not_after INTEGER NOT NULL,
    last_leaf_not_after INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX one_active_ca ON ca_keys(state) WHERE state = 'active';
CREATE UNIQUE INDEX one_prepared_ca ON ca_keys(state) WHERE state = 'prepared';

-- EKs an operator named: by TPM name (`name`) or by the SHA-256 of the public key (`key`).
CREATE TABLE known_eks(
    kind TEXT NOT NULL CHECK (kind IN ('name', 'key')),
    value BLOB NOT NULL,
    label TEXT NOT NULL,
    node_group TEXT,
    added_at INTEGER NOT NULL,
    PRIMARY KEY (kind, value)
) STRICT;

CREATE TABLE nodes(
    id BLOB PRIMARY KEY CHECK (length(id) = 32),
    state TEXT NOT NULL CHECK (state IN ('waiting', 'admitted', 'revoked')),
    grade TEXT NOT NULL,
    ek_name BLOB NOT NULL,
    ek_public BLOB NOT NULL,
    ek_certificate BLOB,
    alias_names BLOB NOT NULL,
    ak_public BLOB NOT NULL,
    node_key_public BLOB NOT NULL,
    node_key_spki BLOB NOT NULL,
    certification_nonce BLOB NOT NULL,
    agent_version TEXT NOT NULL,
    node_group TEXT,
    admitted_by TEXT,
    enrolled_at INTEGER NOT NULL,
    admitted_at INTEGER,
    revoked_at INTEGER,
    revoked_reason TEXT,
    last_seen_at INTEGER NOT NULL,
    last_refusal TEXT
) STRICT;
-- A waiting node owns nothing yet: only an admitted or revoked one holds on to its key and EKs.
CREATE UNIQUE INDEX node_keys ON nodes(node_key_spki) WHERE state <> 'waiting';
CREATE TABLE ek_owners(
    ek_name BLOB PRIMARY KEY,
    node BLOB NOT NULL REFERENCES nodes(id)
) STRICT;

-- One row for each enrolment under way: what is answered is checked against this row alone.
CREATE TABLE enrolments(
    id BLOB PRIMARY KEY,
    ek_name BLOB NOT NULL,
    ek_public BLOB NOT NULL,
    ek_certificate BLOB,
    alias_names BLOB NOT NULL,
    ak_public BLOB NOT NULL,
    node_key_public BLOB NOT NULL,
    grade TEXT NOT NULL,
    secret BLOB NOT NULL,
    nonce BLOB NOT NULL,
    agent_version TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    finished_at INTEGER
) STRICT;
CREATE INDEX enrolments_by_ek ON enrolments(ek_name);

CREATE TABLE nonces(
    nonce BLOB PRIMARY KEY,
    node BLOB NOT NULL REFERENCES nodes(id),
    purpose TEXT NOT NULL,
    issued_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at INTEGER
) STRICT;
CREATE INDEX nonces_by_node ON nonces(node, issued_at);

-- The latest verified quote of each node.
CREATE TABLE quotes(
    node BLOB PRIMARY KEY REFERENCES nodes(id),
    received_at INTEGER NOT NULL,
    selection TEXT NOT NULL,
    pcrs TEXT NOT NULL,
    reset_count INTEGER NOT NULL,
    restart_count INTEGER NOT NULL,
    clock_ms INTEGER NOT NULL,
    boot_id BLOB NOT NULL,
    requested_at INTEGER NOT NULL,
    verdict TEXT NOT NULL,
    differences TEXT NOT NULL
) STRICT;
-- What the next quote is held against; apart from `quotes` so that an operator can forget it.
CREATE TABLE high_water(
    node BLOB PRIMARY KEY REFERENCES nodes(id),
    reset_count INTEGER NOT NULL,
    restart_count INTEGER NOT NULL,
    clock_ms INTEGER NOT NULL,
    boot_id BLOB NOT NULL,
    requested_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL
) STRICT;

CREATE TABLE leases(
    node BLOB PRIMARY KEY REFERENCES nodes(id),
    sequence INTEGER NOT NULL,
    issued_at INTEGER NOT NULL,
    ends_at INTEGER NOT NULL,
    ended_code TEXT
) STRICT;

-- Requests that were answered. Only a node's latest answer of a kind is kept.
CREATE TABLE requests(
    node BLOB NOT NULL REFERENCES nodes(id),
    kind TEXT NOT NULL,
    request_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    digest BLOB NOT NULL,
    answered_at INTEGER NOT NULL,
    answer BLOB,
    PRIMARY KEY (node, kind, request_id)
) STRICT;

CREATE TABLE reference_sets(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    node BLOB NOT NULL REFERENCES nodes(id),
    version INTEGER NOT NULL,
    selection TEXT NOT NULL,
    pcrs TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    retired_at INTEGER
) STRICT;
CREATE UNIQUE INDEX one_reference_set ON reference_sets(node) WHERE retired_at IS NULL;

CREATE TABLE owners(
    name TEXT PRIMARY KEY,
    contact TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE workloads(
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL REFERENCES owners(name),
    purpose TEXT NOT NULL,
    hint TEXT NOT NULL,
    ttl_seconds INTEGER,
    node BLOB REFERENCES nodes(id),
    node_group TEXT,
    selectors TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    CHECK ((node IS NULL) <> (node_group IS NULL))
) STRICT;

CREATE TABLE issuances(
    decision TEXT PRIMARY KEY,
    node BLOB NOT NULL REFERENCES nodes(id),
    workload TEXT NOT NULL,
    serial BLOB NOT NULL,
    ca INTEGER NOT NULL,
    lease_sequence INTEGER NOT NULL,
    issued_at INTEGER NOT NULL,
    not_after INTEGER NOT NULL
) STRICT;

CREATE TABLE log(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time INTEGER NOT NULL,
    what TEXT NOT NULL,
    node BLOB,
    decision TEXT,
    detail TEXT NOT NULL
) STRICT;
";

const SECOND: &str = "
-- The certification that the node last attested with, which a later enrolment must not take from it.
ALTER TABLE nodes ADD COLUMN certification_in_use BLOB;
CREATE INDEX nodes_by_ak ON nodes(ak_public) WHERE state <> 'waiting';
";

const THIRD: &str = "
-- Reference sets as documents: the bytes as they were signed, and what lists show of them. Of each
-- name the newest is in force.
CREATE TABLE reference_documents(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    document BLOB NOT NULL,
    facts TEXT NOT NULL,
    imported_at INTEGER NOT NULL,
    retired_at INTEGER,
    UNIQUE (name, version)
) STRICT;
CREATE UNIQUE INDEX one_reference_document ON reference_documents(name) WHERE retired_at IS NULL;

-- Which set a node is held against: its own assignment, else that of its group.
CREATE TABLE reference_assignments(
    node BLOB UNIQUE REFERENCES nodes(id),
    node_group TEXT UNIQUE,
    name TEXT NOT NULL,
    assigned_at INTEGER NOT NULL,
    CHECK ((node IS NULL) <> (node_group IS NULL))
) STRICT;
CREATE INDEX assignments_by_name ON reference_assignments(name);
";

const FOURTH: &str = "
-- What is held of each log of a node's present boot.
CREATE TABLE node_logs(
    node BLOB NOT NULL REFERENCES nodes(id),
    kind TEXT NOT NULL CHECK (kind IN ('boot', 'userspace', 'ima')),
    boot_id BLOB NOT NULL,
    length INTEGER NOT NULL,
    head BLOB NOT NULL,
    PRIMARY KEY (node, kind)
) STRICT;
-- Their bytes, as they came. An increment reads from one place on, whatever lies before it.
CREATE TABLE log_segments(
    node BLOB NOT NULL REFERENCES nodes(id),
    kind TEXT NOT NULL,
    start INTEGER NOT NULL,
    bytes BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX log_segments_in_order ON log_segments(node, kind, start);
-- How far IMA's list was taken in: to the last quote, and on by parts that came ahead of one. Only
-- under one reference document: another one has other rules.
CREATE TABLE checkpoints(
    node BLOB PRIMARY KEY REFERENCES nodes(id),
    boot_id BLOB NOT NULL,
    document BLOB NOT NULL,
    matched BLOB,
    folded BLOB
) STRICT;
-- The last appraisal of each node's logs, in words.
CREATE TABLE appraisals(
    node BLOB PRIMARY KEY REFERENCES nodes(id),
    at INTEGER NOT NULL,
    report TEXT NOT NULL
) STRICT;
";
