"""Archives for tests: honest ones, and those that no program makes."""

import io
import tarfile
import zipfile
import zlib


def zipped(files: dict[str, bytes], *, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:gz", *others: tarfile.TarInfo) -> bytes:
    """With `others` behind the files: links, devices and what else has no bytes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in others:
            archive.addfile(info)
    return target.getvalue()


def raw_named(files: dict[bytes, bytes]) -> bytes:
    """A ZIP whose names are these bytes, with no word on their encoding, as Windows programs write it."""
    stand_ins = {chr(ord("A") + number) * len(name): name for number, name in enumerate(files)}
    found = zipped(dict(zip(stand_ins, files.values(), strict=True)))
    for stand_in, name in stand_ins.items():
        assert found.count(stand_in.encode()) == 2
        found = found.replace(stand_in.encode(), name)
    return found


def understated(data: bytes, size: int) -> bytes:
    """A ZIP of one file that claims to have `size` bytes, with a checksum to match them."""
    found = bytearray(zipped({"bomb.txt": data}))
    checksum = zlib.crc32(data[:size])
    for signature, place in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        start = found.index(signature) + place
        found[start : start + 4] = checksum.to_bytes(4, "little")
        found[start + 8 : start + 12] = size.to_bytes(4, "little")
    return bytes(found)


def overlapping(data: bytes, count: int) -> bytes:
    """A ZIP whose `count` entries are all the same stored bytes."""
    single = zipped({"bomb.txt": data})
    start, end = single.index(b"PK\x01\x02"), single.index(b"PK\x05\x06")
    entries = b"".join(single[start:end].replace(b"bomb.txt", f"bom{number:05}".encode()) for number in range(count))
    # Local headers name one file, so readers that compare refuse all but the first.
    tail = bytearray(single[end:])
    tail[8:12] = count.to_bytes(2, "little") * 2
    tail[12:16] = len(entries).to_bytes(4, "little")
    return single[:start] + entries + bytes(tail)


def flagged_encrypted(archive: bytes) -> bytes:
    """The same with every entry marked as encrypted."""
    found = bytearray(archive)
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = 0
        while (start := found.find(signature, start)) >= 0:
            found[start + place] |= 1
            start += 4
    return bytes(found)
