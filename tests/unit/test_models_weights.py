"""The conversion happens once, whole or not at all."""

import shutil
import threading
from pathlib import Path

import pytest

from internal.models import weights
from pkg.apperr import AppError, Code


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model converted here and now, by the process of its own."""
    return weights.ensure(tmp_path_factory.mktemp("fresh"))


def copying(model: Path, calls: list[Path]):
    """A stand-in for the conversion that takes no time."""

    def convert(folder: Path) -> None:
        calls.append(folder)
        shutil.copytree(model, folder, dirs_exist_ok=True)

    return convert


def test_conversion_leaves_one_complete_folder(model: Path) -> None:
    assert weights.intact(model)
    assert model.name == weights.FOLDER
    assert sorted(item.name for item in model.parent.iterdir()) == [".lock", weights.FOLDER]


def test_intact_folder_is_not_converted_again(model: Path) -> None:
    calls: list[Path] = []
    assert weights.ensure(model.parent, convert=copying(model, calls)) == model
    assert calls == []


@pytest.mark.parametrize("name", ["model.bin", weights.TOKENIZER, weights.NORMALISER])
def test_damage_is_noticed_and_repaired(model: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(model, tmp_path / weights.FOLDER)
    with (folder / name).open("r+b") as file:
        file.seek(10)
        file.write(b"\xff\x00\xff")
    assert not weights.intact(folder)
    calls: list[Path] = []
    weights.ensure(tmp_path, convert=copying(model, calls))
    assert len(calls) == 1
    assert weights.intact(folder)


def test_crash_in_the_middle_leaves_no_model(model: Path, tmp_path: Path) -> None:
    def crash(folder: Path) -> None:
        (folder / "model.bin").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        weights.ensure(tmp_path, convert=crash)
    assert not (tmp_path / weights.FOLDER).exists()
    killed = tmp_path / ".half-killed"
    killed.mkdir()
    (killed / "model.bin").write_bytes(b"half")
    weights.ensure(tmp_path, convert=copying(model, []))
    assert not killed.exists()


def test_half_a_conversion_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AppError) as caught:
        weights.ensure(tmp_path, convert=lambda folder: (folder / "model.bin").write_bytes(b"half") and None)
    assert caught.value.code == Code.MODEL_UNAVAILABLE
    assert not (tmp_path / weights.FOLDER).exists()


def test_callers_at_once_convert_once(model: Path, tmp_path: Path) -> None:
    calls: list[Path] = []
    begin = threading.Barrier(4)
    found: list[Path] = []

    def call() -> None:
        begin.wait()
        found.append(weights.ensure(tmp_path, convert=copying(model, calls)))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert found == [tmp_path / weights.FOLDER] * 4


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(b"E5S1 but not ours")
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(AppError, match="not the checkpoint"):
        weights.convert(target, source=other)
    assert list(target.iterdir()) == []
