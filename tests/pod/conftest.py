"""Several `synth2` processes as one run, on this machine."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SYNTH2 = ("-m", "synth2_jax.main")


@dataclasses.dataclass
class Pod:
    """`with pod(4, devices=2).start("train", ...) as processes`: killed when the block ends."""

    num_processes: int
    devices: int
    folder: pathlib.Path

    def run(self, *arguments: str, timeout: float = 240, **options: str) -> "Pod":
        """Starts all and waits until they end well; arguments are those of `start`."""
        with self.start(*arguments, **options):
            assert self.codes(timeout) == [0] * self.num_processes, self.log(0)[-3000:]
        return self

    def start(self, *arguments: str, absent: int = 0, program: str = "", **environ: str) -> "Pod":
        """Starts all but the last `absent` processes of `synth2`, or of a Python program."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={self.devices}"
        self.processes, self._logs = [], []
        for index in range(self.num_processes - absent):
            self._logs.append(self.folder / f"worker-{index}.log")
            env = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": flags,
                "SYNTH2_COORDINATOR": f"127.0.0.1:{port}",
                "SYNTH2_NUM_PROCESSES": str(self.num_processes),
                "SYNTH2_PROCESS_ID": str(index),
                **environ,
            }
            command = [sys.executable, *(["-c", program] if program else SYNTH2), *arguments]
            with open(self._logs[-1], "w") as log:
                process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log)
            self.processes.append(process)
        return self

    def __enter__(self) -> "Pod":
        return self

    def __exit__(self, *exception_info) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def codes(self, timeout: float = 240) -> list[int]:
        """Exit codes, once all have ended."""
        return [process.wait(timeout) for process in self.processes]

    def log(self, index: int) -> str:
        return self._logs[index].read_text()

    def wait_for(self, condition, timeout: float = 240) -> None:
        """Until `condition()`; fails when all processes ended before."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline and any(p.poll() is None for p in self.processes), (
                "\n".join(log.read_text()[-3000:] for log in self._logs)
            )
            time.sleep(0.05)


@pytest.fixture(scope="session")
def pod(tmp_path_factory, compilation_cache):
    """pod(num_processes, devices=1) -> Pod."""

    def make(num_processes: int, devices: int = 1) -> Pod:
        return Pod(num_processes, devices, tmp_path_factory.mktemp("logs"))

    return make
