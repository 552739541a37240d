"""Brokers that tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from solutions.fraud.broker import embedded_broker
from tests.kafka import some_kafka


@pytest.fixture(scope="module")
def tansu() -> Iterator[str]:
    """The embedded broker: quick, no Java; proves nothing about restarts and aborts."""
    with embedded_broker() as address:
        yield address


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with some_kafka(tmp_path_factory.mktemp("kafka")) as address:
        yield address
