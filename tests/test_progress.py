import io

import pytest

from synth2_jax import progress


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_lines_come_every_few_seconds_and_at_the_end(clock, capsys):
    with progress.Progress("synthesize", 100, "pairs", every_seconds=5) as bar:
        for _ in range(10):
            clock.now += 2
            bar.add(10)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "synthesize 30/100 pairs  5/s  0:14 left",
        "synthesize 60/100 pairs  5/s  0:08 left",
        "synthesize 90/100 pairs  5/s  0:02 left",
        "synthesize 100/100 pairs  5/s  0:00 left",
    ]


def test_a_stage_without_items_divides_by_nothing(clock, capsys):
    with progress.Progress("tokenize", 0, "images"):
        pass
    assert capsys.readouterr().err == "tokenize 0/0 images  0/s\n"


def test_more_items_than_expected_leave_no_time(clock, capsys):
    with progress.Progress("captions", 4, "captions") as bar:
        clock.now += 1
        bar.add(6)
    assert capsys.readouterr().err == "captions 6/4 captions  6/s  0:00 left\n"


def test_an_error_passes_through_after_the_count(clock, capsys):
    with pytest.raises(KeyError), progress.Progress("captions", 4, "captions") as bar:
        clock.now += 2
        bar.add(1)
        raise KeyError
    assert capsys.readouterr().err == "captions 1/4 captions  0.5/s  0:06 left\n"


def test_a_terminal_gets_one_line_that_is_written_over(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.Progress("captions", 4, "captions") as bar:
        clock.now += 0.1
        bar.add(1)  # too soon
        clock.now += 0.4
        bar.add(1)
        clock.now += 0.5
        bar.add(2)
    lines = capsys.readouterr().err.split("\r")
    assert lines == [
        "",
        "captions 2/4 captions  4/s  0:00 left\x1b[K",
        "captions 4/4 captions  4/s  0:00 left\x1b[K",
        "captions 4/4 captions  4/s  0:00 left\x1b[K\n",
    ]


class ClosedPipe(io.StringIO):
    def flush(self):
        raise BrokenPipeError


def test_work_goes_on_where_nothing_reads_the_progress(monkeypatch):
    stream = ClosedPipe()
    monkeypatch.setattr(progress.sys, "stderr", stream)
    with progress.Progress("tokenize", 2, "images", every_seconds=0) as bar:
        bar.add(1)
        bar.add(1)
    assert stream.getvalue().count("\n") == 1
