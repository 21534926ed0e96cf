"""Each tenant has words of its own, in two languages, in everything it has and does. Nobody else ever meets them.

Both tenants do all that the API offers. Then answers, streams, logs, metrics, Redis and the object store are searched.
"""

import json
import random
import re
import secrets
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import msgspec
import pytest
from redis import Redis

from tests.e2e.following import STREAM, WAYS, told
from tests.e2e.product import Product, finished, upload
from tests.e2e.world import product_secrets

MODES = ("hybrid", "vector", "keyword")
PASSWORD = "correct horse battery"
# Keys of no tenant: wake-ups by task id, live workers, and failed sign-ins by a hash.
GLOBAL_KEY = re.compile(
    r"arq:(job:[0-9a-f-]{36}:\d+|high_priority|default|batch|learning)"
    r"|dreamhub:workers?(:[^ ]+)?|v:[a-z-]+:[0-9a-f]{64}"
)
TENANT_KEY = re.compile(r"t:[0-9a-f-]{36}:[a-z-]+:[0-9a-f]{64}")
CHANNEL = re.compile(r"t:[0-9a-f-]{36}:events")
OBJECT = re.compile(r"[0-9a-f-]{36}/(?:(?:uploads|archives)/)?[0-9a-f-]{36}")


class Words(NamedTuple):
    """What only one tenant, or one person, ever says."""

    english: str
    chinese: str

    @classmethod
    def new(cls) -> "Words":
        characters = "".join(chr(random.randint(0x4E00, 0x9FA0)) for _ in range(8))
        return cls(f"kestrel{secrets.token_hex(8)}", characters)

    @property
    def both(self) -> str:
        return f"{self.english} {self.chinese}"

    def found_in(self, data: bytes) -> list[str]:
        """Those that stand there, as they are, escaped as JSON does, or as in a URL."""
        lowered = data.lower()
        return [
            word
            for word in self
            if any(
                form.lower() in lowered
                for form in (word.encode(), json.dumps(word)[1:-1].encode(), quote(word).encode())
            )
        ]


