-- A worker that expands an archive for all makes its collection known to all, also where it was private before.
grant update (announced, created_at) on collections to dreamhub_worker;
