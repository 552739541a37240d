"""Files that are whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".tmp"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place at the end of the block; when the block raises, it is removed.

    A process that was killed leaves its temporary file; the next one that writes to the folder removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{SUFFIX}")
    try:
        yield temporary
        _move(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _move(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)


def _sweep(folder: Path) -> None:
    """Remove temporary files of processes of this host that are gone."""
    for left in folder.glob(f".*.{socket.gethostname()}.*{SUFFIX}"):
        process = left.name.removesuffix(SUFFIX).rpartition(".")[2]
        if process.isdigit() and not _alive(int(process)):
            left.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
