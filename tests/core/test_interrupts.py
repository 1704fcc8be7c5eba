"""Ctrl-C waits inside a block, and only there."""

import os
import signal
import threading

import pytest

from tgdd_plugin.core.interrupts import HeldInterrupts


@pytest.fixture(autouse=True)
def pythons_own_handler():
    """Composer, once imported, has Ctrl-C end the process; so do tests of the command line, or not, by their order."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_it_is_raised_at_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), HeldInterrupts():
        press()
        done.append("written")
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_ends_at_once_what_it_is_let_through_to():
    done = []
    with pytest.raises(KeyboardInterrupt), HeldInterrupts() as held:
        try:
            with held.let_through():
                press()
                done.append("not reached")
        except KeyboardInterrupt:
            press()  # a second one waits
            done.append("given back")
            raise
    assert done == ["given back"]


def test_one_that_was_held_is_raised_before_anything_is_begun():
    begun = []
    with pytest.raises(KeyboardInterrupt), HeldInterrupts() as held:
        press()
        with held.let_through():
            begun.append(True)
    assert not begun


def test_nothing_is_raised_where_it_is_ignored_or_was_not_pressed():
    with HeldInterrupts() as held, held.let_through():
        pass
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with HeldInterrupts() as held, held.let_through():
            press()
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_may_use_it():
    done = []

    def work():
        with HeldInterrupts() as held, held.let_through():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
