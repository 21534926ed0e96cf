"""Who is asking is passed on as `ctx` from the door to the repository, neither guessed nor made up on the way."""

import ast
from collections.abc import Generator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTEXT_VARIABLES = {"tenant_id", "user_id", "request_id", "trace_id"}

# Each of these works before it is known who asks, or for no tenant at all.
WITHOUT_CONTEXT = {
    "authentication.py:Authenticator.authenticate",
    "authentication.py:Authenticator.verify",
    "sessions.py:SessionService.sign_in",
    "sessions.py:SessionService.refresh",
    "sessions.py:SessionService.sign_out",
    "installation.py:InstallationService.refresh",
    "tenants.py:TenantService.add",
    "tenants.py:TenantService.set_queue_weight",
}
DIRECTORY_CALLERS = {
    "services/authentication.py:Authenticator._find_key",
    "services/authentication.py:Authenticator._find_member",
    "services/sessions.py:SessionService.sign_in",
    "services/tenants.py:TenantService.add",
    "services/tenants.py:TenantService.set_queue_weight",
}
SYSTEM_CALLERS = {
    "services/installation.py:InstallationService.refresh",
    "worker/watch.py:Watch.look",
    "worker/claims.py:Claims._end",
    "worker/claims.py:Claims._take",
    "worker/claims.py:Claims.tell_relay",
    "worker/relay.py:Relay.dispatch",
    "worker/relay.py:Relay.mend",
    "worker/relay.py:Relay.number",
    "worker/relay.py:Relay.publish",
    "worker/relay.py:Relay.sweep",
    "worker/relay.py:Relay.settle_batches",
    "worker/relay.py:Relay.tidy",
}
CONTEXT_MAKERS = {
    "handlers/auth.py:Admission.__call__",  # a verified credential
    "services/sessions.py:_context",  # a right password, or the tenant that a refresh token names
    "worker/runner.py:Worker._carry_out",  # the task's row, never the message
    "services/event_feeds.py:Feed.start",  # like the next
    "worker/batching.py:Batched.ask",  # no context of ours but the interpreter's, left empty on purpose
}
CONTEXT_READERS = {
    "internal/handlers/observation.py": {"request_id"},  # the request's log line
    "internal/handlers/problems.py": {"request_id"},  # an error's answer
    "pkg/logger.py": CONTEXT_VARIABLES,
}
# Work that starts here would not inherit the ids of its request: its log lines would say nothing of whose they are.
FORGETFUL = {
    "run_in_executor",
    "Thread",
    "Timer",
    "ThreadPoolExecutor",
    "ProcessPoolExecutor",
    "run_coroutine_threadsafe",
}


def modules(*folders: str) -> Generator[tuple[str, ast.Module]]:
    """Path below the checkout and tree of every module in these folders."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), parsed(path)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def callers(function: str, *folders: str) -> set[str]:
    """`file:Class.method` of whoever calls `….function(`, or `function(` for a name without a dot."""
    found: set[str] = set()
    for path, tree in modules(*folders):
        for name, node in functions(tree):
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and _is(call.func, function):
                    found.add(f"{path.removeprefix('internal/')}:{name}")
    return found


def functions(tree: ast.Module) -> Generator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions and methods; one inside another counts as a part of it."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{item.name}", item


def _is(node: ast.expr, function: str) -> bool:
    wanted = function.split(".")
    if isinstance(node, ast.Name):
        return wanted == [node.id]
    if not isinstance(node, ast.Attribute) or node.attr != wanted[-1]:
        return False
    owner = ast.unparse(node.value).split(".")[-1].lstrip("_")
    return len(wanted) == 1 or owner == wanted[0]


def reaching(owner: ast.ClassDef) -> set[str]:
    """Methods that come to the store or to another service, by themselves or through others of their class."""
    methods = {item.name: item for item in owner.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)}
    used = {
        name: {
            part.attr
            for part in ast.walk(method)
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self"
        }
        for name, method in methods.items()
    }
    found = {name for name, names in used.items() if "_store" in names and name != "__init__"}
    while True:
        more = {name for name, names in used.items() if names & found and name != "__init__"} | found
        if more == found:
            return found
        found = more


def without_context(tree: ast.Module) -> set[str]:
    """Public methods that reach the store and don't begin with `ctx: Context`."""
    found: set[str] = set()
    for owner in tree.body:
        if not isinstance(owner, ast.ClassDef):
            continue
        reaches = reaching(owner)
        for item in owner.body:
            if not isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) or item.name.startswith("_"):
                continue
            arguments = item.args.args
            first = ast.unparse(arguments[1]) if len(arguments) > 1 else ""
            if item.name in reaches and first != "ctx: Context":
                found.add(f"{owner.name}.{item.name}")
    return found


