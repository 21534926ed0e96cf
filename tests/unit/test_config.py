"""Settings that can't work are refused with their names, before anything starts."""

from pathlib import Path

import pytest

from pkg import config
from pkg.apperr import SettingsError

ENDPOINT = "https://models.example.com/v1"
MODELS = ["AI__CHAT_MODEL", "AI__EMBEDDING_MODEL", "AI__VISION_MODEL", "AI__TRANSCRIPTION_MODEL"]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_needs_an_endpoint(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "some-model")
    with pytest.raises(SettingsError, match=f"{name} names a model, but AI__BASE_URL is not set; set it to"):
        config.load()
    monkeypatch.setenv("AI__BASE_URL", ENDPOINT)
    assert config.load().ai.base_url == ENDPOINT


@pytest.mark.parametrize("url", ["models.example.com/v1", "ftp://models.example.com", "http://", "localhost:11434"])
def test_the_endpoint_is_a_web_address(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI__BASE_URL", url)
    with pytest.raises(SettingsError, match=r"^AI__BASE_URL: .*want http://host:port/v1 or https://host/v1$"):
        config.load()


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("REDIS__URL", "http://user:hush@redis:6379", "redis://:password@host:port/0, rediss://… or unix:///path"),
        ("REDIS__URL", "redis://redis:port/0", "redis://:password@host:port/0, rediss://… or unix:///path"),
        *(("MODELS__URL", url, "http://host:port or unix:/path") for url in ("models:8001", "unix:", "http://:80")),
        *(
            ("BLOBS__URL", url, "file:///dir or s3://bucket?endpoint=…&region=…")
            for url in ("ftp://files", "file:blobs", "file://blobs/a", "s3://", "s3:///bucket")
        ),
        *(
            ("SCAN__CLAMD", address, "unix:/path, tcp://host:port or off")
            for address in ("clamd:3310", "unix:", "unix:clamd.sock", "tcp://:3310", "tcp://clamd:port")
        ),
    ],
)
def test_an_address_of_a_wrong_kind_is_told_with_its_name(
    name: str, value: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        config.load()
    assert str(raised.value) == f"{name}: want {wanted}"


def test_the_built_in_model_has_one_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI__EMBEDDING_DIM", "1536")
    with pytest.raises(SettingsError, match="AI__EMBEDDING_DIM is 1536, but the built-in model has 384 dimensions; un"):
        config.load()
    monkeypatch.setenv("AI__BASE_URL", ENDPOINT)
    monkeypatch.setenv("AI__EMBEDDING_MODEL", "text-embedding-3-small")
    assert config.load().ai.embedding_dim == 1536


def test_every_contradiction_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI__CHAT_MODEL", "big")
    monkeypatch.setenv("AI__EMBEDDING_DIM", "8")
    monkeypatch.setenv("AI__RERANK_URL", "https://rerank.example.com/v1/rerank")
    monkeypatch.setenv("DB__POOL_MIN", "20")
    with pytest.raises(SettingsError) as raised:
        config.load()
    lines = str(raised.value).splitlines()
    assert [line.split()[0] for line in lines] == [
        "AI__CHAT_MODEL",
        "AI__EMBEDDING_DIM",
        "DB__POOL_MIN",
        "AI__RERANK_URL",
    ]


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_nothing_is_waited_for_without_end(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKS__BACKOFF_SECONDS", value)
    with pytest.raises(SettingsError, match=r"^TASKS__BACKOFF_SECONDS: "):
        config.load()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("SERVER__CORS_ORIGINS", "https://app.example.com", "SERVER__CORS_ORIGINS: want a JSON list, such as"),
        ("SERVER__CORS_ORIGINS", "[1]", "SERVER__CORS_ORIGINS__0: "),
        ("DB", "postgres", "DB is not a setting of DreamHub, whose own begin with DB__; unset it"),
        ("LOG", '{"level": "debug"}', "LOG is not a setting of DreamHub, whose own begin with LOG__; unset it"),
        ("DREAMHUB_SECRETS_DIR", "/nonexistent", "DREAMHUB_SECRETS_DIR: "),
        ("DREAMHUB_SECRETS_DIR", __file__, "DREAMHUB_SECRETS_DIR: "),
    ],
)
def test_what_cannot_be_read_is_told_with_its_name(
    name: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        config.load()
    assert str(raised.value).startswith(told)


def test_origins_are_read_from_a_json_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "server__cors_origins").write_text('["https://files.example.com"]')
    monkeypatch.setenv("DREAMHUB_SECRETS_DIR", str(tmp_path))
    assert config.load().server.cors_origins == ("https://files.example.com",)
    monkeypatch.setenv("SERVER__CORS_ORIGINS", '["https://app.example.com"]')
    assert config.load().server.cors_origins == ("https://app.example.com",)
