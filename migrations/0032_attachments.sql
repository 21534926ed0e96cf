-- The pictures that a question was asked with: ids of documents. Of one that is deleted the id stays, and nothing else.
alter table messages add column attachment_ids uuid[] not null default '{}' check (cardinality(attachment_ids) <= 4);

alter table usage_entries drop constraint usage_entries_purpose_check;
alter table usage_entries add constraint usage_entries_purpose_check
    check (purpose in ('chat', 'embedding', 'reprocessing', 'memory', 'vision'));
