-- Whom a record is about; the chain over all of them.
ALTER TABLE log ADD COLUMN workload TEXT;
ALTER TABLE log ADD COLUMN lease INTEGER;
ALTER TABLE log ADD COLUMN credential TEXT;
ALTER TABLE log ADD COLUMN task TEXT;