def test_every_service_method_that_reaches_the_store_takes_ctx_first():
    found = {
        f"{path.rpartition('/')[2]}:{name}"
        for path, tree in modules("internal/services")
        for name in without_context(tree)
    }
    assert found == WITHOUT_CONTEXT


def test_services_that_reach_the_store_are_seen():
    seen = {
        owner.name
        for _, tree in modules("internal/services")
        for owner in tree.body
        if isinstance(owner, ast.ClassDef) and reaching(owner)
    }
    assert seen >= {"ChatService", "DocumentService", "IngestService", "MemberService", "SearchService", "TaskService"}


def test_a_method_that_reaches_the_store_in_a_roundabout_way_is_seen():
    source = """
class Some:
    def __init__(self, store): self._store = store
    async def good(self, ctx: Context, name): await self._load(ctx)
    async def unmarked(self, ctx, name): await self._load(ctx)
    async def bad(self, name): await self._indirect(name)
    async def harmless(self, name): return name
    async def _indirect(self, name): await self._load(None)
    async def _load(self, ctx): self._store.tenant(ctx)
"""
    assert without_context(ast.parse(source)) == {"Some.unmarked", "Some.bad"}


def test_who_may_look_without_a_tenant():
    assert callers("store.directory", "internal") == DIRECTORY_CALLERS


def test_who_may_work_across_tenants():
    assert callers("store.system", "internal") == SYSTEM_CALLERS


def test_a_transaction_is_opened_for_the_context_that_was_handed_in():
    strange = [
        f"{path}:{call.lineno}: {ast.unparse(call)}"
        for path, tree in modules("internal/services", "internal/handlers", "internal/worker")
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and (_is(call.func, "store.tenant") or _is(call.func, "store.search"))
        and ast.unparse(call.args[0]) not in ("ctx", "attempt.ctx", "settlements[0].ctx")
    ]
    assert strange == []


def test_who_makes_a_context():
    """Only where a credential, a password or a task's row says whose work it is. None is changed afterwards."""
    assert callers("Context", "internal", "pkg", "cmd") == CONTEXT_MAKERS
    changed = [
        f"{path}:{call.lineno}"
        for path, tree in modules("internal", "pkg", "cmd")
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and _is(call.func, "structs.replace")
        and ast.unparse(call.args[0]).endswith("ctx")
        and {word.arg for word in call.keywords} & {"tenant_id", "user_id", "role"}
    ]
    assert changed == []


def test_no_decision_reads_a_context_variable():
    found: dict[str, set[str]] = {}
    for path, tree in modules("internal", "pkg", "cmd"):
        if path == "pkg/ctxutil.py":
            continue
        for node in ast.walk(tree):
            names: set[str] = set()
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("ctxutil"):
                names = {node.attr}
            elif isinstance(node, ast.ImportFrom) and node.module == "pkg.ctxutil":
                names = {alias.name for alias in node.names}
            if names & (CONTEXT_VARIABLES | {"_current", "_request_id"}):
                found.setdefault(path, set()).update(names)
    assert found == CONTEXT_READERS


@pytest.mark.parametrize("layer", ["handlers", "services", "repositories", "providers", "worker", "parsers"])
def test_no_work_starts_where_the_ids_of_its_request_are_lost(layer: str):
    """create_task and to_thread copy them; an executor and a bare thread don't."""
    lost = [
        f"{path}:{call.lineno}: {ast.unparse(call.func)}"
        for path, tree in modules(f"internal/{layer}")
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in FORGETFUL
    ]
    assert lost == []
