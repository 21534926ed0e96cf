-- Messages form a tree, and a conversation shows one path of it: from its first message to its current one.

-- The default is what a server of the version before says, which knows of no parent; see messages_in_line.
alter table messages add column parent_id uuid default '00000000-0000-0000-0000-000000000000';
alter table conversations add column current_message_id uuid;

update messages m set parent_id = o.before
from (select tenant_id, id, lag(id) over (partition by tenant_id, conversation_id order by created_at, id) as before
      from messages) o
where o.tenant_id = m.tenant_id and o.id = m.id;
update conversations c set current_message_id = (
    select m.id from messages m where m.tenant_id = c.tenant_id and m.conversation_id = c.id
    order by m.created_at desc, m.id desc limit 1);

alter table messages add unique (tenant_id, conversation_id, id);
alter table messages add foreign key (tenant_id, conversation_id, parent_id)
    references messages (tenant_id, conversation_id, id);
alter table conversations add foreign key (tenant_id, id, current_message_id)
    references messages (tenant_id, conversation_id, id) deferrable initially deferred;
create index messages_children on messages (tenant_id, conversation_id, parent_id);
create index conversations_current on conversations (tenant_id, id, current_message_id);

-- During a roll-out servers of the version before add messages in the order of time: each goes below the current one.
create function append_message() returns trigger language plpgsql set search_path = pg_catalog, public as $$
begin
    select c.current_message_id into new.parent_id from public.conversations c
    where c.tenant_id = new.tenant_id and c.id = new.conversation_id for no key update;
    update public.conversations c set current_message_id = new.id
    where c.tenant_id = new.tenant_id and c.id = new.conversation_id;
    return new;
end $$;
create trigger messages_in_line before insert on messages for each row
    when (new.parent_id = '00000000-0000-0000-0000-000000000000') execute function append_message();

-- The message with which an exchange ends. What is remembered of an exchange is recalled on its own branch.
alter table memories add column answer_id uuid;
update memories m set answer_id = coalesce((
    select a.id from messages a where a.tenant_id = m.tenant_id and a.conversation_id = m.conversation_id
        and a.parent_id = m.source_id and a.role = 'assistant' limit 1), m.source_id)
where m.source_id is not null;
update conversation_memories s set lines = (
    select jsonb_agg(case when a.id is null then l.line else l.line || jsonb_build_object('answer_id', a.id) end
                     order by l.number)
    from jsonb_array_elements(s.lines) with ordinality l (line, number)
    left join messages a on a.tenant_id = s.tenant_id and a.conversation_id = s.conversation_id
        and a.parent_id = (l.line ->> 'source_id')::uuid and a.role = 'assistant')
where s.lines <> '[]';
