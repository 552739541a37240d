"""Files of a folder, of nested folders and of zip files, read whole into memory: a series is never read in part."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from solutions.medical_imaging.codes import Report

LARGEST = 4 * 1024**3  # bytes; a thousand slices of 512 x 512 are 0.5 GB
IGNORED = frozenset({"DICOMDIR", "THUMBS.DB", ".DS_STORE"})


class InputError(ValueError):
    """A wrong call or a file that can not be used; exit code 2."""

    exit_code = 2


@dataclass(frozen=True)
class Blob:
    """The bytes of one file. It is called by its place in the order: names of files may hold names of patients."""

    place: str
    data: bytes


def collect(path: Path, report: Report) -> list[Blob]:
    """All files below a path, in the order of their names; what can not be unpacked goes to the report."""
    if not path.exists():
        raise InputError(
            "the series must be a folder, a zip file or a DICOM file. Received: a path that does not exist."
        )
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
    blobs: list[Blob] = []
    total = 0
    for number, data in enumerate(_contents(found, report), start=1):
        total += len(data)
        if total > LARGEST:
            report.add("refuse", "TOO_LARGE", f"more than {LARGEST / 1024**3:.0f} GB")
            return []
        blobs.append(Blob(f"file {number}", data))
    if not blobs and not report.findings:
        report.add("refuse", "NO_FILES", "the folder is empty")
    return blobs


def _hidden(path: Path, root: Path) -> bool:
    parts = path.relative_to(root).parts
    return any(part.startswith((".", "__MACOSX")) for part in parts) or path.name.upper() in IGNORED


def _contents(paths: list[Path], report: Report) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            head = file.read(4)
        if head == b"PK\x03\x04" or path.suffix.lower() == ".zip":
            yield from _unzip(path, report)
        else:
            yield path.read_bytes()


def _unzip(path: Path, report: Report) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [i for i in archive.infolist() if not i.is_dir() and not _hidden(Path(i.filename), Path("."))]
            if sum(i.file_size for i in names) > LARGEST:
                report.add("refuse", "TOO_LARGE", f"a zip file of more than {LARGEST / 1024**3:.0f} GB unpacked")
                return
            for info in sorted(names, key=lambda i: i.filename):
                with archive.open(info) as member:
                    data = member.read()
                if data[:4] == b"PK\x03\x04":
                    with zipfile.ZipFile(io.BytesIO(data)) as inner:
                        yield from (inner.read(i) for i in sorted(inner.infolist(), key=lambda i: i.filename))
                else:
                    yield data
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        report.add("refuse", "ZIP_BROKEN", f"a zip file can not be unpacked ({type(error).__name__})")
