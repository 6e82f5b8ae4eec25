"""`score` on a Dask cluster of worker processes, of which any may be killed."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from asking import OwnJudge
from distributed import Client, LocalCluster, Variable
from loopback import Loopback
from mlflow.entities import Feedback
from test_scoring import answers, judge_at, score

import workbench
from workbench.errors import BudgetError, ModelError, ReplayError
from workbench.judging.cluster import SharedThrottle

Start = Callable[..., Loopback]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    """Two worker processes of two threads each."""
    os.environ["OPENAI_API_KEY"] = "sk-loopback-0123456789"
    options: dict[str, Any] = {"processes": True, "dashboard_address": None, "host": "127.0.0.1"}
    here = str(Path(__file__).parent)
    with LocalCluster(n_workers=2, threads_per_worker=2, **options) as local, Client(local) as one:
        one.run(lambda: sys.path.insert(0, here))
        yield one
    del os.environ["OPENAI_API_KEY"]


def pids(client: Client) -> list[int]:
    return list(client.run(os.getpid).values())


def test_workers_share_partitions_and_slots(
    tmp_path: Path, cluster: Client, loopback: Start
) -> None:
    """Same verdicts as in one process; both work; together they keep to the concurrency."""
    server = loopback(latency=0.05)
    judge, table = judge_at(server.url), answers(200)
    done = score(judge, table, tmp_path / "v", client=cluster, concurrency=8)
    assert server.stats()["most_at_once"] <= 8
    assert server.stats()["connections"] <= 8
    assert (done.rows, done.failed, server.requests) == (200, 0, 200)
    alone = score(judge, table, tmp_path / "alone")
    pd.testing.assert_series_equal(done.table["verdict"], alone.table["verdict"])
    assert score(judge, table, tmp_path / "v", client=cluster).asked == 0


def test_a_cluster_is_not_recorded_without_a_word(tmp_path: Path, cluster: Client) -> None:
    path = tmp_path / "a.jsonl"
    for use in (workbench.recording, workbench.replaying):
        with use(path), pytest.raises(ReplayError, match="Leave out client="):
            score(judge_at("http://127.0.0.1:9"), answers(10), tmp_path / "v", client=cluster)


def test_a_killed_worker_loses_its_partition_alone(
    tmp_path: Path, cluster: Client, loopback: Start
) -> None:
    """Another worker takes it over: all verdicts, none twice, a partition more is paid."""
    server = loopback(latency=0.05)
    victim = pids(cluster)[0]

    def kill() -> None:
        while server.requests < 60:
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    done = score(judge_at(server.url), answers(300), tmp_path / "v", client=cluster, concurrency=8)
    killer.join()
    assert victim not in pids(cluster)
    assert sorted(done.table["row"]) == list(range(300))
    assert done.failed == 0
    assert server.requests <= 310


def test_a_budget_is_kept_to_within_a_partition_a_worker(
    tmp_path: Path, cluster: Client, loopback: Start
) -> None:
    """No partition is handed out any more once the budget is used."""
    server = loopback()
    with pytest.raises(BudgetError, match="does not allow the next 10 rows"):
        score(
            judge_at(server.url), answers(300), tmp_path / "v", client=cluster,
            budget=workbench.Budget(tokens=11_000),
        )  # fmt: skip
    assert 80 <= server.requests <= 120
    assert workbench.Scored.open(tmp_path / "v").rows == server.requests


def test_a_budget_below_a_partition_is_overrun_by_one_a_worker(
    tmp_path: Path, cluster: Client, loopback: Start
) -> None:
    """What a partition takes is known once the first are done, and no third one is handed out."""
    server = loopback(latency=0.1)
    with pytest.raises(BudgetError, match="does not allow the next 10 rows"):
        score(
            judge_at(server.url), answers(100), tmp_path / "v", client=cluster,
            budget=workbench.Budget(tokens=500),
        )  # fmt: skip
    assert server.requests == 20


def test_a_model_that_cannot_answer_ends_the_run_everywhere(
    tmp_path: Path, cluster: Client, loopback: Start
) -> None:
    """The error comes from a worker as it is, and the others stop asking."""
    server = loopback(key="sk-another")
    with pytest.raises(ModelError, match="Incorrect API key"):
        score(judge_at(server.url), answers(300), tmp_path / "v", client=cluster)
    assert server.requests < 30  # several of each worker are under way by then, of 300


def test_rate_limits_on_a_cluster_lose_no_row(
    tmp_path: Path, cluster: Client, loopback: Start
) -> None:
    """A server that takes 30 a second refuses some requests, and all rows get their answers."""
    server = loopback(rate=30, retry_after=0.5)
    done = score(judge_at(server.url), answers(150), tmp_path / "v", client=cluster, concurrency=32)
    assert (done.rows, done.failed) == (150, 0)
    assert server.stats()["statuses"]["429"]


def test_what_one_worker_meets_the_others_hear(cluster: Client) -> None:
    """A limit halves the slots of each worker, once for all calls that were under way."""
    shared = Variable("test-news", client=cluster)
    shared.set({"slowed": 0.0, "resume": 0.0, "over": False})
    over = threading.Event()
    one, two = (SharedThrottle(8, shared, over.set) for _ in range(2))
    asked_at = time.monotonic()
    one.slow_down(0.0, asked_at)
    two.slow_down(0.0, asked_at)  # was under way with it
    assert (one.limit, two.limit) == (4, 4)
    two.slow_down(0.0, time.monotonic())
    with one.slot():
        pass
    time.sleep(0.3)
    with one.slot():
        pass
    assert (one.limit, two.limit) == (2, 2)
    shared.set({"slowed": 0.0, "resume": 0.0, "over": True})
    time.sleep(0.3)
    with one.slot():
        pass
    assert over.is_set()
    shared.delete()


class Collecting(OwnJudge):
    """Says whether Python's cyclic garbage collector may run while it judges."""

    def __call__(self, *, outputs: Any = None) -> Feedback:
        return Feedback(name=self.name, value="yes" if gc.isenabled() else "no")


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the collector does no harm there")
def test_the_collector_does_not_run_while_a_partition_is_profiled(
    tmp_path: Path, cluster: Client
) -> None:
    """Within Dask's profiler it would deadlock the worker; afterwards it runs again."""
    judge = Collecting(name="quality")
    done = score(judge, answers(20), tmp_path / "v", client=cluster)
    assert list(done.table["verdict"]) == ["no"] * 20
    assert all(cluster.run(gc.isenabled).values())


PROGRAM = """
import sys
from pathlib import Path
from distributed import Client
from test_scoring import answers, judge_at, score
with Client(sys.argv[1]) as client:
    score(judge_at(sys.argv[2]), answers(300), Path(sys.argv[3]), client=client, concurrency=8)
"""


def test_a_killed_driver_is_resumed(tmp_path: Path, cluster: Client, loopback: Start) -> None:
    """What its workers had under way is paid again, a partition each, and nothing else."""
    server = loopback(latency=0.05)
    arguments = [cluster.scheduler.address, server.url, str(tmp_path / "v")]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    while server.requests < 100:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait(10)
    while any(cluster.run(lambda dask_worker: dask_worker.state.executing_count).values()):
        time.sleep(0.05)
    there = workbench.Scored.open(tmp_path / "v")
    assert 0 < there.rows < 300
    assert server.requests <= there.rows + 2 * 10
    done = score(judge_at(server.url), answers(300), tmp_path / "v", client=cluster)
    assert sorted(done.table["row"]) == list(range(300))
    assert server.requests <= 300 + 2 * 10
