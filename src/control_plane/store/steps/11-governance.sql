-- Exceptions: debt with an end.
CREATE TABLE exceptions(
    id TEXT PRIMARY KEY,
    workload TEXT NOT NULL,
    owner TEXT NOT NULL,
    reason TEXT NOT NULL,
    ticket TEXT NOT NULL,
    added_at INTEGER NOT NULL,
    added_by TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    -- When its end was recorded; it had ended by itself before.
    ended_at INTEGER,
    -- When somebody said that the workload no longer needs it.
    closed_at INTEGER,
    closed_reason TEXT
) STRICT;
CREATE INDEX open_exceptions ON exceptions(workload) WHERE closed_at IS NULL;

-- Approvals: asked for by one, given by another, for a time.
CREATE TABLE approvals(
    id TEXT PRIMARY KEY,
    workload TEXT NOT NULL,
    -- For one destination; empty for any.
    destination TEXT NOT NULL,
    reason TEXT NOT NULL,
    seconds INTEGER NOT NULL,
    requested_at INTEGER NOT NULL,
    requested_by TEXT NOT NULL,
    decided_at INTEGER,
    decided_by TEXT,
    approved INTEGER NOT NULL DEFAULT 0,
    break_glass INTEGER NOT NULL DEFAULT 0,
    note TEXT NOT NULL DEFAULT '',
    expires_at INTEGER,
    ended_at INTEGER
) STRICT;
CREATE INDEX approvals_by_workload ON approvals(workload) WHERE ended_at IS NULL;

-- The last review of each workload.
CREATE TABLE reviews(
    workload TEXT PRIMARY KEY,
    signed_at INTEGER NOT NULL,
    signed_by TEXT NOT NULL,
    note TEXT NOT NULL
) STRICT;
