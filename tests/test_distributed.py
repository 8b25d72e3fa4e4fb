"""The roll call: who is there learns who is missing, and one line says it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from synth2_jax import distributed
from synth2_jax.distributed import Processes
from synth2_jax.errors import UserError

ENVIRONMENT = {
    "SYNTH2_COORDINATOR": "10.0.0.1:8476",
    "SYNTH2_NUM_PROCESSES": "4",
    "SYNTH2_PROCESS_ID": "3",
}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def call_the_roll(*given):
    """What each of several processes is told: "" or the error; here each is a thread."""
    told = {}

    def one(place, processes):
        try:
            distributed.roll_call(processes)
            told[place] = ""
        except UserError as error:
            told[place] = str(error)

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(given)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [told[place] for place in range(len(given))]


def test_alone_there_is_nothing_to_join():
    assert distributed.from_environment({}) is None


def test_the_launchers_words():
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
    with pytest.raises(UserError) as error:
        distributed.from_environment({**ENVIRONMENT, name: text})
    assert str(error.value).startswith(name) and message in str(error.value)


@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_all_are_there(num_processes):
    port = free_port()
    told = call_the_roll(
        *(Processes("127.0.0.1", port, num_processes, i) for i in range(num_processes))
    )
    assert told == [""] * num_processes


def test_everyone_learns_who_is_missing():
    port = free_port()
    told = call_the_roll(
        *(Processes("127.0.0.1", port, 4, i, start_seconds=1.0) for i in (0, 3, 1))
    )
    expected = "preflight: expected 4 processes, found 3 within 1 s: 0, 1, 3"
    assert told == [expected] * 3


def test_without_process_0_the_others_give_up():
    port = free_port()
    (told,) = call_the_roll(Processes("127.0.0.1", port, 2, 1, start_seconds=0.5))
    expected = f"preflight: process 1 found no process 0 at 127.0.0.1:{port} within 0"
    assert told.startswith(expected.removesuffix("0"))


def test_two_launches_that_contradict():
    port = free_port()
    told = call_the_roll(
        Processes("127.0.0.1", port, 3, 0, start_seconds=5.0),
        Processes("127.0.0.1", port, 2, 1, start_seconds=5.0),
    )
    expected = "preflight: process 0 expected 3 processes, found process 1, which expected 2"
    assert told == [expected] * 2


def test_one_process_started_twice():
    port = free_port()
    told = call_the_roll(
        *(Processes("127.0.0.1", port, 4, i, start_seconds=5.0) for i in (0, 1, 1))
    )
    assert told == ["preflight: expected one process 1, found two"] * 3


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
    port, told = free_port(), []
    call = threading.Thread(
        target=lambda: told.extend(
            call_the_roll(Processes("127.0.0.1", port, 2, 0, start_seconds=20.0, secret="s"))
        )
    )
    call.start()
    silent, stranger = connected(port), connected(port)
    with stranger, contextlib.suppress(OSError):  # which may be cut off while it speaks
        stranger.sendall(said)
        stranger.makefile("rb").read(2**20)  # until it is sent away
    told += call_the_roll(Processes("127.0.0.1", port, 2, 1, start_seconds=20.0, secret="s"))
    call.join()
    silent.close()
    assert told == ["", ""]


def connected(port):
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        time.sleep(0.02)


def test_a_process_of_another_launch_hears_why_it_is_sent_away():
    port = free_port()
    told = call_the_roll(
        Processes("127.0.0.1", port, 2, 0, start_seconds=1.0, secret="s"),
        Processes("127.0.0.1", port, 2, 1, start_seconds=5.0, secret="t"),
    )
    assert told == [
        "preflight: expected 2 processes, found 1 within 1 s: 0",
        "preflight: process 0 has another SYNTH2_SECRET than this process",
    ]


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        (told,) = call_the_roll(Processes("127.0.0.1", port, 2, 0))
    assert told.startswith(f"SYNTH2_COORDINATOR: cannot listen on port {port} (")


@pytest.mark.slow
def test_a_wrong_number_of_devices_is_one_line_and_code_2(tmp_path):
    flags = ["--config=configs/scenes/vlm.py:tiny", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "synth2_jax.main", "train", *flags],
        env={
            **os.environ,
            "SYNTH2_COORDINATOR": f"127.0.0.1:{free_port()}",
            "SYNTH2_NUM_PROCESSES": "1",
            "SYNTH2_PROCESS_ID": "0",
            "SYNTH2_NUM_DEVICES": "8",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "synth2: preflight: expected 8 devices, found 1"
