"""A real Apache Kafka for tests: KAFKA_BOOTSTRAP_SERVERS, else KAFKA_HOME or ../shared/kafka with Java, else skip."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from solutions.fraud.broker import free_port

START_SECONDS = 90.0


def kafka_home() -> Path:
    return Path(os.environ.get("KAFKA_HOME", Path(__file__).parents[2] / "shared" / "kafka"))


def java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    return str(Path(home) / "bin" / "java") if home else shutil.which("java")


class LocalKafka:
    """One broker (KRaft) of an unpacked release on 127.0.0.1; its data survive `kill`, and `start` recovers them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port, self.controller = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(directory / "log"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            "broker.session.timeout.ms": "2000",  # a broker that starts after SIGKILL waits for its old session
            "broker.heartbeat.interval.ms": "500",
        }
        self.config = directory / "server.properties"
        self.config.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        cluster = (
            "V" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
        )  # "-" would begin an option
        subprocess.run(
            self._java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self.config)),
            check=True,
            capture_output=True,
        )

    def _java(self, *words: str) -> list[str]:
        found = java()
        assert found is not None
        # quick to start, and short pauses on two cores that it shares
        flags = ["-Xms256m", "-Xmx1g", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        return [found, *flags, "-cp", f"{kafka_home()}/libs/*", *words]

    def start(self) -> None:
        with open(self.directory / "broker.log", "ab") as log:
            self.process = subprocess.Popen(
                self._java("kafka.Kafka", str(self.config)), stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=0.5).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"Kafka did not start; see {self.directory / 'broker.log'}")

    def end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None


def need_java() -> None:
    if java() is None or not list((kafka_home() / "libs").glob("kafka-server-*.jar")):
        pytest.skip("no Apache Kafka: set KAFKA_BOOTSTRAP_SERVERS, or KAFKA_HOME with Java 17 on the PATH")


@contextmanager
def local_kafka(directory: Path) -> Iterator[LocalKafka]:
    need_java()
    broker = LocalKafka(directory)
    broker.start()
    try:
        yield broker
    finally:
        broker.end(signal.SIGKILL)


@contextmanager
def some_kafka(directory: Path) -> Iterator[str]:
    """HOST:PORT of the Kafka that KAFKA_BOOTSTRAP_SERVERS names, else of one that is started for the block."""
    if servers := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield servers
        return
    with local_kafka(directory) as broker:
        yield broker.address
