-- What is kept of a run while it runs and after it: the success that it has committed itself.

alter table pgsched.runs add column committed_at timestamptz;
comment on column pgsched.runs.committed_at is
    'When run.transaction() committed its success, together with the application''s own writes. It has succeeded then, whatever its function does afterwards.';
