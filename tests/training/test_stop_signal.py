"""Signals as a flag: a stage that polls it leaves in order, and none is missed."""

import os
import signal

import pytest

from synth2_jax.stop_signal import EXIT_CODE, StopSignal


def stop_this_process():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_is_a_flag_inside_and_what_it_was_outside():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as error, StopSignal() as stop:
        assert not stop.requested()
        stop_this_process()
        assert stop.requested()
        stop.exit()
    assert error.value.code == EXIT_CODE == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_after_the_last_poll_ends_the_process_all_the_same():
    """Else the next step of a demo would run on until its machine is taken away."""
    finished = []
    with pytest.raises(SystemExit) as error, StopSignal():
        stop_this_process()
        finished.append("what was under way")
    assert error.value.code == 143 and finished
    with pytest.raises(KeyError), StopSignal():  # an error is not hidden by a signal
        stop_this_process()
        raise KeyError("found")


def test_a_second_ctrl_c_ends_at_once():
    with pytest.raises(KeyboardInterrupt), StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested()
        signal.raise_signal(signal.SIGINT)


def test_what_was_ignored_stays_ignored_and_leaving_says_what_was_kept(capsys):
    """SIGHUP is ignored under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    with pytest.raises(SystemExit), StopSignal() as stop:
        signal.raise_signal(signal.SIGHUP)
        stop.exit("finished shards are kept")
    assert capsys.readouterr().err == "stopped by SIGHUP; finished shards are kept\n"
