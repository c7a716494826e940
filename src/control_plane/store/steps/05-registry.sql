-- Owners are people or teams; one that left answers for nothing any more.
ALTER TABLE owners ADD COLUMN kind TEXT NOT NULL DEFAULT 'team' CHECK (kind IN ('person', 'team'));
ALTER TABLE owners ADD COLUMN retired_at INTEGER;

ALTER TABLE nodes ADD COLUMN environment TEXT NOT NULL DEFAULT '';
ALTER TABLE known_eks ADD COLUMN environment TEXT NOT NULL DEFAULT '';

ALTER TABLE workloads ADD COLUMN description TEXT NOT NULL DEFAULT '';
-- NULL: nobody stated one, and then it counts as 1.
ALTER TABLE workloads ADD COLUMN tier INTEGER CHECK (tier BETWEEN 1 AND 4);
ALTER TABLE workloads ADD COLUMN environment TEXT NOT NULL DEFAULT '';
ALTER TABLE workloads ADD COLUMN audiences TEXT NOT NULL DEFAULT '[]';
ALTER TABLE workloads ADD COLUMN destinations TEXT NOT NULL DEFAULT '[]';
ALTER TABLE workloads ADD COLUMN roles TEXT NOT NULL DEFAULT '[]';
ALTER TABLE workloads ADD COLUMN third_party INTEGER NOT NULL DEFAULT 0;
ALTER TABLE workloads ADD COLUMN interactive INTEGER NOT NULL DEFAULT 0;
ALTER TABLE workloads ADD COLUMN suspended_at INTEGER;
ALTER TABLE workloads ADD COLUMN suspended_reason TEXT;

-- What credentials are for: a name that policies speak of.
CREATE TABLE destinations(
    name TEXT PRIMARY KEY,
    environment TEXT NOT NULL,
    description TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

-- The keys that certificates were issued over, until the last of them runs out: none serves two workloads.
CREATE TABLE credential_keys(
    digest BLOB PRIMARY KEY CHECK (length(digest) = 32),
    workload TEXT NOT NULL,
    not_after INTEGER NOT NULL
) STRICT;
CREATE INDEX credential_keys_by_end ON credential_keys(not_after);
