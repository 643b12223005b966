"""Items made ahead: the same ones, at most so many, and no thread left."""

import threading

import pytest

from mpunet.io.read_ahead import read_ahead


def test_same_items_in_order():
    for size in (1, 3, 200):
        assert list(read_ahead((i * i for i in range(50)), size)) == [i * i for i in range(50)]
    assert list(read_ahead([None, 0, False, []], 2)) == [
        None,
        0,
        False,
        [],
    ]  # nothing that could be taken for the end
    assert list(read_ahead([], 2)) == []


@pytest.mark.parametrize("size", [1, 2, 5])
def test_made_before_they_are_asked_for_but_not_more(size):
    made = []
    enough = threading.Event()

    def items():
        for i in range(100):
            made.append(i)
            if len(made) == 1 + size:
                enough.set()
            yield i

    iterator = read_ahead(items(), size)
    assert made == []
    assert next(iterator) == 0
    assert enough.wait(5)
    iterator.close()
    assert made == list(range(1 + size))


def test_errors_come_in_their_turn():
    def items():
        yield 1
        yield 2
        raise KeyError("third")

    iterator = read_ahead(items(), 3)
    assert [next(iterator), next(iterator)] == [1, 2]
    with pytest.raises(KeyError, match="third"):
        next(iterator)
    assert list(iterator) == []


@pytest.mark.parametrize("taken", [1, 3, 4])
def test_thread_and_source_are_gone_when_the_consumer_stops(taken):
    threads = []
    closed = threading.Event()

    def items():
        threads.append(threading.current_thread())
        try:
            yield from range(4)
        finally:
            closed.set()

    iterator = read_ahead(items(), 2)
    for _ in range(taken):
        next(iterator)
    assert threads[0] is not threading.current_thread()
    assert threads[0].is_alive()
    iterator.close()
    assert not threads[0].is_alive()
    del iterator
    assert closed.is_set()


def test_refused():
    with pytest.raises(ValueError, match="at least 1 item ahead, got 0"):
        read_ahead([1], 0)
