"""README keeps its word: its commands run, its code runs, its picture and its links are true."""

from __future__ import annotations

import csv
import http.server
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import AssessmentSource

from workbench.models.offline.provider import answer

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def command(text: str) -> str:
    """The one shell command of README that holds the text."""
    lines = [line for block in fenced("sh") for line in block.splitlines()]
    (found,) = [line for line in lines if text in line]
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new user's folder: no model, store, key or cache is chosen, nor anything judged."""
    for name in ("WORKBENCH_MODEL", "MLFLOW_TRACKING_URI", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def shell(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
    return found


def write_answers(path: Path, rows: int = 60) -> None:
    """A file with the columns that README's command names: long answers are the right ones."""
    drawn = random.Random(0)
    labels = ["annotator1", "annotator2", "annotator3"]
    columns = ["question_id", "question", "answer", "gold_answers", *labels]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, "gpt4", "gpt4_rationale"])
        writer.writeheader()
        for row in range(rows):
            right = row % 2 == 0
            gold = f"the river number {row // 2}"
            said = "Yes" if right else "No"
            votes = {who: said if drawn.random() < 0.9 else "No" for who in labels}
            writer.writerow(
                {
                    "question_id": row // 2,
                    "question": f"Which river runs through town {row // 2}?",
                    "answer": gold if right else "nobody can tell",
                    "gold_answers": json.dumps([gold]),
                    **votes,
                    "gpt4": said if row % 5 else "No",
                    "gpt4_rationale": "as recorded",
                }
            )


# -- commands -------------------------------------------------------------------------------


def test_every_command_is_known_to_these_tests() -> None:
    lines = [line for block in fenced("sh") for line in block.splitlines()]
    tested = ["openai:/gpt-4.1-mini", "base_url", "out-own", "out-later", "workbench params"]
    assert len(lines) == len(tested)
    for text in tested:
        assert command(text) in lines


