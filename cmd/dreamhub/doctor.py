"""`dreamhub doctor`: looks at everything that DreamHub depends on, and says what to do about what is wrong."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum
from http import HTTPStatus
from importlib import import_module
from pathlib import Path

import httpx
import msgspec

from dreamhub import scanner
from dreamhub.running import settings_of_running
from internal.entities.watch import Installation
from internal.parsers.sandbox import Sandbox
from internal.providers.antivirus import open_antivirus
from internal.providers.blobs import open_blobs
from internal.providers.embeddings import OpenAIEmbeddings
from internal.providers.local_models import model_client
from internal.repositories import migrate, probe
from internal.wiring import space_of
from pkg import config, failpoints
from pkg.apperr import AppError, Code, SettingsError
from pkg.config import Settings
from pkg.sections import LOCAL_EMBEDDING_DIM

TIMEOUT_SECONDS = 5.0
SILENT_SECONDS = 60.0
EMBEDDING_SECONDS = 30.0  # an endpoint on this machine may have to load its model
LITTLE_RECALL = 0.95
GIB = 2**30
LITTLE_SPACE, TOO_LITTLE_SPACE = 10 * GIB, 1 * GIB
START = "start everything on this machine with `dreamhub up`"
# The harmless file that every scanner reports, in two halves, so that none reports this source.
EICAR = r"X5O!P%@AP[4\PZX54(P^)7CC)7}$" + "EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


class Finding(msgspec.Struct, frozen=True):
    """One line of the report. `remedy` is empty where nothing is to be done."""

    level: Level
    subject: str
    text: str
    remedy: str = ""


def run(*, home: Path | None) -> int:
    """Prints a line for each finding; answers 1 when something fails."""
    return asyncio.run(_report(home))


def list_failpoints() -> int:
    """Prints each named place where DREAMHUB_FAILPOINTS may break a process, and what is true there."""
    for name, meaning in failpoints.PLACES.items():
        print(f"{name:<24}{meaning}")
    return 0


async def _report(home: Path | None) -> int:
    failed = False
    async for finding in examine(home):
        failed = failed or finding.level is Level.FAIL
        print(f"{finding.level:<5}{finding.subject:<15}{finding.text}")
        if finding.remedy:
            print(f"{'':<20}→ {finding.remedy}")
    print("\nSomething has to be mended before DreamHub can work." if failed else "\nAll that is needed is there.")
    return int(failed)


async def examine(home: Path | None) -> AsyncIterator[Finding]:
    """All findings, in order. A running `up` of `home` is looked at where the settings name no servers."""
    yield _python()
    yield _libmagic()
    try:
        settings = settings_of_running(home, owner=True)
    except SettingsError as error:
        for line in str(error).splitlines():
            yield Finding(Level.FAIL, "Settings", line)
        return
    yield Finding(Level.OK, "Settings", f"{settings.env}, home {config.home_of(settings)}")
    yield _disk(config.home_of(settings))
    checks: tuple[Callable[[Settings], Awaitable[list[Finding]]], ...] = (
        _postgres,
        _redis,
        _blobs,
        _models,
        _endpoint,
        _embeddings,
        _clamd,
        _sandbox,
    )
    for check in checks:
        for finding in await check(settings):
            yield finding


def _python() -> Finding:
    text = sys.version.split()[0]
    if sys.version_info[:2] == (3, 11):
        return Finding(Level.OK, "Python", text)
    return Finding(Level.FAIL, "Python", text, "use Python 3.11")


def _libmagic() -> Finding:
    try:
        import_module("pylibmagic")  # makes its library known to `magic`
        kind = import_module("magic").from_buffer(b"%PDF-1.7\n", mime=True)
    except (ImportError, OSError) as error:
        return Finding(Level.FAIL, "libmagic", str(error), "install the package pylibmagic, or Debian's libmagic1")
    if kind != "application/pdf":
        return Finding(Level.FAIL, "libmagic", f"takes a PDF for {kind}", "install the package pylibmagic again")
    return Finding(Level.OK, "libmagic", "knows a PDF when it sees one")


def _disk(home: Path) -> Finding:
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    text = f"{free / GIB:.1f} GiB free in {place}"
    if free < TOO_LITTLE_SPACE:
        return Finding(Level.FAIL, "Disk", text, "make room, or choose another --home")
    if free < LITTLE_SPACE:
        return Finding(Level.WARN, "Disk", text, "uploads and their index soon need more")
    return Finding(Level.OK, "Disk", text)


async def _postgres(settings: Settings) -> list[Finding]:
    dsn, subject = settings.db.dsn.get_secret_value(), "PostgreSQL"
    if not dsn:
        return [Finding(Level.FAIL, subject, "DB__DSN isn't set and no `up` is running", f"{START}, or set DB__DSN")]
    try:
        facts = await probe.postgres(dsn, TIMEOUT_SECONDS)
        waiting = await migrate.pending(dsn)
    except AppError as error:
        return [Finding(Level.FAIL, subject, error.detail, "check DB__DSN: host, port, role, password and database")]
    found = [_version_of_postgres(facts), _pgvector(facts), _login(facts)]
    if waiting:
        found.append(Finding(Level.FAIL, "Migrations", f"{len(waiting)} missing", "run `dreamhub migrate`"))
    else:
        found.append(Finding(Level.OK, "Migrations", "up to date"))
        found += await _installation(dsn)
        found += await _recall(settings)
    return found


async def _installation(dsn: str) -> list[Finding]:
    """What relays and sweeps of objects have seen."""
    try:
        seen = await probe.installation(dsn, TIMEOUT_SECONDS)
    except AppError as error:
        return [Finding(Level.WARN, "Relay", error.detail, f"let DB__DSN log in as {migrate.APP}")]
    return [_relay(seen), _alerts(seen), _objects(seen)]


async def _recall(settings: Settings) -> list[Finding]:
    """Of the vector index, over a sample of what is stored; the owner alone may look at every tenant's."""
    dsn, subject = settings.db.owner_dsn.get_secret_value(), "Vector index"
    if not dsn:
        return []
    try:
        seen = await probe.recall(dsn, space_of(settings), TIMEOUT_SECONDS)
    except AppError as error:
        return [Finding(Level.WARN, subject, error.detail, "check DB__OWNER_DSN")]
    if seen is None:
        return [Finding(Level.OK, subject, "every tenant is so small that its passages are compared one by one")]
    text = f"finds {seen.share:.1%} of the ten nearest passages, {seen.queries} tries in {seen.tenants} tenants"
    if seen.share < LITTLE_RECALL:
        return [Finding(Level.WARN, subject, text, "reindex the largest tenants' partitions (reindex concurrently)")]
    return [Finding(Level.OK, subject, text)]


