"""Workers: all that is submitted is done, what hangs is left."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from workbench.models.runner import Workers


def test_all_that_is_submitted_is_done_by_so_many_threads() -> None:
    names: set[str] = set()

    def square(number: int) -> int:
        names.add(threading.current_thread().name)
        time.sleep(0.005)
        return number * number

    workers = Workers[int](3, "square")
    futures = [workers.submit(square, n) for n in range(20)]
    assert [future.result(10) for future in futures] == [n * n for n in range(20)]
    workers.stop()
    assert names == {"square_0", "square_1", "square_2"}
    assert not any(t.name.startswith("square") for t in threading.enumerate())


def test_an_error_is_that_of_its_future() -> None:
    workers = Workers[float](1, "divide")
    failed, done = workers.submit(lambda: 1 / 0), workers.submit(lambda: 1 / 2)
    with pytest.raises(ZeroDivisionError):
        failed.result(10)
    assert done.result(10) == 0.5
    workers.stop()


def test_stopping_waits_for_what_has_begun_and_cancels_the_rest() -> None:
    begun = threading.Event()

    def work() -> int:
        begun.set()
        time.sleep(0.2)
        return 1

    workers = Workers[int](1, "work")
    first, second = workers.submit(work), workers.submit(work)
    begun.wait(10)
    workers.stop()
    assert (first.result(0), second.cancelled()) == (1, True)


def test_what_hangs_is_waited_for_so_long_and_holds_up_no_process() -> None:
    code = (
        "import time\n"
        "from workbench.models.runner import Workers\n"
        "workers = Workers(2, 'hung')\n"
        "future = workers.submit(time.sleep, 100)\n"
        "start = time.monotonic()\n"
        "workers.stop(0.3)\n"
        "print(0.2 < time.monotonic() - start < 5, future.done())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout.split(), done.stderr) == (["True", "False"], "")
