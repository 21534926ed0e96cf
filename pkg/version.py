"""The product's version: from pyproject.toml in a checkout, else from the installed distribution."""

import tomllib
from importlib import metadata
from pathlib import Path


def version() -> str:
    """For example `0.1.0`."""
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    return metadata.version("dreamhub")