def _relay(seen: Installation) -> Finding:
    if seen.seconds is None:
        return Finding(Level.WARN, "Relay", "none has looked yet", "start `dreamhub relay`")
    text = f"looked at queues and workers {seen.seconds:.0f} s ago"
    if seen.seconds > SILENT_SECONDS:
        return Finding(Level.FAIL, "Relay", text, "start `dreamhub relay`, or see its log")
    return Finding(Level.OK, "Relay", text)


def _alerts(seen: Installation) -> Finding:
    raised = sorted(seen.last.alerts) if seen.last is not None else []
    if raised:
        return Finding(Level.WARN, "Alerts", ", ".join(raised), "see docs/operators.md, alerts and stuck states")
    return Finding(Level.OK, "Alerts", "none")


def _objects(seen: Installation) -> Finding:
    if seen.objects_missing:
        text = f"stored files that are gone: {seen.objects_missing}"
        return Finding(Level.WARN, "Lost objects", text, "restore them from a backup, or upload the same files again")
    swept = f"{seen.oldest_sweep:%Y-%m-%d %H:%M} UTC" if seen.oldest_sweep else "never"
    return Finding(Level.OK, "Lost objects", f"none; every tenant's were looked for since: {swept}")


def _version_of_postgres(facts: probe.PostgresFacts) -> Finding:
    if facts.major < migrate.MINIMUM_POSTGRES:
        remedy = f"upgrade to PostgreSQL {migrate.MINIMUM_POSTGRES} or newer"
        return Finding(Level.FAIL, "PostgreSQL", facts.version, remedy)
    return Finding(Level.OK, "PostgreSQL", facts.version)


def _pgvector(facts: probe.PostgresFacts) -> Finding:
    wanted = ".".join(map(str, migrate.MINIMUM_PGVECTOR))
    if facts.pgvector is None:
        return Finding(Level.FAIL, "pgvector", "missing", "as a superuser, in this database: create extension vector")
    if tuple(int(part) for part in facts.pgvector.split(".")[:3]) < migrate.MINIMUM_PGVECTOR:
        return Finding(
            Level.FAIL, "pgvector", facts.pgvector, f"install {wanted} or newer; alter extension vector update"
        )
    return Finding(Level.OK, "pgvector", facts.pgvector)


def _login(facts: probe.PostgresFacts) -> Finding:
    if facts.superuser or facts.bypasses_rls:
        return Finding(
            Level.FAIL,
            "Login role",
            f"{facts.role} passes by row-level security",
            f"let DB__DSN log in as {migrate.APP}",
        )
    return Finding(Level.OK, "Login role", f"{facts.role}, bound by row-level security")


async def _redis(settings: Settings) -> list[Finding]:
    url = settings.redis.url.get_secret_value()
    if not url:
        return [
            Finding(Level.FAIL, "Redis", "REDIS__URL isn't set and no `up` is running", f"{START}, or set REDIS__URL")
        ]
    try:
        return [Finding(Level.OK, "Redis", await probe.redis(url, TIMEOUT_SECONDS))]
    except AppError as error:
        return [Finding(Level.FAIL, "Redis", error.detail, "check REDIS__URL: host, port and password")]


