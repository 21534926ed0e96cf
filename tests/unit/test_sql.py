"""SQL stands in the repositories and nowhere else, as literals that can be read and checked."""

import ast
import re
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.statements import (
    OTHER_NAMES,
    OWNER_FILES,
    REPOSITORIES,
    ROOT,
    SHARED_FILES,
    SPACE_NAMES,
    UnreadableError,
    statements,
    statements_of,
)

SQL = re.compile(
    r"\bselect\b.+\bfrom\s+\w|\binsert\s+into\s+\w|\bupdate\s+\w+(\s+\w+)?\s+set\b|\bdelete\s+from\s+\w"
    r"|\b(create|alter|drop|truncate|grant|revoke|copy|set\s+local|analyze|vacuum|listen|notify)\s"
    r"+(table|role|index|policy|schema|database|function|trigger|view|app\.)\b|\bset_config\(",
    re.IGNORECASE | re.DOTALL,
)
# The terminal client's own memory of uploads, on the user's machine.
SQLITE = ROOT / "cmd" / "dreamhub" / "client" / "uploads.py"
# Names that may stand in the statements which the owner runs before the product does: made by code, or checked first.
OWNER_NAMES = {
    "migrate.py": {
        "', '.join((*LOGIN_ROLES, DIRECTORY))",
        "', '.join(LOGIN_ROLES)",
        "APP",
        "BACKUP",
        "DIRECTORY",
        "OWNER",
        "bypass",
        "database",
        "login",
        "role",
        "roles",
    },
    "spaces.py": {
        "PARTITIONS",
        "kind",
        "name",
        "part",
        "place",
        "space.dim",
        "space.storage",
        "space.table",
        "table",
    },
    "search_function.py": {"space.function"},
    "probe.py": set(),
}


def python_files() -> Generator[Path]:
    for folder in ("internal", "pkg", "cmd"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def texts(tree: ast.Module) -> Generator[tuple[int, str]]:
    """Every string that isn't a docstring, with adjacent and interpolated parts together."""
    silent = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
            yield node.lineno, "".join(map(str, parts))


def test_every_statement_can_be_read():
    found = statements()
    files = {item.file for item in found}
    silent = {
        path.name
        for path in REPOSITORIES.glob("*.py")
        if path.name not in OWNER_FILES | SHARED_FILES | files and SQL.search(path.read_text(encoding="utf-8"))
    }
    assert silent == set(), "files with SQL of which no statement was found"
    assert len(found) > 100


@pytest.mark.parametrize(
    "argument",
    [
        'f"select id from documents where tenant_id = $1 and name = {name}"',
        '"select id from documents where tenant_id = $1 and name = " + name',
        '"select id from %s" % name',
        '"select id from {}".format(name)',
        "name",
        'f"select id from {ctx.tenant_id}"',
    ],
)
def test_a_statement_with_a_value_in_it_is_refused(argument: str):
    source = f"class Some:\n    async def get(self, ctx, name):\n        await self._conn.fetch({argument}, 1)\n"
    with pytest.raises(UnreadableError):
        statements_of("some.py", source)


def test_no_other_layer_speaks_sql():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text[:80]}"
        for path in python_files()
        if not path.is_relative_to(REPOSITORIES) and path != SQLITE
        for line, text in texts(ast.parse(path.read_text(encoding="utf-8")))
        if SQL.search(text)
    ]
    assert found == []


def test_no_function_is_replaced_in_place():
    """Old and new processes run side by side, so a changed function is a new version."""
    replacing = {
        path.name
        for path in (ROOT / "migrations").glob("*.sql")
        if re.search(r"\bor\s+replace\b", path.read_text(encoding="utf-8"), re.IGNORECASE)
    }
    assert replacing == {"0010_sign_ins.sql"}, "that one was merged before the rule was checked"


@pytest.mark.parametrize(
    "text",
    [
        "select id from documents",
        "SELECT *\nFROM users",
        "insert into tasks (id) values ($1)",
        "update tasks t set status = 'dead'",
        "delete from chunks",
        "set local app.tenant_id = ''",
        "select set_config('app.tenant_id', $1, true)",
        "drop table users",
    ],
)
def test_sql_is_recognised(text: str):
    assert SQL.search(text)


def test_only_names_made_by_code_are_put_into_statements():
    """Of every interpolated text with SQL in it, in whatever way it reaches a connection."""
    strange: list[str] = []
    for path in sorted(REPOSITORIES.glob("*.py")):
        allowed = {*SPACE_NAMES, *(name for file, name in OTHER_NAMES if file == path.name)}
        allowed |= OWNER_NAMES.get(path.name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr) and _is_statement(node):
                names = {ast.unparse(part.value) for part in node.values if isinstance(part, ast.FormattedValue)}
                strange += [f"{path.name}:{node.lineno}: {{{name}}}" for name in names - allowed]
    assert strange == []


def _is_statement(node: ast.JoinedStr) -> bool:
    first = node.values[0]
    words = str(first.value).split() if isinstance(first, ast.Constant) else []
    return bool(words) and words[0].lower() in {
        "select", "insert", "update", "delete", "with", "create", "alter", "drop", "grant", "revoke", "begin;", "begin",
        "analyze", "set", "lock", "copy", "truncate", "listen", "notify", "comment",
    }  # fmt: skip
