import io

import pytest

from synth2_jax import progress


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) lets so much time pass."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_lines_come_every_few_seconds_and_at_the_end(clock, capsys):
    with progress.Progress("synthesize", 100, "pairs", every_seconds=5) as bar:
        for _ in range(10):
            clock(2)
            bar.add(10)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "synthesize 30/100 pairs  5/s  0:14 left",
        "synthesize 60/100 pairs  5/s  0:08 left",
        "synthesize 90/100 pairs  5/s  0:02 left",
        "synthesize 100/100 pairs  5/s  0:00 left",
    ]


@pytest.mark.parametrize(
    "total, done, seconds, line",
    [
        (0, 0, 0, "x 0/0 y  0/s"),  # divides by nothing
        (4, 6, 1, "x 6/4 y  6/s  0:00 left"),  # more than expected
        (4, 1, 2, "x 1/4 y  0.5/s  0:06 left"),  # an error passes through
    ],
)
def test_the_last_line_comes_whatever_was_done(clock, capsys, total, done, seconds, line):
    with pytest.raises(KeyError), progress.Progress("x", total, "y") as bar:
        clock(seconds)
        bar.add(done)
        raise KeyError
    assert capsys.readouterr().err == f"{line}\n"


def test_a_terminal_gets_one_line_that_is_written_over(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.Progress("captions", 4, "captions") as bar:
        for seconds, count in ((0.1, 1), (0.4, 1), (0.5, 2)):  # the first is too soon
            clock(seconds)
            bar.add(count)
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
