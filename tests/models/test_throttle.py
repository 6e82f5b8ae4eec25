"""Slots for calls: as many as the provider bears."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from workbench.models.runner import Throttle


def in_threads(count: int, work: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def ended(threads: list[threading.Thread], seconds: float) -> bool:
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def test_no_more_slots_than_the_limit() -> None:
    """Many threads, few slots: never more at once, and all get their turn."""
    throttle, lock = Throttle(3), threading.Lock()
    active, most, served = 0, 0, 0

    def work() -> None:
        nonlocal active, most, served
        for _ in range(20):
            with throttle.slot():
                with lock:
                    active += 1
                    most = max(most, active)
                time.sleep(0.001)
                with lock:
                    active -= 1
                    served += 1

    assert ended(in_threads(12, work), 20)
    assert (most, served) == (3, 240)


def test_calls_under_way_together_halve_the_slots_once() -> None:
    """64 calls that meet one limit are one sign, not 64."""
    throttle = Throttle(64)
    asked = time.monotonic()
    for _ in range(64):
        throttle.slow_down(0.0, asked)
    assert throttle.limit == 32
    throttle.slow_down(0.0, time.monotonic())
    assert throttle.limit == 16


def test_there_is_always_one_slot() -> None:
    """However often a limit is met."""
    throttle = Throttle(4)
    for _ in range(9):
        throttle.slow_down(0.0, time.monotonic())
    assert throttle.limit == 1
    with throttle.slot():
        pass


def test_slots_come_back_one_by_one_and_no_further() -> None:
    """As many successes as there are slots bring one more."""
    throttle = Throttle(8)
    throttle.slow_down(0.0, time.monotonic())
    for _ in range(5):
        throttle.speed_up()
    assert throttle.limit == 5
    for _ in range(500):
        throttle.speed_up()
    assert throttle.limit == 8


def test_all_wait_together() -> None:
    """A pause asked for by one holds for all."""
    throttle = Throttle(4)
    throttle.slow_down(0.4, time.monotonic())
    start, times = time.monotonic(), []

    def work() -> None:
        with throttle.slot() as at:
            times.append(at - start)

    assert ended(in_threads(6, work), 5)
    assert len(times) == 6
    assert min(times) >= 0.4


def test_release_lets_everyone_go() -> None:
    """Nobody is left waiting for a slot or for a pause of ten minutes."""
    throttle = Throttle(1)
    with throttle.slot():
        threads = in_threads(5, lambda: throttle.slot().__enter__())
        time.sleep(0.05)
        throttle.slow_down(600, time.monotonic())
        threads += in_threads(5, lambda: throttle.slot().__enter__())
        time.sleep(0.05)
        throttle.release()
        assert ended(threads, 5)


def test_no_thread_is_forgotten_while_limits_come_and_go() -> None:
    """Random slow-downs and speed-ups under load end with all calls made."""
    throttle = Throttle(16)

    def work() -> None:
        for turn in range(30):
            with throttle.slot() as at:
                time.sleep(0.0005)
            if turn % 7 == 3:
                throttle.slow_down(0.002, at)
            else:
                throttle.speed_up()

    assert ended(in_threads(24, work), 30)
