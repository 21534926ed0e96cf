"""Every SQL statement of the repositories, read from their source: what it says, where it stands, who calls it."""

import ast
import re
from collections.abc import Generator
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]
REPOSITORIES = ROOT / "internal" / "repositories"
CALLS = frozenset({"execute", "executemany", "fetch", "fetchrow", "fetchval", "cursor", "prepare"})
CONNECTIONS = frozenset({"conn", "self._conn"})
TABLE, FUNCTION, STORAGE = "vectors_1", "search_v3_1", "vector"
# What may be put into a statement besides literals: names that code makes and ids that are UUIDs already.
SPACE_NAMES = {"space.table": TABLE, "space.function": FUNCTION, "space.storage": STORAGE}
OTHER_NAMES = {
    ("vectors.py", "partition"): f"{TABLE}_0",  # a name that the database gave
    ("store.py", "ctx.tenant_id"): "00000000-0000-0000-0000-000000000000",
    ("store.py", "ctx.user_id"): "00000000-0000-0000-0000-000000000000",
}
OWNER_FILES = frozenset({"migrate.py", "spaces.py", "search_function.py", "probe.py", "processings.py"})
"""Files whose statements run before or beside the product: DDL and orders as the owner, questions to the server."""


SHARED_FILES = frozenset({"task_rows.py"})
"""Parts of statements; they are read where they are used."""


class UnreadableError(Exception):
    """A statement that isn't made of literals: nobody can check what it will say."""


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """One statement; `where` is `file:Class.method` and `sql` the text with a space's names filled in."""

    file: str
    owner: str
    line: int
    sql: str

    @property
    def where(self) -> str:
        return f"{self.file}:{self.owner}"

    @property
    def verb(self) -> str:
        """What it does to rows: insert, update, delete or select, whatever its first word is."""
        for verb in ("insert into", "update", "delete from"):
            if re.search(rf"(?:^|\(){verb} \w+", self.sql):
                return verb.split()[0]
        return self.sql.split(maxsplit=1)[0]


def statements() -> list[Statement]:
    """Every statement that the product's own transactions run. Raises UnreadableError."""
    return [
        found
        for path in sorted(REPOSITORIES.glob("*.py"))
        if path.name not in OWNER_FILES
        for found in statements_of(path.name, path.read_text(encoding="utf-8"))
    ]


def statements_of(file: str, source: str) -> list[Statement]:
    """The statements of one module."""
    tree = ast.parse(source)
    constants = _constants(tree, file)
    return [
        Statement(file=file, owner=owner, line=call.lineno, sql=_text(call.args[0], constants, file))
        for owner, function in functions(tree)
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and _asks(call)
    ]


def functions(tree: ast.Module) -> Generator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method with its name, `Class.method` or `function`."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{item.name}", item


def _asks(call: ast.Call) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr in CALLS
        and ast.unparse(function.value) in CONNECTIONS
        and bool(call.args)
    )


def _constants(tree: ast.Module, file: str) -> dict[str, str]:
    """Module constants that are texts, those of other repositories too."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("internal.repositories."):
            path = REPOSITORIES / f"{str(node.module).rpartition('.')[2]}.py"
            theirs = _constants(ast.parse(path.read_text(encoding="utf-8")), path.name)
            found |= {item.asname or item.name: theirs[item.name] for item in node.names if item.name in theirs}
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = _text(node.value, found, file)
            except UnreadableError:
                continue  # a number or a type; a statement that uses it is refused where it does
    return found


def _text(node: ast.expr, constants: dict[str, str], file: str) -> str:
    """The text that an expression of literals, constants and names of a space stands for."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, constants, file) + _text(node.right, constants, file)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, constants, file) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _interpolated(node, file)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "replace":
        old, new = (_text(argument, constants, file) for argument in node.args[:2])
        return _text(node.func.value, constants, file).replace(old, new, 1)
    raise UnreadableError(f"{file}:{node.lineno}: {ast.unparse(node)} is no literal")


def _interpolated(node: ast.FormattedValue, file: str) -> str:
    name = ast.unparse(node.value)
    known = SPACE_NAMES.get(name) or OTHER_NAMES.get((file, name))
    if known is None:
        raise UnreadableError(f"{file}:{node.lineno}: {{{name}}} is put into a statement; use a parameter")
    return known
