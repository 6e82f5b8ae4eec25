"""README and guide keep their word: commands and code run, pictures and links are true."""

from __future__ import annotations

import csv
import http.server
import json
import random
import re
import shlex
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import nbformat
import pytest
from click.testing import CliRunner, Result
from mlflow.entities import AssessmentSource
from running import MainRun, run_here, shell, summary

import workbench
from workbench.cli import main
from workbench.errors import NoLabelsError, ReplayError
from workbench.models.offline.provider import answer

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
GUIDE = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [README, *(path.read_text("utf-8") for path in GUIDE)]
ALL = "\n".join(TEXTS)


def fenced(language: str, text: str = ALL) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in fenced("sh") for line in block.splitlines()]


def command(text: str) -> str:
    """The one shell command that holds the text."""
    (found,) = [line for line in COMMANDS if text in line]
    return found


def invoked(line: str) -> Result:
    """Run a command of ``workbench``, with the variables before it, in this process."""
    *variables, words = re.split(r"(?<=\S) (?=workbench )", line)
    given = dict(one.split("=", 1) for text in variables for one in shlex.split(text))
    ran = CliRunner().invoke(main, shlex.split(words)[1:], env=given)
    if ran.exception and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran


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
    tested = [
        "run 4_align", "workbench sweep", "openai:/gpt-4.1 ", "base_url", "out-own", "out-later",
        "workbench params", "--record", "--replay", "workbench check", "workbench score",
    ]  # fmt: skip
    assert sorted(map(command, tested)) == sorted(COMMANDS)


