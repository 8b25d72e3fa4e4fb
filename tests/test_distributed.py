"""The roll call: who is there learns who is missing, and one line says it."""

import concurrent.futures
import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from synth2_jax import distributed
from synth2_jax.distributed import Processes
from synth2_jax.errors import UserError
from synth2_jax.testing.user_errors import user_error

ENVIRONMENT = {
    "SYNTH2_COORDINATOR": "10.0.0.1:8476",
    "SYNTH2_NUM_PROCESSES": "4",
    "SYNTH2_PROCESS_ID": "3",
}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def one_of(num_processes, process_id, port, seconds=20.0, secret=""):
    return Processes("127.0.0.1", port, num_processes, process_id, None, seconds, secret)


def call_the_roll(*given):
    """What each of several processes is told: "" or the error; here each is a thread."""

    def told(processes):
        try:
            distributed.roll_call(processes)
        except UserError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(given)) as pool:
        return list(pool.map(told, given))


def test_the_launchers_words():
    assert distributed.from_environment({}) is None  # alone there is nothing to join
    found = distributed.from_environment({**ENVIRONMENT, "SYNTH2_NUM_DEVICES": "16"})
    assert found == Processes("10.0.0.1", 8476, 4, 3, 16, 300.0)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("SYNTH2_COORDINATOR", "10.0.0.1", "found '10.0.0.1', expected HOST:PORT"),
        ("SYNTH2_COORDINATOR", "10.0.0.1:99999", "with a port from 1 to 65535"),
        ("SYNTH2_COORDINATOR", "10.0.0.1:0", "with a port from 1 to 65535"),
        ("SYNTH2_COORDINATOR", f"10.0.0.1:{'1' * 5000}", "with a port from 1 to 65535"),
        ("SYNTH2_NUM_PROCESSES", "four", "found 'four', expected a whole number"),
        ("SYNTH2_NUM_PROCESSES", "0", "found '0', expected a whole number from 1 on"),
        ("SYNTH2_NUM_DEVICES", "0", "found '0', expected a whole number from 1 on"),
        ("SYNTH2_NUM_DEVICES", "9" * 5000, "expected a whole number from 1 on"),
        ("SYNTH2_PROCESS_ID", "", "found 'nothing', expected a whole number from 0 on, for SYN"),
        ("SYNTH2_START_SECONDS", "abc", "found 'abc', expected a number above 0"),
        ("SYNTH2_START_SECONDS", "nan", "found 'nan', expected a number above 0"),
        ("SYNTH2_START_SECONDS", "inf", "found 'inf', expected a number above 0"),
        ("SYNTH2_START_SECONDS", "-3", "found '-3', expected a number above 0"),
        ("SYNTH2_PROCESS_ID", "4", "found 4, expected 0 to 3, of SYNTH2_NUM_PROCESSES"),
    ],
)
def test_mistakes_in_them(name, text, message):
    with user_error(f"{name}: .*{message}"):
        distributed.from_environment({**ENVIRONMENT, name: text})


@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_all_are_there(num_processes):
    port = free_port()
    told = call_the_roll(*(one_of(num_processes, i, port) for i in range(num_processes)))
    assert told == [""] * num_processes


# What is started where (processes that it expects, number), and what all of them are told.
TROUBLES = [
    (
        [(4, 0), (4, 3), (4, 1)],
        "preflight: expected 4 processes, found 3 within 1 s: 0, 1, 3",
    ),
    (
        [(3, 0), (2, 1)],
        "preflight: process 0 expected 3 processes, found process 1, which expected 2",
    ),
    ([(4, 0), (4, 1), (4, 1)], "preflight: expected one process 1, found two"),
]


@pytest.mark.parametrize("started, line", TROUBLES)
def test_everyone_learns_who_is_missing_or_contradicts(started, line):
    port = free_port()
    seconds = 1.0 if "within" in line else 9.0
    told = call_the_roll(*(one_of(*numbers, port, seconds) for numbers in started))
    assert told == [line] * len(started)


def test_without_process_0_the_others_give_up():
    port = free_port()
    (told,) = call_the_roll(one_of(2, 1, port, seconds=0.5))
    assert told.startswith(f"preflight: process 1 found no process 0 at 127.0.0.1:{port} within ")


SAID = {"process": 1, "processes": 2, "proof": ""}


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\n",
        b"7\n",
        b"[" * 5000 + b"\n",
        b"x" * 10**6,
        json.dumps(SAID).encode() + b"\n",
        json.dumps(SAID | {"process": []}).encode() + b"\n",
        json.dumps(SAID | {"process": "1", "proof": 3}).encode() + b"\n",
        json.dumps(SAID | {"processes": 3}).encode() + b"\n",
        json.dumps(SAID | {"process": 5}).encode() + b"\n",
        json.dumps(SAID | {"proof": "\ud800"}).encode() + b"\n",
    ],
    ids=lambda said: said[:30].decode(errors="replace"),
)
def test_a_stranger_on_the_port_changes_nothing(said, monkeypatch):
    """Nor does one that says nothing, although it would be heard for longer than the roll call."""
    monkeypatch.setattr(distributed, "_ANSWER_SECONDS", 90.0)
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(call_the_roll, one_of(2, 0, port, secret="s"))
        silent, stranger = connected(port), connected(port)
        with stranger, contextlib.suppress(OSError):  # which may be cut off while it speaks
            stranger.sendall(said)
            stranger.makefile("rb").read(2**20)  # until it is sent away
        assert call_the_roll(one_of(2, 1, port, secret="s")) == first.result() == [""]
        silent.close()


def connected(port):
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        time.sleep(0.02)


def test_a_process_of_another_launch_hears_why_it_is_sent_away():
    port = free_port()
    told = call_the_roll(one_of(2, 0, port, 1.0, secret="s"), one_of(2, 1, port, 5.0, secret="t"))
    assert told == [
        "preflight: expected 2 processes, found 1 within 1 s: 0",
        "preflight: process 0 has another SYNTH2_SECRET than this process",
    ]


@pytest.mark.parametrize("problem", ["--config=\udcff.py: no such file", "x" * 9000 + " do this"])
def test_one_that_is_alone_hears_its_own_problem_whole(problem):
    distributed.agree("")
    with pytest.raises(UserError) as caught:
        distributed.agree(problem)
    assert str(caught.value) == problem


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        (told,) = call_the_roll(one_of(2, 0, port))
    assert told.startswith(f"SYNTH2_COORDINATOR: cannot listen on port {port} (")


@pytest.mark.slow
def test_a_wrong_number_of_devices_is_one_line_and_code_2(tmp_path):
    command = [sys.executable, "-m", "synth2_jax.main", "train", f"--workdir={tmp_path}"]
    alone = {
        "SYNTH2_COORDINATOR": f"127.0.0.1:{free_port()}",
        "SYNTH2_NUM_PROCESSES": "1",
        "SYNTH2_PROCESS_ID": "0",
        "SYNTH2_NUM_DEVICES": "8",
    }
    done = subprocess.run(
        [*command, "--config=configs/scenes/vlm.py:tiny"],
        env={**os.environ, **alone},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "synth2: preflight: expected 8 devices, found 1"
