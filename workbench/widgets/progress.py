"""Alignment in the background, with its live view: where it stands, what it learned, Cancel."""

from __future__ import annotations

import threading
from dataclasses import asdict
from functools import cached_property
from typing import Any, Final

import traitlets
from mlflow.genai.judges import Judge
from mlflow.genai.judges.base import AlignmentOptimizer

from workbench.alignment.align import align
from workbench.alignment.background import RunningAlignment
from workbench.errors import one_of
from workbench.formatting import counted, html_table, html_text
from workbench.widgets.panels import View, read_files

SECONDS_BETWEEN: Final = 0.3
"""At least, between two updates of the view."""

_DEV_SCORE: Final = (
    "On the items that candidates are selected on, some of which were learned from: no estimate of "
    "how the judge will do. That comes from the held-out test."
)


def align_in_background(
    judge: Judge,
    pairs_or_traces: Any = None,
    optimizer: AlignmentOptimizer | None = None,
    **options: Any,
) -> BackgroundAlignment:
    """Run `workbench.align` in a thread and return once labels and verdicts are read.

    A notebook shows what is returned as a live view. The run is logged where this call was made,
    whatever experiment is set afterwards, and a recording or replay that is active now is so in the
    thread. The same call, here or with `workbench.align`, resumes what was cancelled or killed, and
    pays for no answer twice.

    Parameters
    ----------
    judge, pairs_or_traces, optimizer
        As `workbench.align` takes them. `BackgroundAlignment.cancel` ends it; ``SIMBA.stop`` does
        nothing here.
    options
        All other arguments of `workbench.align`; ``progress`` is False unless given. Others are an
        `ArgumentError`. What `align` raises is raised by `BackgroundAlignment.result`.

    Examples
    --------
    >>> running = workbench.align_in_background(judge, pairs)  # doctest: +SKIP
    >>> running.state.best_score, running.cancel(), running.result()  # doctest: +SKIP
    """
    allowed = sorted({*(align.__kwdefaults__ or ())} - {"watch"})
    for name in options:
        one_of("an option of align_in_background", name, allowed)
    return BackgroundAlignment(judge, pairs_or_traces, optimizer, options)


class BackgroundAlignment(RunningAlignment):
    """An alignment in a thread; made by `align_in_background`. In a notebook it shows a live view.

    ``judge`` is the one that is aligned, which is not changed, and ``preflight`` the table of
    checks that `align` makes; None until then.
    """

    def learned(self) -> list[tuple[str, bool]]:
        """Return the lines of the best instructions, each with whether it was learned."""
        before = str(getattr(self.judge, "instructions", "")).splitlines()
        after = self.state.instructions.splitlines()
        return [(line, bool(line.strip()) and line not in before) for line in after]

    @cached_property
    def view(self) -> AlignmentView:
        """The live view, one for all cells that show this."""
        return AlignmentView(self)

    def _repr_mimebundle_(self, **given: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = self.view._repr_mimebundle_(**given)
        return bundle


class AlignmentView(View):
    """Shows a `BackgroundAlignment` and lets it be cancelled; without a kernel a static table.

    It reads the state a few times a second while the alignment goes on, and holds none itself.
    """

    _esm = read_files("js", "content", "progress")
    _css = read_files("css", "label", "progress")

    state = traitlets.Dict().tag(sync=True)
    parts: Any = traitlets.List().tag(sync=True)
    """Figures, the best instructions and the preflight table as HTML, with all texts escaped."""

    def __init__(self, alignment: BackgroundAlignment) -> None:
        self.alignment = alignment
        super().__init__()
        self.update()
        self.on_msg(self._on_browser)
        threading.Thread(target=self._follow, name="alignment view", daemon=True).start()

    def _follow(self) -> None:
        while not self.alignment.wait(SECONDS_BETWEEN):
            self.update()
        self.update()

    def update(self) -> None:
        state = self.alignment.state
        with self.hold_sync():
            self.parts = _parts(self.alignment)
            # Tenths would change with each look, and nobody reads them.
            more = {"title": self.alignment.judge.name, "seconds": int(state.seconds)}
            self.state = {**asdict(state), **more, "ended": state.ended}

    def _on_browser(self, _: object, message: Any, __: object) -> None:
        if isinstance(message, dict) and message.get("type") == "cancel":
            self.alignment.cancel()
            self.update()

    def __repr__(self) -> str:
        return repr(self.alignment)

    def _repr_html_(self) -> str:
        return f"<p>{html_text(repr(self)[1:-1])}</p>{''.join(_parts(self.alignment))}"


def _parts(alignment: BackgroundAlignment) -> list[str]:
    state = alignment.state
    figures = []
    if state.step is not None:
        most = state.step if state.ended else state.max_steps
        text = f"{state.step}{'' if state.ended else f' of at most {most}'}"
        figures.append(_figure("Steps", text, state.step, most))
    if state.calls is not None:
        figures.append(_figure("Spent", state.spent, state.share_spent))
    if state.best_score is not None:
        figures.append(_figure("Best dev score", f"{state.best_score:.3f}", title=_DEV_SCORE))
    if state.failures is not None:
        figures.append(_figure("Failed calls", f"{state.failures:,}"))
    if state.stage == "done":
        figures.append(alignment.result()._repr_html_())
    elif state.message:
        figures.append(f'<p class="wbp-message">{html_text(state.message)}</p>')
    before = ""
    if alignment.preflight is not None:
        table = html_table(alignment.preflight, index=False)
        before = f"<details><summary>What was said before it began</summary>{table}</details>"
    return ["".join(figures), _instructions(alignment), before]


def _figure(
    name: str, text: str, now: float | None = None, most: float | None = 1, title: str = ""
) -> str:
    """A figure, with a bar where it has an end to go to."""
    bar = "" if now is None else f'<progress value="{now}" max="{most}"></progress>'
    label = f'<span class="wbp-label">{name}</span>'
    return f'<div class="wbp-row" title="{title}">{label}{bar}<span>{html_text(text)}</span></div>'


def _instructions(alignment: BackgroundAlignment) -> str:
    """The best instructions, with the lines marked that were learned."""
    shown = [("ins" if new else "div", line) for line, new in alignment.learned()]
    lines = [
        f'<{tag} class="wbp-line" dir="auto">{html_text(line) or "&nbsp;"}</{tag}>'
        for tag, line in shown
    ]
    learned = sum(tag == "ins" for tag, _ in shown)
    said = f"{counted(learned, 'learned line')}, marked +" if learned else "none learned"
    return (
        f'<div class="wbp-row"><span>Best instructions</span><span>{said}</span></div>'
        '<div class="wbp-rules" style="white-space: pre-wrap" tabindex="0" role="region" '
        f'aria-label="Best instructions">{"".join(lines)}</div>'
    )