def test_make_targets_exist_and_stand_at_the_top() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = set(re.findall(r"\bmake ([\w-]+)", README.replace("GNU make.", "")))
    assert {"run", "test", "test-slow", "lab"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    assert README.index("make run") < README.index("make test") < 600


def test_parameters_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    ran = invoked(command("workbench params"))
    assert ran.exit_code == 0
    listed = set(re.findall(r"^(\w+) = ", ran.stdout, flags=re.MULTILINE))
    assert set(re.findall(r"-p (\w+) ", ALL)) <= listed
    table = ALL.partition("| parameter | holds |")[2].partition("\n\n")[0]
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


@pytest.fixture
def fewer(folder: Path) -> str:
    """Parameters to add to a command: the first rows of the sample are enough."""
    lines = (ROOT / "data" / "shop_answers.csv").read_text("utf-8").splitlines(keepends=True)
    (folder / "fewer.csv").write_text("".join(lines[:61]), "utf-8")
    annotators = ", ".join(f"{who}: rating_{who}" for who in ("ana", "ben", "chloe"))
    columns = f"-p inputs query -p outputs answer -p annotators '{annotators}' -p groups query_id"
    return f" -p data fewer.csv {columns} -p max_steps 1"


def test_a_model_is_named_on_the_command_line(
    folder: Path, fewer: str, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_BASE", served)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-readme-123456")
    for text in ("run 4_align", "openai:/gpt-4.1 "):
        said = summary(run_here(command(text) + fewer))
        assert said["model"] == "openai:/gpt-4.1-mini"


def test_a_local_server_is_named_on_the_command_line(
    folder: Path, fewer: str, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The placeholder for a key is a word that texts may hold."""
    name, _, line = command("base_url").partition(" ")
    assert "http://localhost:8000/v1" in line
    monkeypatch.setenv(*name.split("=", 1))
    said = summary(run_here(line.replace("http://localhost:8000/v1", served) + fewer))
    assert said["status"] in ("improved", "unchanged", "rejected")


def test_a_sweep_is_run(folder: Path) -> None:
    """Of its points the smallest one."""
    line = command("workbench sweep")
    for many, few in (("0..4", "0"), ("10,20,50", "10"), ("--jobs 4", "--jobs 1")):
        assert many in line
        line = line.replace(many, few)
    ran = invoked(f"{line} -p max_steps=1")
    assert ran.exit_code == 0, ran.output
    assert "complete" in ran.stdout
    assert "after_kappa" not in ran.stdout  # which is in sweep.csv, with all that is recorded


def test_a_users_own_file_is_aligned_on(folder: Path) -> None:
    write_answers(folder / "answers.csv")
    said = summary(run_here(command("out-own")))
    assert said["judge"]["name"] == "correctness"
    assert said["recorded"]["gpt4"]["n"] == 60
    assert {path.name for path in folder.iterdir()} == {"answers.csv", "cache", "out-own"}


def test_a_judge_is_checked_after_the_run(main_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's command, in the folder above the output of the main job."""
    line = command("workbench check").replace("output/mlflow.db", f"{main_copy.name}/mlflow.db")
    monkeypatch.chdir(main_copy.parent)
    named = summary(main_copy)
    assert named["judge"]["name"] in line
    line = line.replace("--experiment shop", f"--experiment '{named['experiment']}'")
    ran = invoked(line)
    assert ran.exit_code in (0, 1), ran.output
    assert "labelled items" in ran.stdout
    assert "kappa" in ran.stdout


def test_a_judge_scores_a_table_after_the_run(
    main_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guide's command, likewise."""
    monkeypatch.chdir(main_copy.parent)
    line = command("workbench score").replace("output/mlflow.db", f"{main_copy.name}/mlflow.db")
    (main_copy.parent / "data").symlink_to(ROOT / "data")
    named = summary(main_copy)["experiment"]
    assert "--experiment shop" in line
    ran = invoked(line.replace("--experiment shop", f"--experiment '{named}'"))
    assert ran.exit_code == 0, ran.output
    with (ROOT / "data" / "shop_answers.csv").open(encoding="utf-8", newline="") as file:
        rows = len(list(csv.DictReader(file)))
    assert f"{rows} rows in" in ran.stdout
    assert workbench.Scored.open(main_copy.parent / "verdicts-of-command").failed == 0


def test_a_run_leaves_the_files_that_the_guide_lists(main_run: MainRun) -> None:
    for name in ("report.html", "4_align.ipynb", "mlflow.db", "artifacts", "summary.json"):
        assert (main_run.output / name).exists()
        assert f"`{name}`" in ALL


@pytest.mark.slow
def test_the_same_command_on_real_labels_gives_the_published_figures(
    folder: Path, openqa: Path
) -> None:
    shutil.copy(openqa, folder / "answers.csv")
    said = summary(run_here(command("out-own")))
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
    with pytest.raises(NoLabelsError):
        run_here(command("out-later"))
    for trace in mlflow.search_traces(return_type="list"):
        rating = "No" if "nobody" in trace.data.spans[0].outputs else "Yes"
        source = AssessmentSource(source_type="HUMAN", source_id="dora")
        mlflow.log_feedback(
            trace_id=trace.info.trace_id, name="helpfulness", value=rating, source=source
        )
    assert summary(run_here(command("out-later")))["comparison"]["n"] > 15


# -- recordings -----------------------------------------------------------------------------


def shown(output: Path) -> list[str]:
    """Outputs of the notebook and the report, without what differs from run to run."""
    cells = nbformat.read(output / "4_align.ipynb", as_version=4).cells
    texts = [json.dumps(out) for cell in cells for out in cell.get("outputs", [])]
    texts.append((output / "report.html").read_text("utf-8"))
    for pattern, instead in (
        (re.escape(str(output)), "FOLDER"),
        (r"\b[0-9a-f]{32}(?=</dd>)", "RUN"),
        (r"[0-9.]+ s\b", "SECONDS"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "DATE"),
        # A bar is drawn as time allows: its last line can come after the cell has ended.
        (r"(\\r|\\n)*[^\\\"]{0,80}?\d+%\|[^|]*\| \d+/\d+ \[\d\d:\d\d<[^]]*\](\\n)*", ""),
        (r"workbench: no model was named[^\"]*", ""),
    ):
        texts = [re.sub(pattern, instead, text) for text in texts]
    return texts


def test_a_replay_gives_the_recorded_run_byte_for_byte(main_run: MainRun, folder: Path) -> None:
    """`main_run` is the command that records; every figure, table and picture comes again."""
    assert command("--record").endswith("--record answers.jsonl.gz")
    shutil.copy(main_run.answers, folder)
    ran = shell(command("--replay"), folder)
    assert ran.returncode == 0, ran.stderr
    assert shown(folder / "out-replay") == shown(main_run.output)
    places = {"report": "", "tracking_uri": ""}
    assert summary(folder / "out-replay") | places == main_run.summary | places


def test_what_a_recording_lacks_is_an_error(main_run: MainRun, folder: Path) -> None:
    import gzip

    lines = gzip.decompress(main_run.answers.read_bytes()).splitlines(keepends=True)
    short = folder / "short.jsonl"
    short.write_bytes(b"".join([*lines[:5], *lines[6:]]))
    with workbench.replaying(short), pytest.raises(ReplayError, match="has no answer in"):
        run_here("workbench run")


# -- code, pictures, links ------------------------------------------------------------------


def test_the_code_runs_as_it_stands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """README's example, and the guide's that continues it."""
    (folder / "data").symlink_to(ROOT / "data")
    score = {"name": "correctness", "value": 1, "source": "ANNOTATION", "authorUserId": "ana"}
    exported = [{"id": "t", "input": "Two?", "output": "2", "scores": [score]}]
    (folder / "export.json").write_text(json.dumps(exported))
    names: dict[str, Any] = {}
    for source in fenced("python"):
        exec(compile(source, "README.md", "exec"), names)
    assert names["judge"].instructions == names["same"].instructions
    assert names["judge"].instructions == names["alignment"].judge.instructions
    assert "Agreement" in capsys.readouterr().out
    assert (folder / "output" / "report.html").is_file()
    assert not (folder / "mlruns").exists()


@pytest.mark.parametrize("path", [ROOT / "README.md", *GUIDE], ids=lambda path: path.name)
def test_links_and_pictures_exist(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
        assert not target.startswith("http"), target
        assert (path.parent / target).is_file(), target


def test_pictures_are_small_and_every_page_of_the_guide_is_linked() -> None:
    for picture in (ROOT / "docs" / "img").glob("*.png"):
        assert picture.stat().st_size < 80_000
    for page in GUIDE:
        assert f"(docs/{page.name})" in README


def test_names_of_variables_and_errors_are_those_of_the_library() -> None:
    package = "\n".join(path.read_text("utf-8") for path in (ROOT / "workbench").rglob("*.py"))
    named = set(re.findall(r"\bWORKBENCH_[A-Z_]+", ALL))
    assert len(named) >= 6
    for name in named | set(re.findall(r"`(?:LITELLM|MLFLOW)_[A-Z_]+", ALL)):
        assert name.strip("`") in package, name
    for name in re.findall(r"\b[A-Z]\w+Error\b", ALL):
        assert f"class {name}(" in package, name


def test_readme_is_short_and_no_text_names_a_place_to_install_from() -> None:
    assert len(README.splitlines()) <= 120
    assert "http" not in ALL.replace("http://localhost:8000/v1", "")