def test_make_targets_exist_and_stand_at_the_top() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = set(re.findall(r"\bmake (\w+)", README.replace("GNU make.", "")))
    assert {"run", "test", "lab"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    assert README.index("make run") < README.index("make test") < 600


def test_parameters_are_listed(folder: Path) -> None:
    ran = shell(command("workbench params"), folder)
    assert ran.returncode == 0
    listed = set(re.findall(r"^(\w+) = ", ran.stdout, flags=re.MULTILINE))
    assert set(re.findall(r"-p (\w+) ", README)) <= listed
    table = README.partition("| parameter | holds |")[2].partition("\n\n")[0]
    first_column = " ".join(line.split("|")[1] for line in table.splitlines() if "`" in line)
    explained = set(re.findall(r"`(\w+)`", first_column))
    assert {"inputs", "annotators", "verdicts"} <= explained <= listed


@pytest.fixture
def served() -> Iterator[str]:
    """The root of a server of OpenAI's kind on loopback, behind which the embedded model is."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"role": "assistant", "content": answer(body["messages"])}
            told = {
                "id": "x",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
            }
            data = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_another_model_is_named_on_the_command_line(
    folder: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_BASE", served)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-readme-123456")
    ran = shell(command("openai:/gpt-4.1-mini"), folder)
    assert ran.returncode == 0, ran.stderr
    assert summary(folder / "out-openai")["model"] == "openai:/gpt-4.1-mini"
    assert "no model was named" not in ran.stderr


def test_a_local_server_is_named_on_the_command_line(folder: Path, served: str) -> None:
    given = command("base_url")
    assert "http://localhost:8000/v1" in given
    ran = shell(given.replace("http://localhost:8000/v1", served), folder)
    assert ran.returncode == 0, ran.stderr
    assert summary(folder / "out-local")["status"] in ("improved", "unchanged", "rejected")


def test_a_users_own_file_is_aligned_on(folder: Path) -> None:
    write_answers(folder / "answers.csv")
    ran = shell(command("out-own"), folder)
    assert ran.returncode == 0, ran.stderr
    said = summary(folder / "out-own")
    assert said["judge"]["name"] == "correctness"
    assert said["recorded"]["gpt4"]["n"] == 60
    assert {path.name for path in folder.iterdir()} == {"answers.csv", "cache", "out-own"}
    for name in ("report.html", "4_align.ipynb", "mlflow.db", "artifacts", "summary.json"):
        assert (folder / "out-own" / name).exists()
        assert f"`{name}`" in README


def test_the_same_command_on_real_labels_gives_the_published_figures(
    folder: Path, openqa: Path
) -> None:
    shutil.copy(openqa, folder / "answers.csv")
    ran = shell(command("out-own"), folder)
    assert ran.returncode == 0, ran.stderr
    said = summary(folder / "out-own")
    gpt4 = said["recorded"]["gpt4"]
    assert gpt4["n"] == 1487
    assert round(gpt4["figures"]["accuracy"]["value"], 4) == 0.8480
    assert round(gpt4["figures"]["kappa"]["value"], 3) == 0.695
    assert gpt4["values"] == ["No", "Yes"]
    assert gpt4["confusion"] == [[582, 89], [137, 679]]
    # Nor does what the annotators think of each other change on the way.
    (people,) = [
        row
        for row in said["annotators"]["pairwise"]
        if (row["annotator_a"], row["annotator_b"]) == ("annotator1", "annotator2")
    ]
    assert (people["n"], round(people["kappa"], 3)) == (1483, 0.735)
    # What is held out is whole questions, about 40 % of the pairs.
    assert 500 < said["comparison"]["n"] < 700
    assert said["status"] in ("improved", "unchanged", "rejected")


def test_labels_may_come_after_the_first_run(folder: Path) -> None:
    write_answers(folder / "answers.csv")
    first = shell(command("out-later"), folder)
    assert first.returncode == 1
    assert "NoLabelsError" in first.stderr
    assert "Traceback" not in first.stderr
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/out-later/mlflow.db")
    mlflow.set_experiment("judge-alignment")
    traces = mlflow.search_traces(return_type="list")
    for trace in traces:
        rating = "No" if "nobody" in trace.data.spans[0].outputs else "Yes"
        source = AssessmentSource(source_type="HUMAN", source_id="dora")
        mlflow.log_feedback(
            trace_id=trace.info.trace_id, name="helpfulness", value=rating, source=source
        )
    mlflow.set_tracking_uri(before)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # where MLflow has put it
    second = shell(command("out-later"), folder)
    assert second.returncode == 0, second.stderr
    assert summary(folder / "out-later")["comparison"]["n"] > 15


# -- code, picture, links -------------------------------------------------------------------


def test_the_code_runs_as_it_stands(folder: Path) -> None:
    (folder / "data").symlink_to(ROOT / "data")
    source = "\n".join(fenced("python"))
    checks = "assert judge.instructions == same.instructions\nassert aligned.name == judge.name\n"
    ran = subprocess.run(
        [sys.executable, "-W", "error:::workbench", "-c", source + checks],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Agreement" in ran.stdout
    assert (folder / "output" / "report.html").is_file()
    assert not (folder / "mlruns").exists()


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert not target.startswith("http"), target
        assert (ROOT / target).is_file(), target
    for picture in (ROOT / "docs" / "img").glob("*.png"):
        assert picture.stat().st_size < 80_000


def test_environment_variables_are_those_that_the_library_reads() -> None:
    package = "\n".join(path.read_text("utf-8") for path in (ROOT / "workbench").rglob("*.py"))
    named = set(re.findall(r"\bWORKBENCH_[A-Z_]+", README))
    assert len(named) >= 6
    for name in named:
        assert name in package, name


def test_it_is_short_and_names_no_place_to_install_from() -> None:
    assert len(README.splitlines()) <= 245
    assert "http" not in README.replace("http://localhost:8000/v1", "")
