"""The first upload and chat of both READMEs, run word for word in a shell."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.product import CHECKOUT, Product

SECONDS = 120


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_first_upload_and_chat_work_as_written(name: str, product: Product, tmp_path: Path):
    blocks = re.findall(r"```sh\n(.*?)```", (CHECKOUT / name).read_text(), re.DOTALL)
    script = next(block for block in blocks if "api/v1/documents" in block)
    (tmp_path / ".dreamhub").symlink_to(product.home)
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, rest = json.JSONDecoder().raw_decode(done.stdout)
    answer = json.loads(done.stdout[rest:])
    assert "x200.txt" in [item["filename"] for item in found["items"]]
    assert answer["citations"][0]["filename"] == "x200.txt"
    assert answer["citations"][0]["quote"] in (tmp_path / "x200.txt").read_text()
