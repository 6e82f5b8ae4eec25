"""The store of answers: found again in every process, and safe for several at once."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from asking import run
from embedded import embedded
from hypothesis import given
from hypothesis import strategies as st

from workbench import make_judge
from workbench.errors import StoreError
from workbench.models.cache import CACHE_VARIABLE, AnswerCache, cache_directory, question_key
from workbench.store.traces import Example

ANSWER = {"value": "good", "rationale": "Ça va, 好"}


@pytest.fixture
def cache(tmp_path: Path) -> AnswerCache:
    return AnswerCache(tmp_path / "answers")


def test_an_answer_is_found_again(cache: AnswerCache) -> None:
    """As it was given; what is not there is None."""
    cache.put("key", ANSWER)
    assert (cache.get("key"), cache.get("other"), len(cache)) == (ANSWER, None, 1)
    cache.close()
    with AnswerCache(cache.directory) as again:
        assert again.get("key") == ANSWER


def test_values_of_all_types_survive(cache: AnswerCache) -> None:
    """Numbers, truth values and text come back as they were."""
    for n, value in enumerate([True, 4, 4.5, "4", "", None]):
        cache.put(str(n), {"value": value})
        found = (cache.get(str(n)) or {})["value"]
        assert (found, type(found)) == (value, type(value))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(json_like, min_size=1, max_size=4))
def test_a_key_follows_from_its_parts_alone(parts: list[object]) -> None:
    """The same parts give the same key, whatever the order of keys within them."""

    def turned(value: object) -> object:
        if isinstance(value, dict):
            return {k: turned(v) for k, v in reversed(list(value.items()))}
        return [turned(v) for v in value] if isinstance(value, list) else value

    assert question_key(*parts) == question_key(*map(turned, parts))
    assert question_key(*parts) != question_key(*parts, "more")
    assert len(question_key(*parts)) == 64


def test_keys_tell_parts_apart() -> None:
    """Where one ends and the next begins matters; half a surrogate pair is no obstacle."""
    assert question_key("ab", "c") != question_key("a", "bc")
    assert question_key("1") != question_key(1)
    assert question_key("\ud800") != question_key("\ud801")


def test_the_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By WORKBENCH_CACHE; else it is in the user's cache folder."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "here"))
    assert cache_directory() == tmp_path / "here"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert "judge-workbench" in str(cache_directory())


@pytest.mark.parametrize("damaged", ["{", "[1]", "\x80\x04.", None, b"\x80\x04."])
def test_what_is_no_answer_is_none(cache: AnswerCache, damaged: str | bytes | None) -> None:
    """A cache file from elsewhere, or a damaged one, is asked for answers and for nothing else."""
    cache.put("key", ANSWER)
    cache.close()
    with sqlite3.connect(cache.directory / "answers.db") as database:
        database.execute("UPDATE answers SET answer = ?", (damaged,))
    database.close()
    with cache:
        assert cache.get("key") is None
        cache.put("key", ANSWER)
        assert cache.get("key") == ANSWER


def test_threads_share_a_cache(cache: AnswerCache) -> None:
    """And what is put after it was closed is kept, since a call may end after its run."""

    def work(number: int) -> None:
        for n in range(20):
            cache.put(f"{number}-{n}", ANSWER)
            assert cache.get(f"{number}-{n}") == ANSWER

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    cache.close()
    for thread in threads:
        thread.join()
    with AnswerCache(cache.directory) as again:
        assert len(again) == 160


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """With the folder, and what to do about it."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"file.* does not work.*WORKBENCH_CACHE.*cache=False"):
        AnswerCache(tmp_path / "file" / "answers")


def test_a_folder_without_room_for_locks_is_told(cache: AnswerCache) -> None:
    (cache.directory / "asking.lock").mkdir()
    with pytest.raises(StoreError, match="does not work"), cache.asking("key", lambda: False):
        pass


def test_a_question_within_a_question_waits_for_none(cache: AnswerCache) -> None:
    """As a judge asks that looks up its memory; many of both need no more open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        few = max(int(one.name) for one in Path("/proc/self/fd").iterdir()) + 64
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        for n in range(3000):
            stack.enter_context(cache.asking(f"question {n}", lambda: False))


def test_a_database_that_is_none_is_told(tmp_path: Path) -> None:
    """Something else lies where the cache should."""
    (tmp_path / "answers.db").write_text("this is no database " * 100)
    with pytest.raises(StoreError, match="does not work"):
        AnswerCache(tmp_path)


ASKING = """
import sys
from typing import Literal
import workbench
from asking import run
from workbench.models.cache import AnswerCache
from workbench.store.traces import Example

judge = workbench.make_judge(
    "good", "Is {{ outputs }} good?", model="openai:/m", base_url=sys.argv[1],
    feedback_value_type=Literal["yes", "no"],
)
items = [Example(f"tr-{n}", None, f"answer {n}") for n in range(40)]
print("ready", flush=True)
sys.stdin.readline()
with AnswerCache(sys.argv[2]) as cache:
    found = run(judge, items, cache=cache, concurrency=8)
print(sum(verdict.error is None for verdict in found), sum(verdict.calls for verdict in found))
"""


def asking(url: str, folder: Path) -> subprocess.Popen[str]:
    """A process that asks 40 questions once it is told to."""
    tests = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(tests), str(tests.parent)])
    process = subprocess.Popen(
        [sys.executable, "-c", ASKING, url, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENAI_API_KEY": "sk-loopback-0123456789", "PYTHONPATH": path},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_ask_the_same_at_once_pay_once(tmp_path: Path) -> None:
    """Each question is answered once, whichever of them asks it."""
    with embedded() as server:
        both = [asking(server.url, tmp_path) for _ in range(2)]
        for process in both:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [process.communicate(timeout=60)[0].split() for process in both]
    assert [usable for usable, _ in told] == ["40", "40"]
    assert sum(int(calls) for _, calls in told) == len(server.answered) == 40
    assert server.repeated() == {}


def test_threads_that_ask_the_same_at_once_pay_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an alignment in the background does, and `assess` beside it."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback-0123456789")
    items = [Example(f"tr-{n}", None, f"answer {n}") for n in range(40)]
    with embedded() as server, ThreadPoolExecutor() as pool:
        judge = make_judge("good", "Is {{ outputs }} good?", model="openai:/m", base_url=server.url)
        caches = [AnswerCache(tmp_path) for _ in range(2)]
        told = pool.map(lambda own: run(judge, items, cache=own, concurrency=8), caches)
        calls = sum(verdict.calls for verdicts in told for verdict in verdicts)
    assert calls == len(server.answered) == 40


def test_a_process_that_is_killed_while_it_asks_holds_nobody_up(tmp_path: Path) -> None:
    with embedded() as server:
        server.hold_after(0)
        first, second = (asking(server.url, tmp_path) for _ in range(2))
        assert first.stdin is not None
        first.stdin.write("go\n")
        first.stdin.flush()
        server.wait_until_held()
        first.kill()
        first.communicate()
        server.release(answering=False)
        assert second.communicate("go\n", timeout=60)[0].split()[0] == "40"
