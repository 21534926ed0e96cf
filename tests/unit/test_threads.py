"""A process of the product takes no cores that it wasn't given."""

import subprocess
import sys

COUNT = "import os, dreamhub, numpy; print(len(os.listdir('/proc/self/task')))"


def test_numpy_starts_no_threads() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) == 1
