"""SQL of search: one function for each embedding space, so that a search is one round trip.

The function sets tenant and user for its own transaction and then asks as the caller, under every policy. It is
`stable`, so that all its statements see what was there when it was called: of a document that goes from one reading to
another meanwhile it finds the one or the other. It is never replaced in place: other behaviour is a `search_v4_…`
beside it, because old and new processes run together.
"""

from internal.entities.search import COVERED, Space

EXACT_CHUNKS = 1000
"""Up to so many passages are compared one by one, which is exact and as fast as the index."""
POSTINGS = 1000
"""Terms nominate passages, the rarest first, until they have named so many; the others only add to scores."""
WHOLE_LEAST = 0.15
"""A passage with all of a query's terms reaches this share of the most that its score could be, unless it has over
1,800 terms; what doesn't reach it needn't be looked at."""
WHOLE_BONUS = 10.0
"""Deviations by which such a passage comes before the others: who asks in the words of a text wants that text.

Of 200 phrases of six characters .96 find their passage first instead of .88 (rgb_zh_refine), .97 instead of .91
(docqa_zh); the public sets' questions are answered as well as before, within .001.
"""
SATURATION, LENGTH_SHARE, USUAL_LENGTH = 1.2, 0.5, 200.0
"""BM25's k1 and b, and a constant in place of the average length: measured in docs/adr/0003-keyword-search.md."""

VISIBLE = """
    select 1 from documents d where d.tenant_id = p_tenant and d.generation_id = {generation}
    and (d.visibility = 'tenant' or d.owner_id = p_user)
"""
NARROWED = """
    and (p_source_types is null or d.source_type = any(p_source_types))
    and (p_document_ids is null or d.id = any(p_document_ids))
    and (p_collections is null or d.collection_id = any(v_collections))
    and (p_tags is null or d.tags @> p_tags)
    and (p_after is null or d.created_at >= p_after)
    and (p_before is null or d.created_at < p_before)
    and (not p_mine or d.owner_id = p_user)
"""

