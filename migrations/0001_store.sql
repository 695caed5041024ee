-- One schema for SQLite and PostgreSQL: only TEXT, BIGINT and DOUBLE PRECISION.
-- Times are nanoseconds since 1970 (UTC); owners are '' (a server without keys) or a key's id; JSON is TEXT.

CREATE TABLE tasks (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    owner TEXT NOT NULL,
    priority TEXT NOT NULL,
    status TEXT NOT NULL,
    images TEXT NOT NULL, -- JSON: what each picture shall be
    image_count BIGINT NOT NULL,
    webhook_url TEXT,
    error TEXT, -- JSON
    steps BIGINT NOT NULL,
    pixels BIGINT NOT NULL,
    device_seconds DOUBLE PRECISION NOT NULL,
    idempotency TEXT, -- SHA-256 of the client's key, so that any key fits the index
    fingerprint TEXT,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT -- NULL until the task is final
);
CREATE UNIQUE INDEX tasks_idempotency ON tasks (owner, idempotency);
CREATE INDEX tasks_by_owner ON tasks (owner, created_at, id);
CREATE INDEX tasks_unfinished ON tasks (created_at, id) WHERE finished_at IS NULL;
CREATE INDEX tasks_finished ON tasks (finished_at) WHERE finished_at IS NOT NULL;

-- Pictures whose files exist. A doomed one's file is about to be deleted: nobody may name it any more.
CREATE TABLE images (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    drawn TEXT NOT NULL, -- JSON, as its first task named it
    bytes BIGINT NOT NULL,
    doomed BIGINT NOT NULL
);
CREATE INDEX images_doomed ON images (id) WHERE doomed = 1;

CREATE TABLE task_images (
    task_id TEXT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    place BIGINT NOT NULL,
    image_id TEXT NOT NULL REFERENCES images (id),
    drawn TEXT NOT NULL, -- JSON, as this task names it
    PRIMARY KEY (task_id, place)
);
CREATE INDEX task_images_by_image ON task_images (image_id);

CREATE TABLE bank (
    key TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    character TEXT NOT NULL, -- SHA-256 of the name
    image_id TEXT NOT NULL REFERENCES images (id),
    last_named_at BIGINT NOT NULL
);
CREATE INDEX bank_by_owner ON bank (owner, character);
CREATE INDEX bank_by_image ON bank (image_id);
CREATE INDEX bank_by_age ON bank (last_named_at);

-- Pictures and masks that clients sent.
CREATE TABLE blobs (
    id TEXT PRIMARY KEY,
    bytes BIGINT NOT NULL,
    noted_at BIGINT NOT NULL,
    doomed BIGINT NOT NULL
);
CREATE INDEX blobs_by_age ON blobs (noted_at);

CREATE TABLE task_blobs (
    task_id TEXT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    blob_id TEXT NOT NULL REFERENCES blobs (id),
    PRIMARY KEY (task_id, blob_id)
);
CREATE INDEX task_blobs_by_blob ON task_blobs (blob_id);

-- Webhooks to be sent: one row a task, since a task is final once.
CREATE TABLE deliveries (
    id TEXT PRIMARY KEY,
    task_id TEXT NOT NULL UNIQUE REFERENCES tasks (id) ON DELETE CASCADE,
    url TEXT NOT NULL,
    event TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    next_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    outcome TEXT -- NULL while it is to be sent, then 'delivered' or 'given_up'
);
CREATE INDEX deliveries_due ON deliveries (next_at) WHERE outcome IS NULL;

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    secret TEXT NOT NULL UNIQUE, -- SHA-256 of the secret
    admin BIGINT NOT NULL,
    requests_per_minute BIGINT,
    max_tasks BIGINT,
    created_at BIGINT NOT NULL,
    last_used_at BIGINT,
    revoked_at BIGINT
);
CREATE UNIQUE INDEX api_keys_by_name ON api_keys (name) WHERE revoked_at IS NULL;
