"""A real clamd with one signature of its own."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

# In two halves, so that no scanner takes this file for the test signature.
SIGNATURE = ("X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STANDARD-" + "ANTIVIRUS-TEST-FILE!$H+H*").encode()
TEST_SIGNATURES = "44d88612fea8a8f36de82e1278abb02f:68:Eicar-Test-Signature\n"
CONFIGURATION = """\
Foreground yes
DatabaseDirectory {folder}/db
LocalSocket {folder}/clamd.sock
LocalSocketMode 600
PidFile {folder}/clamd.pid
AlertExceedsMax yes
MaxRecursion 5
MaxFiles 50
StreamMaxLength 2M
"""


@contextmanager
def running_clamd() -> Generator[Path]:
    """The folder of its socket, `clamd.sock`, and of `clamd.pid`, which tests stop and wake."""
    program = shutil.which("clamd", path="/usr/sbin:/usr/local/sbin:" + os.environ["PATH"])
    assert program, "these tests want clamd: apt-get install clamav-daemon"
    with tempfile.TemporaryDirectory(prefix="clamd-") as name:
        root = Path(name)
        (root / "db").mkdir()
        (root / "db" / "local.hdb").write_text(TEST_SIGNATURES)
        (root / "clamd.conf").write_text(CONFIGURATION.format(folder=root))
        with (root / "log").open("wb") as log:
            process = subprocess.Popen([program, "-c", str(root / "clamd.conf")], stdout=log, stderr=log)
        try:
            yield root
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(timeout=20)
