"""The lock of a folder: one holder, released by any death, and no holder on two machines."""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from synth2_jax import folder_lock
from synth2_jax.errors import UserError

# Holds the lock of the folder in its argument until it is killed.
HOLDER = """
import pathlib, sys, time
from synth2_jax import folder_lock

with folder_lock.hold(pathlib.Path(sys.argv[1]) / folder_lock.LOCK, "--workdir=w", "synth2 train"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(folder_lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(folder_lock, "DEAD_SECONDS", 0.2)
    monkeypatch.setattr(folder_lock, "_POLL_SECONDS", 0.02)


def hold(folder: pathlib.Path):
    return folder_lock.hold(folder / folder_lock.LOCK, "--workdir=w", "synth2 tokenize")


def refused(folder: pathlib.Path) -> str:
    """The one line that a second holder gets."""
    with pytest.raises(UserError) as error, hold(folder):
        pytest.fail("held twice")
    return str(error.value)


def test_a_second_holder_is_refused_by_one_line_that_names_the_first(tmp_path):
    with hold(tmp_path):
        line = refused(tmp_path)
        assert line.startswith(f"--workdir=w: in use by process {os.getpid()} on ")
        assert "(synth2 tokenize, since 20" in line and "\n" not in line
    with hold(tmp_path):  # released
        pass


def test_nothing_is_left_of_it_but_what_was_written(tmp_path):
    with hold(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / folder_lock.LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "kept"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_death_releases_it_and_nothing_less(tmp_path, how):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert f"process {holder.pid} on " in refused(tmp_path)
        holder.send_signal(how)
        if how == signal.SIGSTOP:
            assert "(synth2 train, since 20" in refused(tmp_path)
        else:
            holder.wait()
            with hold(tmp_path):
                pass
    finally:
        holder.kill()
        holder.wait()


def _machine_of_its_own(monkeypatch, by_kernel: bool | None, machines: str = "abcdefgh") -> None:
    """As on shared storage whose flock does not reach the holder's machine."""
    monkeypatch.setattr(folder_lock, "_flock", lambda descriptor: by_kernel)
    every = iter(machines)
    monkeypatch.setattr(folder_lock, "_machine", lambda descriptor: next(every))


@pytest.mark.parametrize("by_kernel, machines", [(True, "abc"), (None, "abc"), (None, "aaa")])
def test_a_living_holder_is_found_without_flock(tmp_path, monkeypatch, by_kernel, machines):
    _machine_of_its_own(monkeypatch, by_kernel, machines)
    monkeypatch.setattr(folder_lock, "DEAD_SECONDS", 60)  # the first beat ends the wait
    with hold(tmp_path):
        assert f"in use by process {os.getpid()} on " in refused(tmp_path)
    with hold(tmp_path):
        pass


@pytest.mark.parametrize("by_kernel", [True, None])
@pytest.mark.parametrize("content", ["{}", "", '{"pid": 1, "host": "gone", "beat": 7}'])
def test_a_holder_of_another_machine_that_stands_still_is_dead(
    tmp_path, monkeypatch, by_kernel, content, capfd
):
    _machine_of_its_own(monkeypatch, by_kernel)
    (tmp_path / folder_lock.LOCK).write_text(content)
    with hold(tmp_path):
        assert json.loads((tmp_path / folder_lock.LOCK).read_text())["pid"] == os.getpid()
    assert "waiting up to" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_of_many_machines_that_see_the_same_death_one_goes_on(tmp_path, monkeypatch):
    _machine_of_its_own(monkeypatch, None)
    monkeypatch.setattr(folder_lock, "_POLL_SECONDS", 0.2)
    (tmp_path / folder_lock.LOCK).write_text('{"pid": 1, "host": "gone"}')
    held, refused, all_tried = [], [], threading.Barrier(4)

    def start():
        try:
            with hold(tmp_path):
                held.append(1)
                all_tried.wait(10)
        except UserError as error:
            refused.append(str(error))
            all_tried.wait(10)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(start)
    assert (len(held), len(refused)) == (1, 3)


def test_a_holder_that_was_taken_for_dead_ends(tmp_path, monkeypatch):
    lost = threading.Event()
    monkeypatch.setattr(folder_lock, "_lost", lambda named, found: lost.set())
    with hold(tmp_path):
        (tmp_path / folder_lock.LOCK).write_text('{"token": "of another"}')
        assert lost.wait(10)
    assert (tmp_path / folder_lock.LOCK).exists()  # it is the other one's now


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    line = refused(tmp_path / ("x" * 300))
    assert line.startswith("--workdir=w: cannot write there (File name too long). Choose")
