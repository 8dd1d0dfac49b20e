-- The coordinator's memory. Released migrations never change: a later one alters what an earlier one made.
--
-- An entity is kept as sealed JSON (see src/seal.rs), written once, beside its state, which is small and
-- rewritten with each transition. Columns beyond that exist because a query selects by them. Rows without JSON
-- have a column `seal` over what they say. Times are milliseconds since 1970, numbers of runs, jobs and attempts
-- are those of their ids.

-- Lets `open` tell this from other SQLite databases: "BYRD".
PRAGMA application_id = 1113150020;

-- One row. Counters live here and not in the tables they count, so that dropping old rows never lets a
-- number be given twice.
CREATE TABLE meta (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,
    last_run INTEGER NOT NULL,
    last_fence INTEGER NOT NULL,
    last_event INTEGER NOT NULL,
    -- So that one changed byte is noticed when the database is examined.
    twin INTEGER NOT NULL CHECK (twin = epoch + 3 * last_run + 5 * last_fence + 7 * last_event)
) STRICT;

INSERT INTO meta (id, epoch, last_run, last_fence, last_event, twin) VALUES (1, 0, 0, 0, 0, 0);

CREATE TABLE runs (
    id INTEGER NOT NULL PRIMARY KEY,
    repository TEXT NOT NULL,
    commit_id TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    -- As it was accepted.
    run TEXT NOT NULL,
    -- The pipeline's name, once the file was read.
    pipeline TEXT,
    state TEXT NOT NULL,
    state_name TEXT NOT NULL,
    -- When the state became final.
    final_ms INTEGER,
    -- 1 once its logs were dropped by the retention.
    logs_swept INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX runs_open ON runs (id) WHERE final_ms IS NULL;
CREATE INDEX runs_by_repository ON runs (repository, id);
CREATE INDEX runs_by_commit ON runs (commit_id, id);
CREATE INDEX runs_by_end ON runs (final_ms) WHERE final_ms IS NOT NULL;
CREATE INDEX runs_with_logs ON runs (final_ms) WHERE final_ms IS NOT NULL AND logs_swept = 0;

CREATE TABLE request_keys (
    request_key TEXT NOT NULL PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    seal INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX request_keys_by_run ON request_keys (run);

-- What a job is. Large, so it lives apart from the state and is never rewritten.
CREATE TABLE job_specs (
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    job INTEGER NOT NULL,
    spec TEXT NOT NULL,
    PRIMARY KEY (run, job)
) STRICT;

CREATE TABLE jobs (
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    job INTEGER NOT NULL,
    state TEXT NOT NULL,
    state_name TEXT NOT NULL,
    PRIMARY KEY (run, job)
) STRICT, WITHOUT ROWID;

CREATE TABLE attempts (
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    job INTEGER NOT NULL,
    number INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    worker TEXT NOT NULL,
    -- As it was placed.
    attempt TEXT NOT NULL,
    started TEXT,
    state TEXT NOT NULL,
    state_name TEXT NOT NULL,
    PRIMARY KEY (run, job, number)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX attempts_by_fence ON attempts (fence);
CREATE INDEX attempts_open ON attempts (run) WHERE state_name <> 'removed';

CREATE TABLE workers (
    id TEXT NOT NULL PRIMARY KEY,
    worker TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    sequence INTEGER NOT NULL PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    run INTEGER,
    event TEXT NOT NULL
) STRICT;

CREATE INDEX events_by_run ON events (run, sequence) WHERE run IS NOT NULL;
CREATE INDEX events_of_the_farm ON events (at_ms) WHERE run IS NULL;

CREATE TABLE audit (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    actor TEXT NOT NULL,
    act TEXT NOT NULL,
    subject TEXT NOT NULL,
    seal INTEGER NOT NULL
) STRICT;

-- The audit only grows.
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;

-- SHA-256 of bearer tokens, and never the tokens.
CREATE TABLE tokens (
    hash TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    -- NULL for an administrator's.
    worker TEXT,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    seal INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX tokens_by_worker ON tokens (worker) WHERE worker IS NOT NULL;

CREATE TABLE invites (
    hash TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    pools TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    used_ms INTEGER,
    seal INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Logs that are complete. The length of one that grows is where its last chunk ends.
CREATE TABLE logs (
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    job INTEGER NOT NULL,
    number INTEGER NOT NULL,
    length INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    seal INTEGER NOT NULL,
    PRIMARY KEY (run, job, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE log_chunks (
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    job INTEGER NOT NULL,
    number INTEGER NOT NULL,
    start INTEGER NOT NULL,
    length INTEGER NOT NULL CHECK (length > 0),
    sha256 TEXT NOT NULL,
    object TEXT NOT NULL,
    seal INTEGER NOT NULL,
    PRIMARY KEY (run, job, number, start)
) STRICT, WITHOUT ROWID;

CREATE TABLE artifacts (
    id INTEGER NOT NULL PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    job INTEGER NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    -- Over its files, too.
    seal INTEGER NOT NULL,
    UNIQUE (run, job, number, name)
) STRICT;

CREATE INDEX artifacts_by_expiry ON artifacts (expires_ms);

CREATE TABLE artifact_files (
    artifact INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    executable INTEGER NOT NULL,
    PRIMARY KEY (artifact, path)
) STRICT, WITHOUT ROWID;

CREATE INDEX artifact_files_by_content ON artifact_files (sha256);

-- Objects that a sweep named as unused. They are named again by the sweeps of the next epoch: a coordinator
-- that ends between the commit and the deletion leaves nothing behind.
CREATE TABLE garbage (
    -- 'log' or 'blob'
    kind TEXT NOT NULL,
    object TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    seal INTEGER NOT NULL,
    PRIMARY KEY (kind, object)
) STRICT, WITHOUT ROWID;
