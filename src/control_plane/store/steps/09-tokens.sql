-- Keys that sign JWT-SVIDs; `key` is PKCS#8 under the wrapping key. They follow the CAs: prepared,
-- active, retired.
CREATE TABLE jwt_keys(
    id INTEGER PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('prepared', 'active', 'retired')),
    kid TEXT NOT NULL UNIQUE,
    public BLOB NOT NULL CHECK (length(public) = 65),
    key BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    activated_at INTEGER,
    retired_at INTEGER,
    -- The end of the last token it signed.
    last_token_not_after INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX one_active_jwt_key ON jwt_keys(state) WHERE state = 'active';
CREATE UNIQUE INDEX one_prepared_jwt_key ON jwt_keys(state) WHERE state = 'prepared';

-- Who showed a token that is bound to one task: a second one is an offence.
CREATE TABLE token_uses(
    jti TEXT PRIMARY KEY REFERENCES credentials(id),
    node BLOB NOT NULL REFERENCES nodes(id),
    uid INTEGER NOT NULL,
    first_at INTEGER NOT NULL
) STRICT;
