"""SIGTERM as a flag: whoever polls it leaves in order, and nobody misses it."""

import os
import signal

import pytest

from synth2_jax.training.stop_signal import EXIT_CODE, StopSignal


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


def test_an_error_is_not_hidden_by_a_signal():
    with pytest.raises(KeyError), StopSignal():
        stop_this_process()
        raise KeyError("found")