# `offset 0` keeps each of these subqueries as it stands: the planner neither joins the documents before the ranking
# nor pushes a filter below it, and so looks at the documents of the best passages only.
FUNCTION = """
create function {name}(
    p_tenant uuid, p_user uuid, p_embedding {storage}, p_terms integer[], p_counts real[],
    p_k integer, p_depth integer, p_pool integer, p_reranked integer,
    p_source_types text[], p_document_ids uuid[], p_collections text[], p_tags text[],
    p_after timestamptz, p_before timestamptz, p_mine boolean
) returns table (
    chunk_id uuid, document_id uuid, filename text, source_type text, text text,
    page integer, heading text, start_ms integer, end_ms integer, box real[],
    score float8, similarity float8, keyword float8, coverage float8, more boolean
) language plpgsql stable set search_path = pg_catalog, public as $search$
#variable_conflict use_column
declare
    v_narrowed boolean := p_mine
        or num_nonnulls(p_source_types, p_document_ids, p_collections, p_tags, p_after, p_before) > 0;
    v_collections uuid[];
    v_chunks bigint;
    v_generations uuid[];
    v_scope bigint;
    v_wanted bigint;
    v_listed boolean := false;
    v_dense_ids uuid[] := '{{}}';
    v_dense float8[] := '{{}}';
    v_word_ids uuid[] := '{{}}';
    v_all_ids uuid[];
    v_words float8[] := '{{}}';
    v_query sparsevec;
    v_terms integer[];
    v_nominators integer[];
    v_most float8;
    v_coverage float8 := 0;
    v_whole uuid[] := '{{}}';
    v_known boolean := false;
    v_both boolean := false;
    v_more boolean;
    v_share float8;
    v_k integer := p_k;
    v_pool integer := p_pool;
begin
    perform set_config('app.tenant_id', p_tenant::text, true), set_config('app.user_id', p_user::text, true),
        set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true),
        set_config('jit', 'off', true), set_config('hnsw.iterative_scan', 'relaxed_order', true),
        set_config('hnsw.ef_search', least(1000, greatest(100, p_depth))::text, true);
    select s.chunks into v_chunks from tenant_statistics s where s.tenant_id = p_tenant;
    if coalesce(v_chunks, 0) = 0 then
        return;
    end if;

    -- A narrow search compares every passage of the documents that are left.
    if v_narrowed then
        if p_collections is not null then
            v_collections := array(select k.id from collections k where k.tenant_id = p_tenant
                and (k.name = any(p_collections) or k.id::text = any(p_collections)));
        end if;
        {list_generations}
        v_listed := v_scope <= {exact};
        if v_scope = 0 then
            return;
        end if;
    end if;

    -- Only a plan made for this tenant leaves out the other partitions; the other statements keep one plan for all.
    if p_embedding is not null then
        v_wanted := least(p_depth, v_chunks);
        if not v_narrowed then
            perform set_config('plan_cache_mode', 'force_custom_plan', true);
            if v_chunks <= {exact} then
                select array_agg(f.chunk_id), array_agg(1 - f.distance), array_agg(f.generation_id)
                into v_dense_ids, v_dense, v_generations from (
                    select v.chunk_id, v.generation_id, v.embedding <=> p_embedding as distance from {table} v
                    where v.tenant_id = p_tenant order by (v.embedding <=> p_embedding) + 0 limit p_depth + 10
                ) f;
            else
                select array_agg(f.chunk_id), array_agg(1 - f.distance), array_agg(f.generation_id)
                into v_dense_ids, v_dense, v_generations from (
                    select v.chunk_id, v.generation_id, v.embedding <=> p_embedding as distance from {table} v
                    where v.tenant_id = p_tenant order by v.embedding <=> p_embedding limit p_depth + 10
                ) f;
            end if;
            perform set_config('plan_cache_mode', 'force_generic_plan', true);
            select array_agg(f.id), array_agg(f.similarity) into v_dense_ids, v_dense from (
                select r.id, r.similarity from unnest(v_dense_ids, v_dense, v_generations)
                as r (id, similarity, generation_id) where exists ({visible_r} offset 0) limit p_depth
            ) f;
        end if;
        -- Rarely: a filter that leaves much, or a reader of few among many passages.
        if not v_listed and v_chunks > {exact} and coalesce(cardinality(v_dense_ids), 0) < v_wanted then
            perform set_config('plan_cache_mode', 'force_custom_plan', true);
            select array_agg(f.chunk_id), array_agg(1 - f.distance) into v_dense_ids, v_dense from (
                select v.chunk_id, v.embedding <=> p_embedding as distance from {table} v
                where v.tenant_id = p_tenant and exists ({visible_v} {narrowed} offset 0)
                order by v.embedding <=> p_embedding limit p_depth
            ) f;
        end if;
        -- A narrow search; or the index gave up, which it does after hnsw.max_scan_tuples.
        if coalesce(cardinality(v_dense_ids), 0) < v_wanted then
            perform set_config('plan_cache_mode', 'force_custom_plan', true);
            if not v_listed then
                {list_generations}
            end if;
            select array_agg(f.chunk_id), array_agg(1 - f.distance) into v_dense_ids, v_dense from (
                select v.chunk_id, v.embedding <=> p_embedding as distance
                from chunk_terms w join {table} v on v.tenant_id = p_tenant and v.chunk_id = w.chunk_id
                where w.tenant_id = p_tenant and w.generation_id = any(v_generations)
                order by (v.embedding <=> p_embedding) + 0 limit p_depth
            ) f;
        end if;
    end if;

    if cardinality(p_terms) > 0 then
        perform set_config('plan_cache_mode', 'force_generic_plan', true);
        select '{{' || string_agg(q.term || ':' || q.weight, ',') filter (where q.chunks > 0) || '}}/1000000000',
            array_agg(q.term) filter (where q.chunks > 0),
            array_agg(q.term) filter (where q.chunks > 0 and (q.named <= {postings} or q.named = q.chunks)),
            {gain} * sum(q.weight)
        into v_query, v_terms, v_nominators, v_most
        from (
            select t.term, f.chunks, sum(f.chunks) over (order by f.chunks, t.term) as named, t.count * ln(1
                + (v_chunks - least(coalesce(f.chunks, 0), v_chunks) + .5) / (coalesce(f.chunks, 0) + .5)) as weight
            from unnest(p_terms, p_counts) as t (term, count)
            left join term_frequencies f on f.tenant_id = p_tenant and f.term = t.term and f.chunks > 0
        ) q;
        v_known := cardinality(p_terms) > 1 and coalesce(cardinality(v_terms), 0) = cardinality(p_terms);
        if v_terms is null then
            null;
        elsif v_listed then
            select array_agg(f.chunk_id), array_agg(f.score) into v_word_ids, v_words from (
                select w.chunk_id, -(w.weights <#> v_query) as score from chunk_terms w
                where w.tenant_id = p_tenant and w.generation_id = any(v_generations) and -(w.weights <#> v_query) > 0
                order by 2 desc limit p_depth
            ) f;
        else
            for attempt in 1..2 loop
                select array_agg(f.chunk_id), array_agg(f.score) into v_word_ids, v_words from (
                    select r.chunk_id, r.score from (
                        select w.chunk_id, w.generation_id, w.score from keyword_candidates_v1(v_nominators, v_query) w
                        order by w.score desc offset 0
                    ) r where exists ({visible_r} {narrowed} offset 0) limit p_depth
                ) f;
                exit when cardinality(v_word_ids) >= p_depth or cardinality(v_terms) = cardinality(v_nominators);
                v_nominators := v_terms;
            end loop;
        end if;
        v_coverage := coalesce(v_words[1], 0) / v_most;
    end if;

    -- Whether there may be passages beyond the candidates: copies of one text can take all the places.
    v_more := coalesce(greatest(cardinality(v_dense_ids), cardinality(v_word_ids)), 0) >= p_depth;
    -- Each lane's best also get the score that the other lane would give them.
    if p_embedding is not null and v_terms is not null then
        v_both := true;
        select v_word_ids || coalesce(array_agg(m.chunk_id), '{{}}'), v_words || coalesce(array_agg(m.score), '{{}}')
        into v_all_ids, v_words from (
            select w.chunk_id, -(w.weights <#> v_query) as score from chunk_terms w where w.tenant_id = p_tenant
            and w.chunk_id = any(array(select unnest(v_dense_ids) except all select unnest(v_word_ids)))
        ) m;
        perform set_config('plan_cache_mode', 'force_custom_plan', true);
        select v_dense_ids || coalesce(array_agg(m.chunk_id), '{{}}'),
            v_dense || coalesce(array_agg(m.similarity), '{{}}')
        into v_dense_ids, v_dense from (
            select v.chunk_id, 1 - (v.embedding <=> p_embedding) as similarity from {table} v
            where v.tenant_id = p_tenant
            and v.chunk_id = any(array(select unnest(v_word_ids) except all select unnest(v_dense_ids)))
        ) m;
        v_word_ids := v_all_ids;
    end if;
    perform set_config('plan_cache_mode', 'force_generic_plan', true);
    if v_known and v_coverage >= {whole_least} then
        select coalesce(array_agg(w.chunk_id), '{{}}') into v_whole from chunk_terms w
        where w.tenant_id = p_tenant and w.terms @> p_terms and w.chunk_id = any(array(
            select u.id from unnest(v_word_ids, v_words) as u (id, score) where u.score >= {whole_least} * v_most));
    end if;
    -- The more of the query the best passage covers, the more words count, up to half: across languages, not at all.
    v_share := .5 * least(greatest((v_coverage - .05) / .15, 0), 1);
    -- Where words tell little, the caller compares more passages by their tokens.
    if p_embedding is not null and v_share < {told} and p_reranked > p_k then
        v_k := p_reranked;
        v_pool := p_pool - p_k + p_reranked;
    end if;

    if v_both then
        return query {place_fused}
    else
        if p_embedding is null then
            v_dense_ids := v_word_ids;
            v_dense := v_words;
        end if;
        return query {place_single}
    end if;
end $search$;
"""
FUSED = """
    select f.id, f.dense, f.words,
        (1 - v_share) * coalesce((f.dense - avg(f.dense) over ()) / nullif(stddev_pop(f.dense) over (), 0), 0)
        + v_share * coalesce((f.words - avg(f.words) over ()) / nullif(stddev_pop(f.words) over (), 0), 0)
        + case when f.id = any(v_whole) then {whole_bonus} else 0 end as score
    from (
        select l.id, max(l.dense) as dense, max(l.words) as words from (
            select u.id, u.dense, null::float8 as words from unnest(v_dense_ids, v_dense) as u (id, dense)
            union all
            select u.id, null, u.words from unnest(v_word_ids, v_words) as u (id, words)
        ) l group by l.id
    ) f order by score desc, f.id limit v_pool
"""
SINGLE = """
    select u.id, case when p_embedding is not null then u.score end as dense,
        case when p_embedding is null then u.score end as words,
        u.score + case when u.id = any(v_whole) then v_most else 0 end as score
    from unnest(v_dense_ids, v_dense) as u (id, score) order by 4 desc, u.id limit v_pool
"""
# One passage for each text, with its text and one document: the reader's own, else the oldest that the reader sees.
PLACE = """
    with placed as (
        select r.*, c.text, c.page, c.heading, c.start_ms, c.end_ms, c.box, d.document_id, d.filename, d.source_type,
            row_number() over (partition by c.text_hash order by r.score desc, d.own desc, d.created_at, r.id) as copy
        from ({ranked}) r join chunks c on c.tenant_id = p_tenant and c.id = r.id
        cross join lateral (
            select d.id as document_id, d.filename, d.source_type, d.owner_id = p_user as own, d.created_at
            from documents d where d.tenant_id = p_tenant and d.generation_id = c.generation_id
            and (d.visibility = 'tenant' or d.owner_id = p_user) {narrowed}
            order by own desc, d.created_at, d.id limit 1
        ) d
    )
    select p.id, p.document_id, p.filename, p.source_type, p.text, p.page, p.heading, p.start_ms, p.end_ms, p.box,
        p.score, p.dense, p.words, v_coverage, v_more
    from placed p where p.copy = 1 order by p.score desc, p.id limit v_k;
"""
LIST_GENERATIONS = """
        select coalesce(array_agg(l.generation_id), '{{}}'), coalesce(sum(l.chunk_count), 0) into v_generations, v_scope
        from (
            select distinct d.generation_id, g.chunk_count from documents d
            join generations g on g.tenant_id = d.tenant_id and g.id = d.generation_id
            where d.tenant_id = p_tenant and (d.visibility = 'tenant' or d.owner_id = p_user) {narrowed}
        ) l;
"""


def function_sql(space: Space) -> list[str]:
    """Statements that create the search function of a space and let the application call it."""
    text = FUNCTION.format(
        name=space.function,
        table=space.table,
        storage=space.storage,
        exact=EXACT_CHUNKS,
        postings=POSTINGS,
        gain=SATURATION + 1,
        told=COVERED / 2,
        whole_least=WHOLE_LEAST,
        narrowed=NARROWED,
        visible_r=VISIBLE.format(generation="r.generation_id"),
        visible_v=VISIBLE.format(generation="v.generation_id"),
        place_fused=PLACE.format(ranked=FUSED.format(whole_bonus=WHOLE_BONUS), narrowed=NARROWED),
        place_single=PLACE.format(ranked=SINGLE, narrowed=NARROWED),
        list_generations=LIST_GENERATIONS.format(narrowed=NARROWED),
    )
    return [text, f"grant execute on function {space.function} to dreamhub_app"]