class Tenant:
    """A tenant that does everything, and all that it was answered."""

    def __init__(self, product: Product) -> None:
        self._product = product
        self.words, self.private = Words.new(), Words.new()
        self.made = product.new_tenant(self.words.english)
        self.id: str = self.made["id"]
        self.answers: list[bytes] = []
        self.members_answers: list[bytes] = []
        self.owner = self._client(product, self.made["api_key"], self.answers)
        self.member_email = f"member-{self.words.english}@example.com"
        self._add_member()
        self.member = self._client(product, self._sign_in(self.member_email), self.members_answers)
        self.own: dict[str, str] = {}

    def _client(self, product: Product, key: str, answers: list[bytes]) -> httpx.Client:
        def record(answer: httpx.Response) -> None:
            head = "".join(f"{name}: {text}\n" for name, text in answer.headers.items())
            answers.append(head.encode() + b"\n" + answer.read())

        client = product.client(key)
        client.event_hooks["response"] = [record]
        return client

    def _add_member(self) -> None:
        body = {"email": self.member_email, "password": PASSWORD, "role": "member"}
        answer = self.owner.post("/api/v1/members", json=body)
        assert answer.status_code == 201, answer.text
        self.member_id = answer.json()["id"]

    def _sign_in(self, email: str) -> str:
        answer = self.owner.post("/api/v1/auth/token", json={"email": email, "password": PASSWORD})
        self.tokens: dict[str, Any] = answer.json()
        return self.tokens["access_token"]

    def live(self) -> None:
        """Fills the tenant, and asks for everything."""
        self._upload()
        self._organise()
        self._search(self.owner, self.words.both, self.private.both)
        self._chat()
        self._fail()
        self._read_all(self.owner)
        self._search(self.member, self.words.both, self.private.both)
        self._read_all(self.member)
        self._follow()

    def _upload(self) -> None:
        words, private = self.words, self.private
        fields = {"tags": f"{words.english},{words.chinese}", "collection": words.both}
        english = f"# The {words.english} report\n\nThe {words.english} nests on the tower in spring."
        chinese = f"# {words.chinese}报告\n\n{words.chinese}每年春天在塔上筑巢。"
        uploads = [
            upload(self.owner, f"{words.english}.md", english.encode(), **fields),
            upload(self.owner, f"{words.chinese}.txt", chinese.encode("gb18030"), **fields),
            upload(self.owner, f"{private.both}.md", f"{private.both} is a secret.".encode(), visibility="private"),
            upload(self.owner, f"{words.both}.pdf", f"%PDF-1.4\n{words.both}\n".encode()),
        ]
        ends = [finished(self.owner, item["task_id"])["status"] for item in uploads]
        assert ends == ["succeeded", "succeeded", "succeeded", "failed"]
        failed = uploads[3]["task_id"]
        self.own |= {"document_id": uploads[0]["document_id"], "task_id": failed, "letter_id": failed}
        self.private_ids = (uploads[2]["document_id"], uploads[2]["task_id"])
        for name, data in ((f"{words.both}.exe", b"MZ" + bytes(200)), (f"{words.both}.txt", b"")):
            assert self.owner.post("/api/v1/documents", files={"file": (name, data)}).status_code in (415, 422)

    def _organise(self) -> None:
        words = self.words
        collections = [
            self.owner.post("/api/v1/collections", json={"name": f"{words.both} {number}"}).json()
            for number in range(2)
        ]
        self.own["collection_id"] = collections[0]["id"]
        taken = self.owner.patch(f"/api/v1/collections/{collections[0]['id']}", json={"name": f"{words.both} 1"})
        assert taken.status_code == 409
        key = self.owner.post("/api/v1/api-keys", json={"name": words.both, "role": "viewer"}).json()
        self.spare_key = key["key"]
        self.owner.patch(f"/api/v1/documents/{self.own['document_id']}", json={"tags": [words.both]})
        self.owner.post(f"/api/v1/tasks/{self.own['task_id']}/retry", headers={"Idempotency-Key": words.english})

    def _search(self, client: httpx.Client, *queries: str) -> None:
        for query in queries:
            for mode in MODES:
                answer = client.post("/api/v1/search", json={"query": query, "mode": mode})
                assert answer.status_code == 200, answer.text
            filters = {"tags": [query], "collections": [query]}
            assert client.post("/api/v1/search", json={"query": query, "filters": filters}).status_code == 200

    def _chat(self) -> None:
        words = self.words
        conversation = self.owner.post("/api/v1/conversations", json={"title": words.both}).json()["id"]
        path = f"/api/v1/conversations/{conversation}/messages"
        for question, stream in (
            (f"Where does the {words.english} nest?", True),
            (f"{words.chinese}在哪里筑巢？", False),
        ):
            answer = self.owner.post(path, json={"content": question, "stream": stream})
            assert answer.status_code == 200
            assert not stream or answer.headers["content-type"].startswith("text/event-stream")
        rating = {"rating": 1, "comment": words.both}
        assert self.owner.post(f"{path}/{answer.json()['id']}/feedback", json=rating).status_code == 204
        self.own["conversation_id"] = conversation

    def _fail(self) -> None:
        """Everything that can be wrong with a request, said in the tenant's words."""
        said = self.words.both
        wrong = [
            self.owner.post("/api/v1/search", json={"query": said, said: 1}),
            self.owner.post("/api/v1/search", json={"query": said * 200}),
            self.owner.post("/api/v1/search", json={"query": f"{said}\0"}),
            self.owner.post("/api/v1/search", json={"query": said, "mode": said}),
            self.owner.post("/api/v1/search", content=f'{{"query": "{said}'.encode()),
            self.owner.get("/api/v1/documents", params={"cursor": said}),
            self.owner.get("/api/v1/documents", params={"collection_id": said}),
            self.owner.get(f"/api/v1/documents/{quote(said)}"),
            self.owner.get(f"/api/v1/{quote(said)}"),
            self.owner.post("/api/v1/conversations", json={"title": said * 50}),
            self.owner.post("/api/v1/documents", files={"file": (said, b"x")}, data={said: said}),
            self.owner.post("/api/v1/auth/token", json={"email": f"{said}@example.com", "password": said}),
            self.owner.post("/api/v1/auth/refresh", json={"refresh_token": f"dhr_{self.words.english}"}),
            self.owner.get("/api/v1/me", headers={"Authorization": f"Bearer dh_{self.words.english}"}),
        ]
        assert [answer.status_code for answer in wrong if not 400 <= answer.status_code < 500] == []

    def _read_all(self, client: httpx.Client) -> None:
        """Every GET of the OpenAPI document."""
        for path, operations in client.get("/openapi.json").json()["paths"].items():
            if "get" in operations and path != STREAM:
                client.get(re.sub(r"{(\w+)}", lambda part: self.own.get(part[1], "1"), path))
        for private in self.private_ids:
            for path in (
                "documents/{}",
                "documents/{}/content",
                "documents/{}/chunks",
                "documents/{}/versions",
                "tasks/{}",
            ):
                client.get(f"/api/v1/{path.format(private)}")

    def _follow(self) -> None:
        """Everything that was told of so far, to owner and member, by both ways."""
        marker = upload(self.owner, f"{self.words.both}.txt", f"{self.words.both} at last".encode())["document_id"]
        for key, answers in ((self.made["api_key"], self.answers), (self.tokens["access_token"], self.members_answers)):
            for follow in WAYS:
                events = b"".join(told(follow, self._product, key, until=marker))
                assert self.own["document_id"].encode() in events
                answers.append(b"events\n\n" + events)

    def ask_for(self, other: "Tenant") -> None:
        """Looks for the other tenant's things by their words and ids."""
        for words in (other.words, other.private):
            self._search(self.owner, *words)
        for path, operations in self.owner.get("/openapi.json").json()["paths"].items():
            if "get" in operations and "{" in path:
                answer = self.owner.get(re.sub(r"{(\w+)}", lambda part: other.own.get(part[1], "1"), path))
                assert answer.status_code == 404


