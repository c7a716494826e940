-- Policy bundles as they were signed. The one without `retired_at` is in force; versions only grow.
CREATE TABLE policy_bundles(
    version INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    document BLOB NOT NULL,
    facts TEXT NOT NULL,
    activated_at INTEGER NOT NULL,
    retired_at INTEGER
) STRICT;
CREATE UNIQUE INDEX one_policy_bundle ON policy_bundles((1)) WHERE retired_at IS NULL;

-- Every decision with all that went into it, so that it can be made again.
CREATE TABLE decisions(
    id TEXT PRIMARY KEY,
    at INTEGER NOT NULL,
    node BLOB,
    workload TEXT NOT NULL,
    action TEXT NOT NULL,
    permitted INTEGER NOT NULL,
    -- Digest of the bundle it was made by.
    policy BLOB NOT NULL,
    inputs TEXT NOT NULL,
    answer TEXT NOT NULL
) STRICT;
CREATE INDEX decisions_by_workload ON decisions(workload, at);
CREATE INDEX decisions_by_time ON decisions(at);

-- What the last verified evidence was and what it said, which decisions name.
ALTER TABLE quotes ADD COLUMN evidence BLOB;
ALTER TABLE quotes ADD COLUMN vector TEXT;
ALTER TABLE quotes ADD COLUMN profile TEXT;
ALTER TABLE quotes ADD COLUMN reference_name TEXT;
ALTER TABLE quotes ADD COLUMN firmware TEXT;
