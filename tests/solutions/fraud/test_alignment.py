"""Several streams as one: order of time between them, their own order within, waiting only where something is missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solutions.fraud.alignment import Alignment

times = st.lists(st.integers(0, 20).map(float), max_size=12)


def filled(streams: list[list[float]]) -> Alignment[int, tuple[float, int, int]]:
    alignment: Alignment[int, tuple[float, int, int]] = Alignment(range(len(streams)))
    for source, stream in enumerate(streams):
        for n, time in enumerate(stream):
            alignment.push(source, time, (time, source, n))
    return alignment


@given(st.lists(times.map(sorted), min_size=1, max_size=4))
def test_streams_in_order_give_one_stream_in_order_with_ties_by_source(streams: list[list[float]]) -> None:
    taken = filled(streams).take(1000, lambda _: True)
    assert taken == sorted(taken)
    assert len(taken) == sum(map(len, streams))


@given(st.lists(times, min_size=1, max_size=4), st.integers(1, 5))
def test_the_size_of_a_bite_changes_nothing_and_each_source_keeps_its_order(
    streams: list[list[float]], most: int
) -> None:
    whole = filled(streams).take(1000, lambda _: True)
    bitten, parts = filled(streams), []
    while part := bitten.take(most, lambda _: True):
        assert len(part) <= most
        parts += part
    assert parts == whole
    for source, stream in enumerate(streams):
        assert [item[2] for item in whole if item[1] == source] == list(range(len(stream)))


def test_a_source_that_is_behind_is_waited_for() -> None:
    alignment = filled([[1.0, 5.0], [2.0]])
    behind = {1}
    assert alignment.take(10, lambda s: s not in behind) == [(1.0, 0, 0), (2.0, 1, 0)]
    assert alignment.take(10, lambda s: s not in behind) == []
    alignment.push(1, 3.0, (3.0, 1, 1))
    assert alignment.take(10, lambda s: s not in behind) == [(3.0, 1, 1)]
    behind.clear()
    assert alignment.take(10, lambda s: s not in behind) == [(5.0, 0, 1)]


def test_what_was_not_taken_is_told() -> None:
    alignment = filled([[3.0, 1.0], []])
    assert alignment.first(0) == (3.0, 0, 0)
    assert alignment.first(1) is None
    assert (len(alignment), alignment.size(0), alignment.size(1)) == (2, 2, 0)
    alignment.add(2)
    alignment.push(2, 0.0, (0.0, 2, 0))
    assert alignment.take(1, lambda _: True) == [(0.0, 2, 0)]
