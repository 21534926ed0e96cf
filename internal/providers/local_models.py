"""How the local model process is reached: a local socket or an address."""

import httpx

from pkg.apperr import SettingsError


def model_client(url: str, *, timeout: float) -> httpx.AsyncClient:
    """An HTTP client for `MODELS__URL`: `unix:/path` or `http://host:port`. Paths are relative, such as `/v1/ocr`."""
    limits = httpx.Timeout(timeout, connect=5.0)
    if url.startswith("unix:"):
        transport = httpx.AsyncHTTPTransport(uds=url.removeprefix("unix:"))
        return httpx.AsyncClient(transport=transport, base_url="http://models", timeout=limits)
    if url.startswith(("http://", "https://")):
        return httpx.AsyncClient(base_url=url.rstrip("/"), timeout=limits)
    raise SettingsError("MODELS__URL: want unix:/path or http://host:port")
