"""A graph state as compact arrays for a snapshot, and back: only rows that are taken, only mails that are held.

N rows, M mails per row, P pending payments, H taken rows, L held mails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solutions.fraud.graph_state import State, StateSettings, new_state
from solutions.fraud.snapshots import Arrays, Packed, SnapshotError

BLOCK = 1 << 15  # rows at a time


def _held(state: State, row_H: NDArray[np.int64]) -> NDArray[np.int64]:
    """(L,) places of the mails that these rows hold, in the flattened mailboxes."""
    mailbox = state.mail_time_NM.shape[1]
    held_H = np.minimum(state.count_N[row_H], mailbox)
    ends_H = np.cumsum(held_H)
    within = np.arange(ends_H[-1] if len(ends_H) else 0) - np.repeat(ends_H - held_H, held_H)
    return np.asarray(np.repeat(row_H * mailbox, held_H) + within)


def pack(state: State) -> dict[str, Packed]:
    """Arrays of a state by name, to be written block after block."""
    row_H, place_P = np.flatnonzero(state.key_N), np.flatnonzero(state.pending_key_P)
    mails = int(np.minimum(state.count_N[row_H], state.mail_time_NM.shape[1]).sum())

    def blocks(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
        for begin in range(0, len(row_H), BLOCK):
            yield flat[_held(state, row_H[begin : begin + BLOCK])]

    packed = {"rows": Packed.whole(row_H), "places": Packed.whole(place_P), "clock": Packed.whole(state.clock)}
    for name in State._fields:
        array = getattr(state, name)
        if name.endswith("_NM"):
            packed[name] = Packed(array.dtype, (mails,), blocks(array.reshape(-1)))
        elif name != "clock":
            packed[name] = Packed.whole(array[place_P if name.startswith("pending") else row_H])
    return packed


def unpack(arrays: Arrays, settings: StateSettings) -> State:
    """The state that was packed.

    Raises:
        SnapshotError: it does not fit into a state of this size.
    """
    state = new_state(settings)
    row_H, place_P = arrays["rows"], arrays["places"]
    if (len(row_H) and row_H[-1] >= settings.nodes) or (len(place_P) and place_P[-1] >= settings.pending):
        raise SnapshotError("it does not fit into a state of this size")
    for name in State._fields:
        if name == "clock":
            state.clock[:] = arrays[name]
        elif not name.endswith("_NM"):
            getattr(state, name)[place_P if name.startswith("pending") else row_H] = arrays[name]
    done = 0
    for begin in range(0, len(row_H), BLOCK):
        place_L = _held(state, row_H[begin : begin + BLOCK])
        for name in State._fields:
            if name.endswith("_NM"):
                getattr(state, name).reshape(-1)[place_L] = arrays[name][done : done + len(place_L)]
        done += len(place_L)
    return state
