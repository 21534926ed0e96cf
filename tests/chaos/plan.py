"""The schedule of a run: what is done to the product, when, and to whom. The same seed gives the same schedule."""

import random

import msgspec

from tests.chaos.corpus import File, successor
from tests.chaos.history import Kind, Wanted

WORKERS = ("worker-1", "worker-2", "worker-3")
RELAYS = ("relay-1", "relay-2")
PROCESSES = (*WORKERS, *RELAYS, "server")
WEIGHTS = (25, 25, 25, 8, 8, 9)
QUIET_END = 0.97
"""Share of the time after which nothing new is broken."""

PACKED_SHARE = 0.15
"""Of the readable files; they come in archives of PACK."""
PACK = 5
REPLACED_SHARE = 0.15

ARMED_SHARE = 0.4
"""Of the starts of a process; the others are without failpoints."""
PLACES = {
    "worker": (
        *("worker.after_claim", "worker.before_ending", "ingest.after_parse", "ingest.after_embed"),
        *("ingest.after_batch", "ingest.before_publish", "ingest.after_publish", "purge.after_rows"),
        *("purge.after_blob", "worker.heartbeat", "archive.after_plan", "archive.after_entry"),
        "archive.before_removal",
    ),
    "relay": ("relay.after_dispatch", "relay.after_enqueue", "relay.after_broadcast"),
    "server": (
        *("upload.after_spool", "upload.after_scan", "upload.after_blob", "upload.after_commit"),
        *("part.after_object", "part.after_document"),
    ),
}
ACTIONS = (
    *("crash", "crash@2", "crash%0.5", "crash%0.2", "stop*1%0.5", "delay:0.5%0.3", "delay:1.5*3%0.5"),
    *("fail:database.unavailable*2%0.3", "fail*1%0.3", "block:1*2%0.3"),
)


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How much of what happens in `seconds`, which is how long faults and uploads go on."""

    seconds: float
    files: int
    kills: int
    pauses: int
    flushes: int
    lease_seconds: float
    postgres: int
    redis: int
    cuts: int
    clamd: int
    endpoint: int
    repeats: int
    terms: int


SHORT = Scale(
    seconds=45.0, files=100, kills=50, pauses=10, flushes=3, lease_seconds=3.0, postgres=1, redis=1, cuts=4, clamd=2,
    endpoint=4, repeats=6, terms=3,
)  # fmt: skip
FULL = Scale(
    seconds=2400.0, files=2000, kills=1000, pauses=200, flushes=20, lease_seconds=15.0, postgres=10, redis=10, cuts=40,
    clamd=10, endpoint=30, repeats=60, terms=30,
)  # fmt: skip
"""A pause outlasts the lease of 15 s, and one worker of three is always left: 200 of them take forty minutes."""


class Step(msgspec.Struct, frozen=True, order=True):
    """A fault, so many seconds after the start, on a target, for so many seconds."""

    at: float
    kind: Kind
    target: str = ""
    seconds: float = 0.0


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """What a client does with one file: begins so many seconds after the start, perhaps twice at once.

    What comes after is in seconds after the acknowledgement of what was before.
    """

    at: float
    tenant: int
    file: File
    twice: bool = False
    in_pieces: bool = False
    packed: tuple[File, ...] = ()
    """Further files of one archive with this one."""
    delete_after: float | None = None
    again_after: float | None = None
    replacement: "Script | None" = None
    """Its time counts from the upload of the file that it takes the place of."""
    restore_after: float | None = None

    def files(self) -> "list[Script]":
        """One for each file that comes to the product; only the first is played by itself."""
        more = [self.replacement] if self.replacement else []
        return [self, *(Script(at=self.at, tenant=self.tenant, file=file) for file in self.packed), *more]

    def wanted(self, tenant: str) -> list[Wanted]:
        """What must become of each of `files`."""
        found = [script.file.wanted(tenant) for script in self.files()]
        if self.replacement:
            found[-1] = msgspec.structs.replace(found[-1], replaces=self.file.name)
        return found


def scaled(scale: Scale, minutes: float) -> Scale:
    """As much as fits into `minutes`, at the same rates."""
    share = minutes * 60 / scale.seconds
    counts = {
        name: max(1, round(getattr(scale, name) * share))
        for name in scale.__struct_fields__
        if name not in ("seconds", "lease_seconds")
    }
    return Scale(seconds=minutes * 60, lease_seconds=scale.lease_seconds, **counts)


def steps(seed: int, scale: Scale) -> list[Step]:
    """Every fault, in the order of its time."""
    draw = random.Random(f"{seed}/steps")
    end = scale.seconds * QUIET_END

    def times(count: int) -> list[float]:
        return [round(draw.uniform(0.5, end), 2) for _ in range(count)]

    found = [Step(at, "kill", draw.choices(PROCESSES, WEIGHTS)[0]) for at in times(scale.kills)]
    found += [Step(at, "term", draw.choice((*WORKERS, "server"))) for at in times(scale.terms)]
    found += _pauses(draw, scale, end)
    found += [Step(at, "flush") for at in times(scale.flushes)]
    found += [Step(at, "redis", seconds=round(draw.uniform(0, 2), 2)) for at in times(scale.redis)]
    found += [Step(at, "postgres", seconds=round(draw.uniform(0, 2), 2)) for at in times(scale.postgres)]
    found += [Step(at, "cut", draw.choice(("one", "half", "all"))) for at in times(scale.cuts)]
    found += [
        Step(at, "clamd", draw.choice(("pause", "away")), round(draw.uniform(1, 4), 2)) for at in times(scale.clamd)
    ]
    modes = ("429", "500", "hang", "away")
    found += [
        Step(at, "endpoint", modes[number % len(modes)], round(draw.uniform(0.5, 4), 2))
        for number, at in enumerate(times(scale.endpoint))
    ]
    found += [Step(at, "repeat") for at in times(scale.repeats)]
    return sorted(found)


def _pauses(draw: random.Random, scale: Scale, end: float) -> list[Step]:
    """Longer than the lease. Two processes at most stand still at a time, so that some worker is always left."""
    longest = scale.lease_seconds + 2.0
    found: list[Step] = []
    for number in range(scale.pauses):
        at = round(0.5 + (end - longest) * (number + draw.random()) / scale.pauses, 2)
        target = draw.choices(PROCESSES, WEIGHTS)[0]
        found.append(Step(at, "pause", target, round(scale.lease_seconds + draw.uniform(0.5, 2.0), 2)))
    return found


def scripts(seed: int, scale: Scale, files: list[File]) -> list[Script]:
    """What clients do, over nine tenths of the time."""
    draw = random.Random(f"{seed}/scripts")
    found: list[Script] = []
    unpacked: dict[int, list[File]] = {}
    for file in files:
        for tenant in file.tenants:
            if file.texts and draw.random() < PACKED_SHARE:
                unpacked.setdefault(tenant, []).append(file)
            else:
                found.append(_script(draw, seed, scale, tenant, file))
    for tenant, packed in unpacked.items():
        for first in range(0, len(packed), PACK):
            pack = packed[first : first + PACK]
            at = round(draw.uniform(0, scale.seconds * 0.85), 2)
            found.append(Script(at=at, tenant=tenant, file=pack[0], packed=tuple(pack[1:])))
    return sorted(found, key=lambda script: script.at)


def _script(draw: random.Random, seed: int, scale: Scale, tenant: int, file: File) -> Script:
    script = Script(
        at=round(draw.uniform(0, scale.seconds * 0.85), 2),
        tenant=tenant,
        file=file,
        twice=draw.random() < 0.1,
        in_pieces=draw.random() < 0.15,
    )
    then = draw.random()
    if then < 0.12 and not file.refused:
        again = round(draw.uniform(0, 1), 2) if draw.random() < 0.6 else None
        return msgspec.structs.replace(script, delete_after=round(draw.uniform(0, 4), 2), again_after=again)
    if then > 1 - REPLACED_SHARE and file.texts:
        replacement = Script(
            at=round(draw.uniform(0, 4), 2),
            tenant=tenant,
            file=successor(seed, file, tenant),
            in_pieces=draw.random() < 0.3,
        )
        restored = round(draw.uniform(0, 4), 2) if draw.random() < 0.3 else None
        return msgspec.structs.replace(script, replacement=replacement, restore_after=restored)
    return script


def failpoints(seed: int, name: str, start: int) -> str:
    """What the process `name` is armed with at its `start`-th start."""
    draw = random.Random(f"{seed}/{name}/{start}")
    places = PLACES.get(name.partition("-")[0])
    if places is None or draw.random() >= ARMED_SHARE:
        return ""
    return f"{draw.choice(places)}={draw.choice(ACTIONS)}"
