-- What relying parties must not take although its time isn't over: by time alone, whatever code it ended with.
DROP INDEX denied_credentials;
CREATE INDEX withdrawn_credentials ON credentials(kind, not_after) WHERE ended_at < not_after;
-- The ledger only grows: who holds something that isn't over is found by its time.
DROP INDEX credentials_by_holder;
CREATE INDEX credentials_by_workload ON credentials(workload, not_after, node);
CREATE INDEX credentials_by_node ON credentials(node, not_after);
-- What is live of a node is asked most often: narrower than the one above, or it would be taken instead.
DROP INDEX live_credentials;
CREATE INDEX live_credentials ON credentials(node) WHERE ended_at IS NULL;
-- Tasks that are over go away once nobody asks for them any more.
CREATE INDEX ended_tasks ON tasks(ended_at) WHERE ended_at IS NOT NULL;
-- What was found of the log itself: asked with each head that a node shows.
CREATE INDEX log_findings ON log(what) WHERE what IN ('audit.tampered', 'audit.gap', 'audit.restored');

-- An id is one of its workload's on a node: nobody holds those that another workload's tasks will use.
DROP INDEX live_tasks;
CREATE UNIQUE INDEX live_tasks ON tasks(node, id, workload) WHERE ended_at IS NULL;
