"""Token buckets and leases on a real Valkey."""

import asyncio
import secrets

import pytest

from internal.entities.ids import new_id
from internal.repositories.cache import key, open_cache, visitor_key
from internal.services.rate_limits import Limit, RateLimiter
from pkg.apperr import AppError, Code


async def test_a_bucket_gives_what_it_has_and_fills_again(redis_url: str) -> None:
    cache, name = open_cache(redis_url), visitor_key("test", secrets.token_hex(8))
    try:
        assert await cache.take_tokens(name, capacity=10, per_second=20.0, wanted=7) == (7, 0)
        assert (await cache.take_tokens(name, capacity=10, per_second=20.0, wanted=7))[0] == 3
        granted, wait = await cache.take_tokens(name, capacity=10, per_second=20.0, wanted=7)
        assert granted in (0, 1)
        if granted == 0:
            assert 0 < wait <= 0.05
        await asyncio.sleep(0.3)
        assert 5 <= (await cache.take_tokens(name, capacity=10, per_second=20.0, wanted=10))[0] <= 10
    finally:
        await cache.close()


async def test_what_is_given_back_never_exceeds_the_bucket(redis_url: str) -> None:
    cache, name = open_cache(redis_url), visitor_key("test", secrets.token_hex(8))
    try:
        await cache.take_tokens(name, capacity=3, per_second=0.001, wanted=2)
        for _ in range(10):
            await cache.take_tokens(name, capacity=3, per_second=0.001, wanted=-1)
        assert (await cache.take_tokens(name, capacity=3, per_second=0.001, wanted=10))[0] == 3
    finally:
        await cache.close()


async def test_many_at_once_get_no_more_than_there_is(redis_url: str) -> None:
    cache, bucket = open_cache(redis_url, answer_seconds=30), visitor_key("test", secrets.token_hex(8))
    servers = [RateLimiter(cache, Limit(capacity=40, seconds=100_000)) for _ in range(4)]

    async def allowed(limiter: RateLimiter) -> bool:
        try:
            await limiter.take(bucket)
        except AppError as error:
            refusals.append(error)
            return False
        return True

    refusals: list[AppError] = []
    try:
        answers = await asyncio.gather(*(allowed(limiter) for _ in range(30) for limiter in servers))
    finally:
        await cache.close()
    assert sum(answers) == 40
    assert {error.code for error in refusals} == {Code.RATE_LIMITED}
    assert all(error.retry_after is not None and error.retry_after > 0 for error in refusals)


async def test_values_come_and_go(redis_url: str) -> None:
    cache, name = open_cache(redis_url), key(new_id(), "test", "a", "b")
    try:
        assert await cache.get(name) is None
        await cache.set(name, b"value", seconds=60)
        assert await cache.get(name) == b"value"
        await cache.remove(name)
        assert await cache.get(name) is None
        assert await cache.ping() > 0
    finally:
        await cache.close()


async def test_an_absent_server_is_told_as_such() -> None:
    cache = open_cache("redis://127.0.0.1:9")
    with pytest.raises(AppError) as caught:
        await cache.ping()
    assert caught.value.code is Code.REDIS_UNAVAILABLE
    await cache.close()


def test_keys_begin_with_their_tenant_and_tell_nothing() -> None:
    tenant = new_id()
    made = key(tenant, "search", "my secret question")
    assert made.startswith(f"t:{tenant}:search:")
    assert "secret" not in made
    assert made != key(tenant, "search", "my secret", "question")
    assert made != key(new_id(), "search", "my secret question")
