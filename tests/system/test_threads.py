"""Threads where there is hardly memory for them."""

import sys
import threading

import pytest

from numbers_uring.errors import StartError
from numbers_uring.system import threads
from numbers_uring.system.threads import start_thread, wait_for_beginning
from support.waiting import DEADLINE_S


def test_a_thread_that_dies_without_a_word_is_not_waited_for() -> None:
    for _ in range(20):
        with pytest.raises(MemoryError, match="the worker could not begin"):
            wait_for_beginning(start_thread(lambda: None, "worker"), threading.Event())


def test_a_thread_that_has_begun_is_returned_to_although_it_has_ended() -> None:
    for _ in range(20):
        begun = threading.Event()
        wait_for_beginning(start_thread(begun.set, "worker"), begun)


def test_a_thread_is_not_started_where_it_could_hardly_say_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threads, "THREAD_START_BYTES", 1 << 60)
        with pytest.raises(StartError, match="cannot start a thread for the worker: too little"):
            start_thread(ran.set, "worker")
    assert not ran.is_set()
    start_thread(ran.set, "worker").join(DEADLINE_S)
    assert ran.is_set()


def test_a_free_threaded_python_needs_memory_for_a_threads_heap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "THREAD_HEAP_BYTES", 1 << 60)
    monkeypatch.setattr(sys, "abiflags", "t")
    with pytest.raises(StartError, match="cannot start a thread for the worker: too little"):
        start_thread(lambda: None, "worker")
    monkeypatch.setattr(sys, "abiflags", "")
    start_thread(lambda: None, "worker").join(DEADLINE_S)
