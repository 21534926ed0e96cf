"""The program. Its processes share the machine's cores, so each multiplies matrices in one thread: numpy's own threads
made a product of 32 × 384 by 384 × 384 take 8.7 ms in place of .15 where the cores were busy, and ingest four times as
long. numpy reads the variable when it is loaded; who sets it otherwise is obeyed."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
