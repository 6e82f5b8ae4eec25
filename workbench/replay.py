"""Judge questions and the file of answers: noted when a run is recorded, else taken from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from workbench.budget import Budget
from workbench.judge import Verdict, scrub
from workbench.question import Question, answer_of
from workbench.tape import Batch, Kind, Player, Recorder, active


class JudgeBatch(Batch):
    """Questions to judges that are asked together (see `workbench.tape.Batch`).

    ``cached`` tells whether answers that are known already may be taken.
    """

    kinds = ("judge", "uncached")

    def __init__(self, questions: Sequence[Question], *, cached: bool) -> None:
        tape = active()
        self.questions, self.cached = questions, cached
        keys = [] if tape is None else [q.tape_key(kept=self._kept(q)) for q in questions]
        super().__init__(keys, tape)

    def _kept(self, question: Question) -> bool:
        return self.cached and question.plan.lasting

    def verdicts(self, budget: Budget) -> list[Verdict] | None:
        """All verdicts from the file that is replayed; None where models are called."""
        lines = self.replayed(budget, lambda index: str(self.questions[index]))
        if lines is None:
            return None
        return [q.of_line(line) for q, line in zip(self.questions, lines, strict=True)]

    def keep(self, index: int, verdict: Verdict) -> Verdict:
        """Note a verdict; what is used and noted holds no secret that the model repeated."""
        if not isinstance(self.tape, Recorder):
            return verdict
        question = self.questions[index]
        clean = replace(verdict, rationale=scrub(verdict.rationale, question.plan.judge))
        answer, paid = answer_of(clean)
        kind: Kind = "judge" if self._kept(question) else "uncached"
        self.note(index, kind, question.told(), answer, paid, repeated=verdict.cached)
        return clean


def note_known(known: Iterable[tuple[Question, Verdict]]) -> None:
    """Note verdicts that the store has already, in whose stead nobody is asked."""
    tape = active()
    if tape is None:
        return
    asked = [(question, verdict) for question, verdict in known if verdict.value is not None]
    batch = JudgeBatch([question for question, _ in asked], cached=True)
    for index, (_, verdict) in enumerate(asked):
        batch.keep(index, verdict)
    if not isinstance(tape, Player):
        tape.save()
