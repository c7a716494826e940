-- Who may administer over the network, by the SPIFFE ID of their certificate.
CREATE TABLE operators(
    id TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    added_at INTEGER NOT NULL,
    added_by TEXT NOT NULL
) STRICT;
