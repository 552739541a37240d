"""Snapshots of the state on disk: written whole or not at all, checked when read, kept some deep.

A snapshot is written by a forked child from its copy-on-write view of the memory, so scoring does not wait for the disk.

    magic | length of header | header (JSON: values, arrays) | arrays, one after the other | blake2b of all before
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.logs import EventLog

log = EventLog("vigil.fraud.snapshots", fields=("cause", "snapshot", "seconds"))
MAGIC = b"vigil snapshot 1\n"
DIGEST_BYTES = 32
_NAME = re.compile(r"snapshot-(\d{20})-([A-Za-z0-9._-]+)")


class SnapshotError(ValueError):
    """A snapshot that is damaged, or of another kind."""


class Packed(NamedTuple):
    """An array in blocks, so that a large state is never held twice."""

    dtype: Any
    shape: tuple[int, ...]
    blocks: Iterable[NDArray[Any]]

    @classmethod
    def whole(cls, array: NDArray[Any]) -> Packed:
        return cls(array.dtype, array.shape, [array])


Arrays = dict[str, NDArray[Any]]
Contents = tuple[dict[str, Packed], dict[str, Any]]  # arrays, and plain values that survive JSON


@dataclass(frozen=True)
class Snapshot:
    """offset: in the changelog; all markers below are in it."""

    offset: int
    arrays: Arrays
    values: dict[str, Any]


def write_snapshot(path: Path, contents: Contents) -> None:
    """Write a file whole or not at all; it is on the disk when this returns."""
    arrays, values = contents
    described = [[name, np.dtype(p.dtype).str, list(p.shape)] for name, p in arrays.items()]
    header = json.dumps({"values": values, "arrays": described}).encode()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    try:
        with open(temporary, "wb") as file:

            def put(part: Any) -> None:
                digest.update(part)
                file.write(part)

            put(MAGIC + struct.pack("<Q", len(header)) + header)
            for packed in arrays.values():
                for block in packed.blocks:
                    put(np.ascontiguousarray(block).data.cast("B") if block.size else b"")
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the name too
    finally:
        os.close(directory)


def read_snapshot(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read a file that `write_snapshot` wrote.

    Raises:
        SnapshotError: it is damaged, or something else.
    """
    raw = np.fromfile(path, np.uint8)
    start = len(MAGIC) + 8
    if len(raw) < start + DIGEST_BYTES or raw[: len(MAGIC)].tobytes() != MAGIC:
        raise SnapshotError("it is not a snapshot, or was cut off")
    body, digest = raw[:-DIGEST_BYTES], raw[-DIGEST_BYTES:].tobytes()
    if hashlib.blake2b(body.data, digest_size=DIGEST_BYTES).digest() != digest:
        raise SnapshotError("its checksum is wrong")
    (length,) = struct.unpack("<Q", raw[len(MAGIC) : start].tobytes())
    header = json.loads(raw[start : start + length].tobytes())
    arrays, position = {}, start + length
    for name, dtype, shape in header["arrays"]:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        arrays[name] = body[position : position + size].view(np.uint8).copy().view(dtype).reshape(shape)
        position += size
    return arrays, header["values"]


class Snapshots:
    """Snapshots of a group's state in one directory: named by the place in the changelog and by the worker that wrote them.

    Every worker keeps the newest `keep` of its own, and may start from anybody's.
    """

    def __init__(self, directory: Path, *, keep: int, worker: str = "owner") -> None:
        self.directory, self.keep, self.worker = directory, keep, worker
        self._child: int | None = None
        self._offset = 0
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, offset: int) -> Path:
        return self.directory / f"snapshot-{offset:020d}-{self.worker}"

    def found(self) -> list[tuple[int, Path]]:
        """Everybody's, newest first: place in the changelog and file."""
        names = [(_NAME.fullmatch(path.name), path) for path in self.directory.iterdir() if path.suffix != ".tmp"]
        return sorted(((int(match[1]), path) for match, path in names if match), reverse=True)

    def newest_good(self, kind: str) -> Snapshot | None:
        """The newest that is whole and of this kind (`values["kind"]`); the others are skipped, with a warning."""
        for offset, path in self.found():
            try:
                arrays, values = read_snapshot(path)
                if values["kind"] != kind:
                    raise SnapshotError("it belongs to a state of other settings")
            except (SnapshotError, OSError) as cause:
                log.warning("snapshot not used", cause=str(cause), snapshot=offset)
                continue
            return Snapshot(offset, arrays, values)
        return None

    @property
    def busy(self) -> bool:
        return self._child is not None

    def begin(self, offset: int, contents: Callable[[], Contents]) -> None:
        """Fork a child that writes; the state may change as soon as this returns."""
        assert not self.busy
        self._offset = offset
        child = os.fork()
        if child == 0:
            _write_and_exit(self.path(offset), contents)
        self._child = child

    def finished(self, *, wait: bool = False) -> None:
        """See whether the child is done; a failure is a warning: scoring goes on, and the snapshots before are kept."""
        if self._child is None:
            return
        child, status = os.waitpid(self._child, 0 if wait else os.WNOHANG)
        if child == 0:
            return
        self._child = None
        self._outcome(os.waitstatus_to_exitcode(status))

    def take(self, offset: int, contents: Callable[[], Contents]) -> None:
        """Write one now."""
        self.finished(wait=True)
        self._offset = offset
        try:
            write_snapshot(self.path(offset), contents())
            self._outcome(0)
        except OSError as error:
            self._outcome(error.errno or 1)

    def _outcome(self, code: int) -> None:
        if code:
            cause = errno.errorcode.get(code, f"exit code {code}")
            log.warning("snapshot failed", cause=cause, snapshot=self._offset)
            return
        log.info("snapshot written", snapshot=self._offset)
        mine = [path for offset, path in self.found() if path == self.path(offset)]
        for old in mine[self.keep :]:
            old.unlink(missing_ok=True)
        for left in self.directory.glob(f"snapshot-{'?' * 20}-{self.worker}.*.tmp"):  # of a process that was killed
            left.unlink(missing_ok=True)


def _write_and_exit(path: Path, contents: Callable[[], Contents]) -> None:
    """The child: nothing of the parent's may be used but its memory, and no lock of a thread that is not here."""
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        os.closerange(3, 65_536)
        os.nice(10)
        write_snapshot(path, contents())
        code = 0
    except OSError as error:
        code = min(error.errno or 1, 255)
    finally:
        os._exit(code)
