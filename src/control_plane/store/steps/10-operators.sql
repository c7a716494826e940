-- Who may administer over the network, by the SPIFFE ID of their certificate.
CREATE TABLE operators(
    id TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    -- The owner that this operator is, or belongs to: nobody approves what is their own.
    owner TEXT REFERENCES owners(name),
    added_at INTEGER NOT NULL,
    added_by TEXT NOT NULL
) STRICT;
