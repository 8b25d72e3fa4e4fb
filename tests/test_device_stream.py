"""Work that flows through a device."""

import itertools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.device_stream import BusyClock, in_background, on_device


def test_items_come_in_order_from_another_thread():
    makers = set()

    def items():
        for number in range(20):
            makers.add(threading.current_thread())
            yield number

    assert list(in_background(items(), ahead=3)) == list(range(20))
    assert makers and threading.current_thread() not in makers


def test_no_more_items_are_made_than_asked_for():
    made = []
    stream = in_background((made.append(n) or n for n in itertools.count()), ahead=2)
    assert next(stream) == 0
    time.sleep(0.3)
    assert len(made) <= 5  # two wait, one more is in the hand of the thread
    stream.close()
    count = len(made)
    time.sleep(0.3)
    assert len(made) <= count + 1  # closing ends the thread
    assert threading.active_count() < 20


def test_errors_are_raised_where_the_items_are_used():
    def items():
        yield 1
        raise OSError("disk gone")

    stream = in_background(items(), ahead=2)
    assert next(stream) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(stream)


def test_results_come_in_order_with_their_tags():
    batches = [(f"tag {n}", (np.full((2,), n),)) for n in range(7)]
    results = list(on_device(jax.jit(lambda x: x * 10), batches))
    assert [tag for tag, _ in results] == [f"tag {n}" for n in range(7)]
    np.testing.assert_array_equal([row[0] for _, row in results], np.arange(7) * 10)


def test_the_next_batch_is_asked_for_before_a_result_is_used():
    asked = []

    def function(number):
        asked.append(number)
        return jnp.asarray(number)

    stream = on_device(function, ((n, (n,)) for n in range(9)))
    assert next(stream)[0] == 0
    assert asked == [0, 1, 2]


@pytest.mark.slow
def test_a_device_that_waits_for_its_host_is_less_busy():
    work = jax.jit(lambda x: jax.lax.fori_loop(0, 40, lambda _, x: jnp.tanh(x @ x), x))
    x = jnp.ones((300, 300))

    def share(pause):
        def batches():
            for number in range(6):
                time.sleep(pause)
                yield number, (x,)

        with BusyClock() as clock:
            for _ in on_device(work, batches(), clock):
                pass
        return clock.share

    assert 0 < share(0.3) < 0.9
    assert share(0.3) < share(0.0) <= 1