class Lived(NamedTuple):
    """What was done, and what was seen of it from outside."""

    product: Product
    first: Tenant
    second: Tenant
    redis: dict[str, bytes]
    broadcasts: list[tuple[str, bytes]]

    @property
    def all_words(self) -> tuple[Words, ...]:
        return tuple(words for tenant in (self.first, self.second) for words in (tenant.words, tenant.private))


@pytest.fixture(scope="module")
def lived(product: Product) -> Generator[Lived]:
    with Redis.from_url(product.up["redis_url"]) as redis, redis.pubsub() as heard:
        heard.psubscribe("*")
        first, second = Tenant(product), Tenant(product)
        kept: dict[str, bytes] = {}
        for tenant, other in ((first, second), (second, first)):
            tenant.live()
            kept |= contents(redis)
            if other.own:
                tenant.ask_for(other)
                other.ask_for(tenant)
        kept |= contents(redis)
        yield Lived(product, first, second, kept, messages(heard))


def contents(redis: Any) -> dict[str, bytes]:
    """Every key with its value, whatever its type; `DUMP` would compress."""
    found: dict[str, bytes] = {}
    for key in redis.scan_iter(count=1000):
        read = {
            b"string": redis.get,
            b"hash": redis.hgetall,
            b"zset": lambda name: redis.zrange(name, 0, -1, withscores=True),
            b"set": redis.smembers,
            b"list": lambda name: redis.lrange(name, 0, -1),
            b"none": lambda name: b"",  # expired meanwhile
        }[redis.type(key)]
        found[key.decode()] = repr(read(key)).encode()
    return found


def messages(heard: Any) -> list[tuple[str, bytes]]:
    """What was broadcast, as (channel, payload)."""
    found: list[tuple[str, bytes]] = []
    until = time.monotonic() + 1
    while time.monotonic() < until and (message := heard.get_message(timeout=0.2)):
        if message["type"] == "pmessage":
            found.append((message["channel"].decode(), message["data"]))
    return found


def test_words_are_recognised_in_every_form():
    words = Words("kestrel0", "鸢尾")
    for data in ("a KESTREL0.", "x鸢尾y", '"\\u9e22\\u5c3e"', "%E9%B8%A2%E5%B0%BE", "%e9%b8%a2%e5%b0%be"):
        assert len(words.found_in(data.encode())) == 1
    assert words.found_in("a kestrel 鸢".encode()) == []


def test_a_tenant_meets_its_own_words(lived: Lived):
    """Control: the words were there to be found."""
    for tenant in (lived.first, lived.second):
        for words in (tenant.words, tenant.private):
            assert set(words.found_in(b"\n".join(tenant.answers))) == set(words)
        assert set(tenant.words.found_in(b"\n".join(tenant.members_answers))) == set(tenant.words)
        streams = [answer for answer in tenant.answers if b"event: done" in answer]
        assert any(tenant.words.found_in(stream) for stream in streams)


def test_nobody_meets_another_tenants_words(lived: Lived):
    for tenant, other in ((lived.first, lived.second), (lived.second, lived.first)):
        for answer in (*tenant.answers, *tenant.members_answers):
            for words in (other.words, other.private):
                assert words.found_in(answer) == [], answer[:2000]
            assert other.id.encode() not in answer, answer[:2000]


