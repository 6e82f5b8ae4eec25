"""The store of answers: found again in every process, safe for several at once, never code."""

from __future__ import annotations

import os
import pickle
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import StoreError
from workbench.models.cache import CACHE_VARIABLE, AnswerCache, cache_directory, question_key

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


def test_a_pickle_is_never_read(cache: AnswerCache) -> None:
    """A cache file from elsewhere can run no code: what is no JSON is no answer."""
    cache.put("key", ANSWER)
    cache.close()

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(cache.directory / "evil"),)

    with sqlite3.connect(cache.directory / "cache.db") as database:
        for mode in (2, 4):  # of diskcache: raw and pickled
            changed = "UPDATE Cache SET mode = ?, value = ?, filename = NULL"
            database.execute(changed, (mode, pickle.dumps(Evil())))
            database.commit()
            with AnswerCache(cache.directory) as again:
                assert again.get("key") is None
    database.close()
    assert not (cache.directory / "evil").exists()


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """With the folder, and what to do about it."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"file.* does not work.*WORKBENCH_CACHE.*cache=False"):
        AnswerCache(tmp_path / "file" / "answers")


def test_a_database_that_is_none_is_told(tmp_path: Path) -> None:
    """Something else lies where the cache should."""
    (tmp_path / "cache.db").write_text("this is no database " * 100)
    with pytest.raises(StoreError, match="does not work"):
        AnswerCache(tmp_path)


def test_one_process_at_a_time_asks_a_question(tmp_path: Path) -> None:
    """Two that start together pay once each; one that is killed holds up nobody."""
    code = (
        "import sys, time\n"
        "from workbench.models.cache import AnswerCache\n"
        "with AnswerCache(sys.argv[1]) as cache:\n"
        "    with cache.locked('question'):\n"
        "        print('held', flush=True)\n"
        "        time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with AnswerCache(tmp_path) as cache:
        with cache.locked("another"):
            pass  # at once
        start = time.monotonic()
        with cache.locked("question", lambda: time.monotonic() > start + 0.3):
            assert time.monotonic() > start + 0.3  # it was given up
        holder.kill()
        holder.wait(10)
        with cache.locked("question"):
            pass
    assert time.monotonic() < start + 10
