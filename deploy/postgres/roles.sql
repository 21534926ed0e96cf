-- Roles, database and extension, once, by a superuser of PostgreSQL 16 or newer; nothing else needs one:
--   psql "$SUPERUSER_DSN" -v owner=… -v app=… -v worker=… -v relay=… -v backup=… -f deploy/postgres/roles.sql
-- The five variables are the passwords. Afterwards `dreamhub migrate` logs in as dreamhub_owner and makes the rest.
\set ON_ERROR_STOP on

create role dreamhub_owner     login   nobypassrls noinherit password :'owner';
create role dreamhub_app       login   nobypassrls noinherit password :'app';
create role dreamhub_worker    login   nobypassrls noinherit password :'worker';
create role dreamhub_relay     login   nobypassrls noinherit password :'relay';
create role dreamhub_backup    login   bypassrls   inherit   password :'backup';
create role dreamhub_directory nologin nobypassrls noinherit;

-- The owner hands a few functions over to the directory role, but has none of its rights.
grant dreamhub_directory to dreamhub_owner with inherit false, set true;
grant pg_read_all_data to dreamhub_backup with inherit true;

alter role dreamhub_app    set idle_in_transaction_session_timeout = '60s';
alter role dreamhub_worker set idle_in_transaction_session_timeout = '60s';
alter role dreamhub_relay  set idle_in_transaction_session_timeout = '60s';
alter role dreamhub_app    set lock_timeout = '20s';
alter role dreamhub_worker set lock_timeout = '20s';
alter role dreamhub_relay  set lock_timeout = '20s';
alter role dreamhub_app    set statement_timeout = '30s';

create database dreamhub owner dreamhub_owner template template0 encoding 'UTF8';
revoke all on database dreamhub from public;
grant connect on database dreamhub to dreamhub_owner, dreamhub_app, dreamhub_worker, dreamhub_relay, dreamhub_backup;
grant create on database dreamhub to dreamhub_owner;

\connect dreamhub
create extension vector;
alter schema public owner to dreamhub_owner;
revoke all on schema public from public;
grant usage on schema public
    to dreamhub_owner, dreamhub_app, dreamhub_worker, dreamhub_relay, dreamhub_backup, dreamhub_directory;
