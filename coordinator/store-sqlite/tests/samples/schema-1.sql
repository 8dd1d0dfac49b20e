PRAGMA application_id = 1113150020;
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL
);
INSERT INTO _sqlx_migrations VALUES(1,'farm','2026-11-21 01:17:10',1,X'3f81f6a94ce9686d1126127c273bfae10ef52879f5e58c8bd464225caaef8bd56661c1b57f752b13c411a566343c7cb1',7137255);
CREATE TABLE meta (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,
    last_run INTEGER NOT NULL,
    last_fence INTEGER NOT NULL,
    last_event INTEGER NOT NULL,
    -- So that one changed byte is noticed when the database is examined.
    twin INTEGER NOT NULL CHECK (twin = epoch + 3 * last_run + 5 * last_fence + 7 * last_event)
) STRICT;
INSERT INTO meta VALUES(1,1,6,6,10,119);
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
INSERT INTO runs VALUES(1,'/srv/git/cjson','0000000000000000000000000000000000000001',1001,'01ee2db3865e1ab6{"id":"run-1","file":"pipeline.toml","pipeline":null,"source":{"repository":"/srv/git/cjson","commit":"0000000000000000000000000000000000000001","ref_name":null},"requested_by":"triggered by admin","key":"key 1","created_at":1001,"state":{"state":"received"}}','44eb6103999c2d96"cjson"','9f94520745896f77{"state":"finished","verdict":"passed","reason":null,"at":3001}','finished',3001,0);
INSERT INTO runs VALUES(2,'/srv/git/cjson','0000000000000000000000000000000000000002',1002,'ff4ce3dd0f9f5c9d{"id":"run-2","file":"pipeline.toml","pipeline":null,"source":{"repository":"/srv/git/cjson","commit":"0000000000000000000000000000000000000002","ref_name":null},"requested_by":"triggered by admin","key":"key 2","created_at":1002,"state":{"state":"received"}}','cae5f72b8e7a15f9"cjson"','2e85fa095247d55d{"state":"finished","verdict":"passed","reason":null,"at":3002}','finished',3002,0);
INSERT INTO runs VALUES(3,'/srv/git/cjson','0000000000000000000000000000000000000003',1003,'e9b531d01abbb3b4{"id":"run-3","file":"pipeline.toml","pipeline":null,"source":{"repository":"/srv/git/cjson","commit":"0000000000000000000000000000000000000003","ref_name":null},"requested_by":"triggered by admin","key":"key 3","created_at":1003,"state":{"state":"received"}}','6be7e0be9c400104"cjson"','63ea8adf63372714{"state":"finished","verdict":"failed","reason":null,"at":3003}','finished',3003,0);
INSERT INTO runs VALUES(4,'/srv/git/cjson','0000000000000000000000000000000000000004',1004,'8fce71465d109873{"id":"run-4","file":"pipeline.toml","pipeline":null,"source":{"repository":"/srv/git/cjson","commit":"0000000000000000000000000000000000000004","ref_name":null},"requested_by":"triggered by admin","key":"key 4","created_at":1004,"state":{"state":"received"}}','cc0fa4df1085c357"cjson"','261ca49fdeda34d1{"state":"finished","verdict":"passed","reason":null,"at":3004}','finished',3004,0);
INSERT INTO runs VALUES(5,'/srv/git/cjson','0000000000000000000000000000000000000005',1005,'4f5fc609196baa4a{"id":"run-5","file":"pipeline.toml","pipeline":null,"source":{"repository":"/srv/git/cjson","commit":"0000000000000000000000000000000000000005","ref_name":null},"requested_by":"triggered by admin","key":"key 5","created_at":1005,"state":{"state":"received"}}','a824f5d832718402"cjson"','ce9d87205a2a66b8{"state":"active"}','active',NULL,0);
INSERT INTO runs VALUES(6,'/srv/git/cjson','0000000000000000000000000000000000000006',1006,'fc3bc883e5ea32a9{"id":"run-6","file":"pipeline.toml","pipeline":null,"source":{"repository":"/srv/git/cjson","commit":"0000000000000000000000000000000000000006","ref_name":null},"requested_by":"triggered by admin","key":"key 6","created_at":1006,"state":{"state":"received"}}','d526fa3c99b8d2e5"cjson"','adcedaef764eb3cd{"state":"active"}','active',NULL,0);
CREATE TABLE request_keys (
    request_key TEXT NOT NULL PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    seal INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO request_keys VALUES('key 1',1,4131314396327725728);
INSERT INTO request_keys VALUES('key 2',2,-4911913649100953140);
INSERT INTO request_keys VALUES('key 3',3,-7880911654950320908);
INSERT INTO request_keys VALUES('key 4',4,7509014220158802648);
INSERT INTO request_keys VALUES('key 5',5,-1560672473085847424);
INSERT INTO request_keys VALUES('key 6',6,-4510530180515102604);
CREATE TABLE job_specs (
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    job INTEGER NOT NULL,
    spec TEXT NOT NULL,
    PRIMARY KEY (run, job)
) STRICT;
INSERT INTO job_specs VALUES(1,0,'894588fd5920bfe4{"id":"job-1-0","spec":{"name":"test","image":"debian:12","labels":"","needs":[],"env":{"CC":"gcc"},"steps":[],"resources":{"cpu_millis":1000,"memory":"2GiB","pids":512,"disk":"10GiB"},"timeout_ms":1800000,"queue_timeout_ms":7200000,"artifacts":[],"network":"none","user":"build","checkout":{"depth":null,"tags":false}},"needs":[],"state":{"state":"waiting"},"attempts":0}');
INSERT INTO job_specs VALUES(2,0,'9a1c4656c233ddbe{"id":"job-2-0","spec":{"name":"test","image":"debian:12","labels":"","needs":[],"env":{"CC":"gcc"},"steps":[],"resources":{"cpu_millis":1000,"memory":"2GiB","pids":512,"disk":"10GiB"},"timeout_ms":1800000,"queue_timeout_ms":7200000,"artifacts":[],"network":"none","user":"build","checkout":{"depth":null,"tags":false}},"needs":[],"state":{"state":"waiting"},"attempts":0}');
INSERT INTO job_specs VALUES(3,0,'bb686f53ef1c28c8{"id":"job-3-0","spec":{"name":"test","image":"debian:12","labels":"","needs":[],"env":{"CC":"gcc"},"steps":[],"resources":{"cpu_millis":1000,"memory":"2GiB","pids":512,"disk":"10GiB"},"timeout_ms":1800000,"queue_timeout_ms":7200000,"artifacts":[],"network":"none","user":"build","checkout":{"depth":null,"tags":false}},"needs":[],"state":{"state":"waiting"},"attempts":0}');
INSERT INTO job_specs VALUES(4,0,'ed2de7ff3080fabe{"id":"job-4-0","spec":{"name":"test","image":"debian:12","labels":"","needs":[],"env":{"CC":"gcc"},"steps":[],"resources":{"cpu_millis":1000,"memory":"2GiB","pids":512,"disk":"10GiB"},"timeout_ms":1800000,"queue_timeout_ms":7200000,"artifacts":[],"network":"none","user":"build","checkout":{"depth":null,"tags":false}},"needs":[],"state":{"state":"waiting"},"attempts":0}');
INSERT INTO job_specs VALUES(5,0,'ad257ea3ff79d724{"id":"job-5-0","spec":{"name":"test","image":"debian:12","labels":"","needs":[],"env":{"CC":"gcc"},"steps":[],"resources":{"cpu_millis":1000,"memory":"2GiB","pids":512,"disk":"10GiB"},"timeout_ms":1800000,"queue_timeout_ms":7200000,"artifacts":[],"network":"none","user":"build","checkout":{"depth":null,"tags":false}},"needs":[],"state":{"state":"waiting"},"attempts":0}');
INSERT INTO job_specs VALUES(6,0,'f054e91b75853a26{"id":"job-6-0","spec":{"name":"test","image":"debian:12","labels":"","needs":[],"env":{"CC":"gcc"},"steps":[],"resources":{"cpu_millis":1000,"memory":"2GiB","pids":512,"disk":"10GiB"},"timeout_ms":1800000,"queue_timeout_ms":7200000,"artifacts":[],"network":"none","user":"build","checkout":{"depth":null,"tags":false}},"needs":[],"state":{"state":"waiting"},"attempts":0}');
CREATE TABLE jobs (
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    job INTEGER NOT NULL,
    state TEXT NOT NULL,
    state_name TEXT NOT NULL,
    PRIMARY KEY (run, job)
) STRICT, WITHOUT ROWID;
INSERT INTO jobs VALUES(1,0,'88e3e2410a93bfc5{"state":"finished","outcome":{"kind":"passed"},"started":null,"ended":3001}','finished');
INSERT INTO jobs VALUES(2,0,'fc942b43bc80d3e1{"state":"finished","outcome":{"kind":"passed"},"started":null,"ended":3002}','finished');
INSERT INTO jobs VALUES(3,0,'bf73f40c0a3ab951{"state":"finished","outcome":{"kind":"failed","step":"unit tests","exit_code":4},"started":null,"ended":3003}','finished');
INSERT INTO jobs VALUES(4,0,'8726d478e72bbe35{"state":"finished","outcome":{"kind":"passed"},"started":null,"ended":3004}','finished');
INSERT INTO jobs VALUES(5,0,'14e83b7e36ecaa8d{"state":"assigned","attempt":"att-5-0-1","worker":"wkr-00000000004k7"}','assigned');
INSERT INTO jobs VALUES(6,0,'ca5f9c5d8a9ae99b{"state":"assigned","attempt":"att-6-0-1","worker":"wkr-00000000004k7"}','assigned');
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
INSERT INTO attempts VALUES(1,0,1,1,'wkr-00000000004k7','a766ce006804f8f4{"id":"att-1-0-1","worker":"wkr-00000000004k7","fence":1,"placed_at":1500,"started_at":null,"state":{"state":"live"}}',NULL,'77a4f7093e81b995{"state":"removed","report":{"outcome":{"kind":"passed"},"steps":[],"usage":{"cpu_ms":0,"peak_rss":"0B","log_bytes":0,"prepare_ms":0},"notes":[],"image_digest":null},"at":3001}','removed');
INSERT INTO attempts VALUES(2,0,1,2,'wkr-00000000004k7','6279fd244d63ff8b{"id":"att-2-0-1","worker":"wkr-00000000004k7","fence":2,"placed_at":1500,"started_at":null,"state":{"state":"live"}}',NULL,'63a3a44c722faa51{"state":"removed","report":{"outcome":{"kind":"passed"},"steps":[],"usage":{"cpu_ms":0,"peak_rss":"0B","log_bytes":0,"prepare_ms":0},"notes":[],"image_digest":null},"at":3002}','removed');
INSERT INTO attempts VALUES(3,0,1,3,'wkr-00000000004k7','175fce03c88ba606{"id":"att-3-0-1","worker":"wkr-00000000004k7","fence":3,"placed_at":1500,"started_at":null,"state":{"state":"live"}}',NULL,'f846606aa5277319{"state":"removed","report":{"outcome":{"kind":"failed","step":"unit tests","exit_code":4},"steps":[],"usage":{"cpu_ms":0,"peak_rss":"0B","log_bytes":0,"prepare_ms":0},"notes":[],"image_digest":null},"at":3003}','removed');
INSERT INTO attempts VALUES(4,0,1,4,'wkr-00000000004k7','0b93e49362e84ebd{"id":"att-4-0-1","worker":"wkr-00000000004k7","fence":4,"placed_at":1500,"started_at":null,"state":{"state":"live"}}',NULL,'46300fe0b0e59f05{"state":"removed","report":{"outcome":{"kind":"passed"},"steps":[],"usage":{"cpu_ms":0,"peak_rss":"0B","log_bytes":0,"prepare_ms":0},"notes":[],"image_digest":null},"at":3004}','removed');
INSERT INTO attempts VALUES(5,0,1,5,'wkr-00000000004k7','28cd09786f516d50{"id":"att-5-0-1","worker":"wkr-00000000004k7","fence":5,"placed_at":1500,"started_at":null,"state":{"state":"live"}}',NULL,'543d32f3a174388d{"state":"live"}','live');
INSERT INTO attempts VALUES(6,0,1,6,'wkr-00000000004k7','df3fd26b98647f6f{"id":"att-6-0-1","worker":"wkr-00000000004k7","fence":6,"placed_at":1500,"started_at":null,"state":{"state":"live"}}',NULL,'08a60009296e9684{"state":"live"}','live');
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
INSERT INTO events VALUES(1,2000,1,'e64d53515de7d882{"sequence":0,"at":2000,"kind":"run.changed","run":"run-1","job":null,"worker":null,"sentence":"begun"}');
INSERT INTO events VALUES(2,2000,1,'b7b80a0de59ae3d1{"sequence":0,"at":2000,"kind":"run.changed","run":"run-1","job":null,"worker":null,"sentence":"over"}');
INSERT INTO events VALUES(3,2000,2,'8d8c2ca30d6d2281{"sequence":0,"at":2000,"kind":"run.changed","run":"run-2","job":null,"worker":null,"sentence":"begun"}');
INSERT INTO events VALUES(4,2000,2,'b3d3545a95436520{"sequence":0,"at":2000,"kind":"run.changed","run":"run-2","job":null,"worker":null,"sentence":"over"}');
INSERT INTO events VALUES(5,2000,3,'e61fa7cbdc0e0394{"sequence":0,"at":2000,"kind":"run.changed","run":"run-3","job":null,"worker":null,"sentence":"begun"}');
INSERT INTO events VALUES(6,2000,3,'e24cad7c8da5d0a7{"sequence":0,"at":2000,"kind":"run.changed","run":"run-3","job":null,"worker":null,"sentence":"over"}');
INSERT INTO events VALUES(7,2000,4,'534942b3e3d704a3{"sequence":0,"at":2000,"kind":"run.changed","run":"run-4","job":null,"worker":null,"sentence":"begun"}');
INSERT INTO events VALUES(8,2000,4,'bbf07be17383e9f6{"sequence":0,"at":2000,"kind":"run.changed","run":"run-4","job":null,"worker":null,"sentence":"over"}');
INSERT INTO events VALUES(9,2000,5,'4ba63dfaeb959cf6{"sequence":0,"at":2000,"kind":"run.changed","run":"run-5","job":null,"worker":null,"sentence":"begun"}');
INSERT INTO events VALUES(10,2000,6,'57100a47737e6ad5{"sequence":0,"at":2000,"kind":"run.changed","run":"run-6","job":null,"worker":null,"sentence":"begun"}');
CREATE TABLE audit (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    actor TEXT NOT NULL,
    act TEXT NOT NULL,
    subject TEXT NOT NULL,
    seal INTEGER NOT NULL
) STRICT;
CREATE TABLE tokens (
    hash TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    -- NULL for an administrator's.
    worker TEXT,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    seal INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO tokens VALUES('aa','ann',NULL,1,NULL,8784016223464918211);
CREATE TABLE invites (
    hash TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    pools TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    used_ms INTEGER,
    seal INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE logs (
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    job INTEGER NOT NULL,
    number INTEGER NOT NULL,
    length INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    seal INTEGER NOT NULL,
    PRIMARY KEY (run, job, number)
) STRICT, WITHOUT ROWID;
INSERT INTO logs VALUES(1,0,1,10,'aa',209752868572820839);
INSERT INTO logs VALUES(2,0,1,10,'aa',-5109686007165956560);
INSERT INTO logs VALUES(3,0,1,10,'aa',-5995448622852594339);
INSERT INTO logs VALUES(4,0,1,10,'aa',8620850440092745494);
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
INSERT INTO log_chunks VALUES(1,0,1,0,10,'0000000000000000000000000000000000000000000000000000000000000001','logs/1',-5685518347920959272);
INSERT INTO log_chunks VALUES(2,0,1,0,10,'0000000000000000000000000000000000000000000000000000000000000002','logs/2',-3725899629032658457);
INSERT INTO log_chunks VALUES(3,0,1,0,10,'0000000000000000000000000000000000000000000000000000000000000003','logs/3',4509276260561437446);
INSERT INTO log_chunks VALUES(4,0,1,0,10,'0000000000000000000000000000000000000000000000000000000000000004','logs/4',6320633092834735333);
INSERT INTO log_chunks VALUES(5,0,1,0,10,'0000000000000000000000000000000000000000000000000000000000000005','logs/5',-1621569860611379868);
INSERT INTO log_chunks VALUES(6,0,1,0,10,'0000000000000000000000000000000000000000000000000000000000000006','logs/6',-6832047010647310189);
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
CREATE TABLE artifact_files (
    artifact INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    executable INTEGER NOT NULL,
    PRIMARY KEY (artifact, path)
) STRICT, WITHOUT ROWID;
CREATE TABLE garbage (
    -- 'log' or 'blob'
    kind TEXT NOT NULL,
    object TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    seal INTEGER NOT NULL,
    PRIMARY KEY (kind, object)
) STRICT, WITHOUT ROWID;
DELETE FROM sqlite_sequence;
CREATE INDEX runs_open ON runs (id) WHERE final_ms IS NULL;
CREATE INDEX runs_by_repository ON runs (repository, id);
CREATE INDEX runs_by_commit ON runs (commit_id, id);
CREATE INDEX runs_by_end ON runs (final_ms) WHERE final_ms IS NOT NULL;
CREATE INDEX runs_with_logs ON runs (final_ms) WHERE final_ms IS NOT NULL AND logs_swept = 0;
CREATE INDEX request_keys_by_run ON request_keys (run);
CREATE UNIQUE INDEX attempts_by_fence ON attempts (fence);
CREATE INDEX attempts_open ON attempts (run) WHERE state_name <> 'removed';
CREATE INDEX events_by_run ON events (run, sequence) WHERE run IS NOT NULL;
CREATE INDEX events_of_the_farm ON events (at_ms) WHERE run IS NULL;
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE INDEX tokens_by_worker ON tokens (worker) WHERE worker IS NOT NULL;
CREATE INDEX artifacts_by_expiry ON artifacts (expires_ms);
CREATE INDEX artifact_files_by_content ON artifact_files (sha256);
COMMIT;