def test_nobody_meets_another_users_private_words(lived: Lived):
    for tenant in (lived.first, lived.second):
        for answer in tenant.members_answers:
            assert tenant.private.found_in(answer) == [], answer[:2000]
            assert tenant.private_ids[0].encode() not in answer.partition(b"\n\n")[2], answer[:2000]


def test_metrics_and_descriptions_tell_nothing_of_anybody(lived: Lived):
    with httpx.Client(base_url=lived.product.up["url"], trust_env=False, timeout=30) as visitor:
        for path in ("/metrics", "/openapi.json", "/docs", "/healthz", "/readyz"):
            answer = visitor.get(path)
            assert answer.status_code == 200
            for words in lived.all_words:
                assert words.found_in(answer.content) == [], path
            for tenant in (lived.first, lived.second):
                assert not [known for known in (tenant.id, *tenant.own.values()) if known in answer.text], path


def test_logs_hold_ids_and_neither_words_nor_secrets(lived: Lived):
    hidden = secrets_of(lived)
    assert len(hidden) > 12
    logs = log_files(lived.product)
    for path in logs:
        data = path.read_bytes()
        for line in data.splitlines():
            for words in lived.all_words:
                assert words.found_in(line) == [], f"{path.name}: {line[:500]!r}"
            assert not [name for name, secret in hidden.items() if secret.encode() in line], (
                f"{path.name}: {line[:500]!r}"
            )
    everything = b"".join(path.read_bytes() for path in logs)
    for tenant in (lived.first, lived.second):  # control: these are the logs of what was done
        assert tenant.id.encode() in everything


def log_files(product: Product) -> list[Path]:
    found = [path for path in (*(product.home / "logs").rglob("*"), product.home.parent / "up.log") if path.is_file()]
    names = {path.name.partition(".")[0].partition("-")[0] for path in found}
    assert names >= {"server", "worker", "relay", "models", "postgres", "redis"}
    return found


def secrets_of(lived: Lived) -> dict[str, str]:
    """Every secret of the installation and of both tenants, by name."""
    known = product_secrets(lived.product)
    found = {f"password of {role}": password for role, password in known["database_passwords"].items()}
    found |= {name: known[name] for name in ("platform_token", "jwt_secret", "redis_password")}
    for number, tenant in enumerate((lived.first, lived.second)):
        found |= {
            f"key of {number}": tenant.made["api_key"],
            f"second key of {number}": tenant.spare_key,
            f"access token of {number}": tenant.tokens["access_token"],
            f"refresh token of {number}": tenant.tokens["refresh_token"],
        }
    return found | {"password of a person": PASSWORD}


def test_redis_holds_ids_under_the_tenants_keys(lived: Lived):
    assert any(TENANT_KEY.fullmatch(key) for key in lived.redis)
    for key, value in lived.redis.items():
        assert TENANT_KEY.fullmatch(key) or GLOBAL_KEY.fullmatch(key), key
        for words in lived.all_words:
            assert words.found_in(key.encode() + value) == [], key
            assert not any(repr(word.encode())[2:-1].encode() in value for word in words), key


def test_broadcasts_go_to_the_tenants_channel_and_hold_ids(lived: Lived):
    assert {channel for channel, _ in lived.broadcasts} >= {
        f"t:{tenant.id}:events" for tenant in (lived.first, lived.second)
    }
    for channel, data in lived.broadcasts:
        assert CHANNEL.fullmatch(channel), channel
        assert msgspec.json.decode(data)["tenant_id"] == channel.split(":")[1]
        for words in lived.all_words:
            assert words.found_in(data) == [], channel


def test_objects_lie_under_their_tenant_without_a_name(lived: Lived):
    blobs, seen = lived.product.home / "blobs", set()
    for path in blobs.rglob("*"):
        if not path.is_file():
            continue
        key = path.relative_to(blobs).as_posix()
        assert OBJECT.fullmatch(key), key
        for tenant in (lived.first, lived.second):
            if tenant.words.found_in(path.read_bytes()) or tenant.private.found_in(path.read_bytes()):
                assert key.startswith(f"{tenant.id}/")
                seen.add(tenant.id)
    assert seen == {lived.first.id, lived.second.id}
    assert [path for path in (lived.product.home / "tmp").rglob("*") if path.is_file()] == [], (
        "an upload was left behind"
    )
