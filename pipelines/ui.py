"""`vigil ui`: Dagster and MLflow on the local machine, both stopped together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from pipelines.resources import ROOT


def run_ui(var_dir: Path, tracking_uri: str, dagster_port: int, mlflow_port: int) -> None:
    """Start both servers on 127.0.0.1 and wait for Ctrl-C or SIGTERM; both end with this process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    var_dir.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "VIGIL_VAR": str(var_dir)}
    environment.setdefault("DAGSTER_HOME", str(ROOT))
    environment["PYTHONWARNINGS"] = "ignore"
    tools = Path(sys.executable).parent
    local = ["--host", "127.0.0.1", "--port"]
    commands = [
        [str(tools / "dagster"), "dev", "-m", "pipelines.definitions", *local, str(dagster_port)],
        [str(tools / "mlflow"), "server", "--backend-store-uri", tracking_uri, *local, str(mlflow_port)],
    ]
    servers = [subprocess.Popen(command, env=environment, start_new_session=True) for command in commands]
    print(f"Dagster http://127.0.0.1:{dagster_port}   MLflow http://127.0.0.1:{mlflow_port}   stop with Ctrl-C")
    try:
        for server in servers:
            server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        for server in servers:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGINT)
        for server in servers:
            server.wait(20)