async def _blobs(settings: Settings) -> list[Finding]:
    if not settings.blobs.url:
        return [
            Finding(Level.FAIL, "Objects", "BLOBS__URL isn't set and no `up` is running", f"{START}, or set BLOBS__URL")
        ]
    try:
        await open_blobs(settings.blobs).check()
    except (SettingsError, AppError) as error:
        text = error.detail if isinstance(error, AppError) else str(error)
        return [Finding(Level.FAIL, "Objects", text, "check BLOBS__URL, its keys, and that it may be written to")]
    return [Finding(Level.OK, "Objects", settings.blobs.url.partition("?")[0])]


async def _models(settings: Settings) -> list[Finding]:
    url = settings.models.url
    if not url:
        return [
            Finding(
                Level.FAIL,
                "Local models",
                "MODELS__URL isn't set and no `up` is running",
                f"{START}, or set MODELS__URL",
            )
        ]
    try:
        async with model_client(url, timeout=TIMEOUT_SECONDS) as client:
            answer = await client.get("/readyz")
    except httpx.HTTPError as error:
        return [Finding(Level.FAIL, "Local models", str(error) or type(error).__name__, "start `dreamhub models`")]
    if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        text = "the embedding model is not loaded yet"
        return [Finding(Level.WARN, "Local models", text, "wait some seconds, then see the log of `dreamhub models`")]
    if answer.status_code != HTTPStatus.OK:
        return [
            Finding(Level.FAIL, "Local models", f"answers {answer.status_code}", "see the log of `dreamhub models`")
        ]
    return [Finding(Level.OK, "Local models", url)]


async def _endpoint(settings: Settings) -> list[Finding]:
    if not settings.ai.base_url:
        return [Finding(Level.OK, "Chat model", "none set: answers are quoted from the documents")]
    keys = settings.ai.api_keys
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
            answer = await client.get(f"{settings.ai.base_url.rstrip('/')}/models", headers=headers)
    except httpx.HTTPError as error:
        return [Finding(Level.FAIL, "Chat model", str(error) or type(error).__name__, "check AI__BASE_URL")]
    if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return [Finding(Level.FAIL, "Chat model", f"refuses the key ({answer.status_code})", "check AI__API_KEY")]
    if answer.status_code != HTTPStatus.OK:
        text = f"{settings.ai.base_url} answers {answer.status_code} to a list of its models"
        return [Finding(Level.WARN, "Chat model", text, "some endpoints have no such list; try a chat")]
    return [Finding(Level.OK, "Chat model", settings.ai.base_url)]


async def _embeddings(settings: Settings) -> list[Finding]:
    """Embeds one word, which shows the model's name, the key and the dimension to be right."""
    if not settings.ai.embedding_model:
        return [Finding(Level.OK, "Embeddings", f"by the built-in model, {LOCAL_EMBEDDING_DIM} dimensions")]
    provider = OpenAIEmbeddings(settings.ai, space_of(settings))
    try:
        async with asyncio.timeout(EMBEDDING_SECONDS):
            await provider.embed(["word"], kind="query", lane="interactive")
    except (AppError, TimeoutError) as error:
        text = error.detail if isinstance(error, AppError) else f"no answer in {EMBEDDING_SECONDS:.0f} s"
        remedy = "check AI__BASE_URL, AI__API_KEY, AI__EMBEDDING_MODEL and AI__EMBEDDING_DIM"
        return [Finding(Level.FAIL, "Embeddings", text, remedy)]
    finally:
        await provider.close()
    text = f"{settings.ai.embedding_model}, {settings.ai.embedding_dim} dimensions"
    return [Finding(Level.OK, "Embeddings", text)]


async def _clamd(settings: Settings) -> list[Finding]:
    if settings.scan.clamd == "off":
        found = scanner.find(settings)
        if isinstance(found, scanner.Off):
            return [Finding(Level.WARN, "Virus scan", f"off: {found.reason}", found.remedy)]
        return [Finding(Level.WARN, "Virus scan", f"off: {found} isn't used", f"{START}, or set SCAN__CLAMD")]
    antivirus = open_antivirus(settings.scan)
    try:
        await antivirus.check()
    except AppError as error:
        return [Finding(Level.FAIL, "Virus scan", error.detail, "check SCAN__CLAMD and that clamd is running")]
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample"
        sample.write_text(EICAR)
        try:
            await antivirus.scan(sample)
        except AppError as error:
            if error.code is Code.FILE_INFECTED:
                return [Finding(Level.OK, "Virus scan", "finds the test virus")]
            return [Finding(Level.FAIL, "Virus scan", error.detail, "see clamd's log")]
    return [Finding(Level.FAIL, "Virus scan", "lets the test virus pass", "update clamd's signatures (freshclam)")]


async def _sandbox(settings: Settings) -> list[Finding]:
    sandbox = Sandbox(settings.limits)
    try:
        await sandbox.start()
        walls = sandbox.capabilities
    except AppError as error:
        return [Finding(Level.FAIL, "Parsing", error.detail, "see the log of a worker")]
    finally:
        await sandbox.close()
    text = f"files are read in a child behind: {', '.join(sorted(walls)) or 'limits alone'}"
    if "network" not in walls and "calls" not in walls:
        return [
            Finding(Level.WARN, "Parsing", text, "allow user namespaces or seccomp, so that a child has no network")
        ]
    return [Finding(Level.OK, "Parsing", text)]
