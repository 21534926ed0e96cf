"""Credentials without a server: tokens, keys, passwords, names, and what a start refuses."""

import asyncio
import base64
import time
from uuid import UUID

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal import app
from internal.entities.ids import new_id
from internal.services.access_tokens import AccessTokens
from internal.services.api_keys import new_key
from internal.services.authentication import digest_of
from internal.services.names import MAX_TITLE, check_name
from internal.services.passwords import Passwords, check_password, new_password
from internal.services.tenants import check_email
from pkg import config
from pkg.apperr import AppError, Code, SettingsError
from pkg.ctxutil import Context, Role
from pkg.telemetry import new_trace_id, parse_traceparent, registry

SECRET = "s" * 48


def context() -> Context:
    return Context(tenant_id=new_id(), user_id=new_id(), role=Role.MEMBER, request_id="r", trace_id="t")


def test_a_token_names_its_user_tenant_and_sign_in_and_nothing_more() -> None:
    tokens, ctx = AccessTokens(SECRET, minutes=15), context()
    family = new_id()
    token = tokens.issue(ctx, family=family)
    claims = tokens.verify(token)
    assert (claims.tenant_id, claims.user_id, claims.family) == (ctx.tenant_id, ctx.user_id, family)
    assert 890 < claims.seconds_left < 910
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
    assert set(jwt.decode(token, options={"verify_signature": False})) == {
        "iss", "aud", "sub", "tid", "sid", "iat", "nbf", "exp", "jti",
    }  # fmt: skip
    assert tokens.issue(ctx, family=family) != token


@given(st.text(max_size=300))
def test_nothing_else_is_a_token(text: str) -> None:
    with pytest.raises(AppError) as caught:
        AccessTokens(SECRET, minutes=15).verify(text)
    assert caught.value.code is Code.AUTH_INVALID_TOKEN


@pytest.mark.parametrize(
    "claims", [{"tid": 5}, {"sub": "nobody"}, {"exp": "soon"}, {"tid": None}, {"aud": ["x"]}, {"sid": "x"}]
)
def test_well_signed_nonsense_is_refused(claims: dict[str, object]) -> None:
    tokens = AccessTokens(SECRET, minutes=15)
    good = jwt.decode(tokens.issue(context(), family=new_id()), options={"verify_signature": False})
    with pytest.raises(AppError):
        tokens.verify(jwt.encode({**good, **claims}, SECRET, algorithm="HS256"))


def test_a_token_ends() -> None:
    tokens = AccessTokens(SECRET, minutes=15)
    claims = jwt.decode(tokens.issue(context(), family=new_id()), options={"verify_signature": False})
    with pytest.raises(AppError):
        tokens.verify(jwt.encode({**claims, "exp": int(time.time()) - 6}, SECRET, algorithm="HS256"))


def test_keys_hold_256_bits_and_are_kept_as_digests() -> None:
    keys = [new_key() for _ in range(50)]
    assert len({key.secret for key in keys}) == 50
    for key in keys:
        assert key.secret.startswith("dh_")
        assert len(base64.urlsafe_b64decode(key.secret[3:] + "=")) == 32
        assert key.digest == digest_of(key.secret)
        assert key.secret.startswith(key.prefix)
        assert len(key.prefix) == 9


async def test_passwords() -> None:
    passwords = Passwords()
    one, two = await asyncio.gather(passwords.hash("correct horse"), passwords.hash("correct horse"))
    assert one != two
    assert one.startswith("$argon2id$")
    assert await passwords.matches("correct horse", one)
    assert not await passwords.matches("incorrect horse", one)
    assert not await passwords.matches("correct horse", None)
    assert not await passwords.matches("correct horse", "not a hash")


@pytest.mark.parametrize("password", ["", "short", "x" * 257])
def test_passwords_that_cannot_be_meant(password: str) -> None:
    with pytest.raises(AppError):
        check_password(password)


def test_made_passwords_are_good_enough() -> None:
    check_password(new_password())
    assert new_password() != new_password()


def test_addresses() -> None:
    assert check_email("  Ann@Example.COM ") == "ann@example.com"
    for bad in ("", "ann", "ann@", "@b", "a b@c", "a@b@c", "a\x00@b", "a@" + "b" * 320):
        with pytest.raises(AppError):
            check_email(bad)


def test_names() -> None:
    assert check_name("  Löwe & 公司 ", "tenant name", longest=MAX_TITLE) == "Löwe & 公司"
    assert check_name(" ", "title", shortest=0) == ""
    for bad in ("", "   ", "a\nb", "a\x1b[2Jb", "name\t", "x" * 201):
        with pytest.raises(AppError, match=r"A tenant name has|The tenant name holds"):
            check_name(bad, "tenant name", longest=MAX_TITLE)


def test_trace_parents() -> None:
    good = parse_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert good is not None
    assert (good.trace_id, good.span_id, good.sampled) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True)
    later = parse_traceparent("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-what-comes-later")
    assert later is not None
    assert not later.sampled
    for bad in ("", "00", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "ff-" + "a" * 32 + "-" + "b" * 16 + "-01"):
        assert parse_traceparent(bad) is None
    assert UUID(hex=new_trace_id()).int


def test_each_process_has_metrics_of_its_own() -> None:
    assert registry() is not registry()


@pytest.mark.parametrize(
    ("missing", "overrides"),
    [
        ("DB__DSN", {}),
        ("REDIS__URL", {"db": config.Db(dsn="postgresql://x")}),
        ("BLOBS__URL", {"db": config.Db(dsn="postgresql://x"), "redis": config.Redis(url="redis://x")}),
        (
            "AUTH__PLATFORM_TOKEN",
            {
                "db": config.Db(dsn="postgresql://x"),
                "redis": config.Redis(url="redis://x"),
                "blobs": config.Blobs(url="file:///x"),
            },
        ),
        (
            "AUTH__JWT_SECRET",
            {
                "db": config.Db(dsn="postgresql://x"),
                "redis": config.Redis(url="redis://x"),
                "blobs": config.Blobs(url="file:///x"),
                "auth": config.Auth(platform_token="p" * 40),
            },
        ),
    ],
)
async def test_a_start_names_what_is_missing(missing: str, overrides: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=missing):
        async with app.build(config.load(**overrides)):
            pass


def test_unknown_queues_are_named() -> None:
    with pytest.raises(SettingsError, match="high_priority"):
        app.work(config.load(), ["fast"])


def test_a_migration_needs_a_login() -> None:
    with pytest.raises(SettingsError, match="DB__OWNER_DSN"):
        app.migrate(config.load())


def test_the_space_follows_the_settings() -> None:
    assert app.space_of(config.load()).dim == 384
    ai = config.Ai(base_url="http://models/v1", embedding_model="text-embedding-3-small", embedding_dim=1536)
    remote = app.space_of(config.load(ai=ai))
    assert (remote.model, remote.dim) == ("text-embedding-3-small", 1536)
