-- The name of a collection is as private as what made it. One that came into being with a document that only its
-- owner sees is shown to those who see a document in it; one that was made on purpose, or with a document for all,
-- to everyone.
alter table collections add column announced boolean not null default true;
