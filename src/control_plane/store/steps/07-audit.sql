-- Whom a record is about; the chain over all of them.
ALTER TABLE log ADD COLUMN workload TEXT;
ALTER TABLE log ADD COLUMN lease INTEGER;
ALTER TABLE log ADD COLUMN credential TEXT;
ALTER TABLE log ADD COLUMN task TEXT;
-- The chain's value after this record; records of before the chain get theirs when it begins.
ALTER TABLE log ADD COLUMN chain BLOB;
CREATE INDEX log_by_credential ON log(credential) WHERE credential IS NOT NULL;

-- The one chain of this log, and the key that signs its heads, wrapped.
CREATE TABLE log_chain(
    writer BLOB PRIMARY KEY CHECK (length(writer) = 16),
    number INTEGER NOT NULL,
    chain BLOB NOT NULL CHECK (length(chain) = 32),
    key BLOB,
    key_spki BLOB
) STRICT;
CREATE UNIQUE INDEX one_log_chain ON log_chain((1));

-- Heads that were signed; of each hour the last, and the newest.
CREATE TABLE log_heads(
    number INTEGER PRIMARY KEY,
    chain BLOB NOT NULL,
    signature BLOB NOT NULL,
    at INTEGER NOT NULL
) STRICT;

-- Journals of nodes: how far each is here, by the last head that the node's TPM signed.
CREATE TABLE journals(
    writer BLOB PRIMARY KEY CHECK (length(writer) = 16),
    node BLOB NOT NULL REFERENCES nodes(id),
    number INTEGER NOT NULL,
    chain BLOB NOT NULL,
    signature BLOB NOT NULL,
    key_spki BLOB NOT NULL,
    began_at INTEGER NOT NULL,
    delivered_at INTEGER NOT NULL
) STRICT;
CREATE INDEX journals_by_node ON journals(node, began_at);

-- Their records, as they were written there.
CREATE TABLE node_records(
    arrival INTEGER PRIMARY KEY AUTOINCREMENT,
    writer BLOB NOT NULL REFERENCES journals(writer),
    number INTEGER NOT NULL,
    record TEXT NOT NULL,
    chain BLOB NOT NULL,
    UNIQUE (writer, number)
) STRICT;
