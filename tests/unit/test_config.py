"""Settings that can't work are refused with their names, before anything starts."""

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
        ("MODELS__URL", "models:8001", "http://host:port or unix:/path"),
        ("BLOBS__URL", "ftp://files", "file:///dir or s3://bucket?endpoint=…&region=…"),
        ("SCAN__CLAMD", "clamd:3310", "unix:/path, tcp://host:port or off"),
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
    with pytest.raises(SettingsError) as raised:
        config.load()
    lines = str(raised.value).splitlines()
    assert [line.split()[0] for line in lines] == ["AI__CHAT_MODEL", "AI__EMBEDDING_DIM"]
