-- Every credential that was issued, and how it ended: each has one issue and one end.
CREATE TABLE credentials(
    -- Serial number of a certificate (hexadecimal), `jti` of a token.
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('x509', 'jwt')),
    decision TEXT NOT NULL,
    node BLOB NOT NULL REFERENCES nodes(id),
    workload TEXT NOT NULL,
    task TEXT,
    audience TEXT NOT NULL DEFAULT '[]',
    -- The CA, or the JWT key, that signed it.
    signer INTEGER NOT NULL,
    lease_sequence INTEGER NOT NULL,
    issued_at INTEGER NOT NULL,
    not_after INTEGER NOT NULL,
    ended_at INTEGER,
    ended_code TEXT,
    ended_reason TEXT
) STRICT;
CREATE INDEX live_credentials ON credentials(node, workload) WHERE ended_at IS NULL;
CREATE INDEX live_credentials_by_workload ON credentials(workload) WHERE ended_at IS NULL;
CREATE INDEX live_credentials_by_end ON credentials(not_after) WHERE ended_at IS NULL;
CREATE INDEX live_credentials_by_task ON credentials(task) WHERE ended_at IS NULL AND task IS NOT NULL;
INSERT INTO credentials(id, kind, decision, node, workload, signer, lease_sequence, issued_at, not_after)
    SELECT lower(hex(serial)), 'x509', decision, node, workload, ca, lease_sequence, issued_at, not_after FROM issuances;
DROP TABLE issuances;

-- Work that got credentials of its own. An agent numbers what it begins in one run of its own; an id
-- may come again once the task before is over.
CREATE TABLE tasks(
    node BLOB NOT NULL REFERENCES nodes(id),
    run BLOB NOT NULL CHECK (length(run) = 16),
    number INTEGER NOT NULL,
    id TEXT NOT NULL,
    workload TEXT NOT NULL,
    -- The one it began by; each credential has its own.
    decision TEXT NOT NULL,
    intent TEXT NOT NULL,
    purpose TEXT NOT NULL,
    heartbeat_seconds INTEGER NOT NULL,
    began_at INTEGER NOT NULL,
    -- When the last credential of it runs out.
    not_after INTEGER NOT NULL,
    ended_at INTEGER,
    ended_code TEXT,
    ended_reason TEXT,
    PRIMARY KEY (node, run, number)
) STRICT;
CREATE UNIQUE INDEX live_tasks ON tasks(node, id) WHERE ended_at IS NULL;
CREATE INDEX live_tasks_by_workload ON tasks(workload) WHERE ended_at IS NULL;
CREATE INDEX live_tasks_by_end ON tasks(not_after) WHERE ended_at IS NULL;
CREATE INDEX tasks_by_id ON tasks(id, began_at);

-- What was taken back, whom it concerns, and what came back from there.
CREATE TABLE revocations(
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('node', 'workload', 'owner', 'credential', 'task', 'ca')),
    target TEXT NOT NULL,
    reason TEXT NOT NULL,
    -- Credentials that it ended.
    credentials INTEGER NOT NULL
) STRICT;
CREATE TABLE withdrawals(
    revocation INTEGER NOT NULL REFERENCES revocations(number),
    node BLOB NOT NULL REFERENCES nodes(id),
    -- What the node is told, encoded.
    message BLOB NOT NULL,
    -- When the last of what it holds runs out, whatever it hears.
    bound INTEGER NOT NULL,
    told_at INTEGER,
    acknowledged_at INTEGER,
    proven_at INTEGER,
    -- The same in milliseconds after the command, where one process saw both.
    told_ms INTEGER,
    acknowledged_ms INTEGER,
    proven_ms INTEGER,
    PRIMARY KEY (revocation, node)
) STRICT;
CREATE INDEX open_withdrawals ON withdrawals(node) WHERE proven_at IS NULL;
-- Who holds something of a workload, also of what ended before its time.
CREATE INDEX credentials_by_holder ON credentials(workload, node, not_after);
-- What relying parties must not take although its time isn't over.
CREATE INDEX denied_credentials ON credentials(kind, signer, not_after)
    WHERE ended_at IS NOT NULL AND ended_code <> 'issuer.expired';
-- A CA taken out of the bundle before its time: nothing under it counts, but nodes that know no other are led on.
ALTER TABLE ca_keys ADD COLUMN removed_at INTEGER;
ALTER TABLE ca_keys ADD COLUMN removed_reason TEXT;
