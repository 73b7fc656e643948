-- What takes turns locks rows: an advisory lock can be held by any role that can connect, a row only by one with rights.

create table pgsched.turns (
    name text primary key
);
comment on table pgsched.turns is 'One row for each kind of work that one worker at a time does: it locks the row.';
insert into pgsched.turns (name) values ('retention');

create table pgsched.transactions (
    token bigint primary key
);
comment on table pgsched.transactions is
    'Inserted by run.transaction() when it begins and deleted before it commits, so that nobody ever sees a row; but who inserts the same token waits for the end of that transaction.';
comment on column pgsched.transactions.token is 'The claim''s.';
