"""The image's health check: the API and the models are asked over HTTP; the other roles listen nowhere and pass."""

import http.client
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

SECONDS = 4.0
DEFAULT_PORT = 8000


def port_of(arguments: list[str], models_url: str, server_port: str) -> int | None:
    """Where process 1 listens, by its command line and settings; None when it doesn't."""
    if "serve" in arguments:
        return int(server_port or DEFAULT_PORT)
    return urlsplit(models_url).port if "models" in arguments else None


def main() -> str | None:
    """None for healthy, else what is wrong."""
    arguments = Path("/proc/1/cmdline").read_bytes().decode(errors="replace").split("\0")
    port = port_of(arguments, os.environ.get("MODELS__URL", ""), os.environ.get("SERVER__PORT", ""))
    if port is None:
        return None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"port {port}: {error}"
    return None if status == http.HTTPStatus.OK else f"port {port}: {status}"


if __name__ == "__main__":
    sys.exit(main())
