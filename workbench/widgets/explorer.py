"""Find out in the notebook where judge and people differ: `Explorer`, a view of `Exploration`."""

from __future__ import annotations

import pandas as pd

from workbench.alignment.result import Alignment
from workbench.errors import ArgumentError
from workbench.formatting import counted, html_table, html_text, with_content
from workbench.labeling.exploration import Exploration, Query
from workbench.labeling.review_queue import ReviewQueue
from workbench.pairing.pairs import Pairs
from workbench.widgets.panels import SessionPanel, read_files

_MOST_ROWS = 20


class Explorer(SessionPanel):
    """A confusion matrix whose cells open their items.

    A cell shows its items, the farthest first, with text, label, verdict and the reasons for both;
    they can be searched, and divided as by `workbench.agreement`: by tag, input, length, week, and
    by annotator, whose own labels are then compared. Of an alignment the held-out items are shown
    before and after, with those that were fixed and broken.

    Parameters
    ----------
    pairs_or_alignment
        What `workbench.pair` or `workbench.align` gave.
    after
        Pairs of another judge on the same traces, to compare with.
    annotator
        Who labels and writes notes here. Since the verdict is in view, such a label is recorded as
        given after it: the annotator's own blind label is kept beside it and still counts, and
        where there is none it is their vote from then on. Traces that are opened are recorded as
        seen, so that a later label is no blind one either. Without an annotator nothing is
        recorded. Notes are feedback named ``reviewer_note``.
    queue
        The `workbench.review_queue`, or its name, that items are sent to; by default one with the
        judge's name, which is made when first needed and asks for one label more than any of
        these traces has.

    Raises
    ------
    ArgumentError
        For anything but pairs or an alignment, and for pairs that cannot be compared.

    Examples
    --------
    >>> explorer = workbench.Explorer(pairs, annotator="ana")  # doctest: +SKIP
    >>> explorer.shown  # the items that it shows, as a table  # doctest: +SKIP
    """

    _esm = read_files("js", "content", "explorer")
    _css = read_files("css", "label", "explorer")
    _live = "[data-total]"
    session: Exploration

    def __init__(
        self,
        pairs_or_alignment: Pairs | Alignment,
        after: Pairs | None = None,
        *,
        annotator: str | None = None,
        queue: ReviewQueue | str | None = None,
    ) -> None:
        if isinstance(pairs_or_alignment, Alignment):
            given = [pairs_or_alignment.test_before, pairs_or_alignment.test_after]
            if after is not None:
                raise ArgumentError("after= goes with pairs: an alignment holds both judges'.")
        else:
            given = [pairs_or_alignment, *([] if after is None else [after])]
        if wrong := [one for one in given if not isinstance(one, Pairs)]:
            raise ArgumentError(
                f"Explorer shows pairs or an alignment, got {type(wrong[0]).__name__}. "
                "workbench.pair(judge) gives pairs, and .result() the alignment of one that runs "
                "in the background."
            )
        self._begin(Exploration(*given, annotator=annotator, queue=queue))

    @property
    def shown(self) -> pd.DataFrame:
        """The items that the view asked for last: ``trace_id``, ``human``, ``judge`` (or
        ``before`` and ``after``), ``distance`` in [0, 1], and of two judges ``change``."""
        return self.session.shown

    def __repr__(self) -> str:
        items = counted(len(self.session.found.place), "item")
        return f"<Explorer {self.session.title!r}: {items}>"

    def _repr_html_(self) -> str:
        """The matrices, and the items farthest from their label."""
        found, word = self.session.found, self.session.questions[0].shown
        parts = [f"<p>{html_text(repr(self)[1:-1])}</p>"]
        labels = [word(value) for value in found.values]
        for number, name in enumerate(found.names):
            _, matrix, _ = found.find(Query(judge=number))
            shown = pd.DataFrame(matrix, labels, pd.Index(labels, name=f"human / {name}"))
            parts.append(html_table(shown))
        rows = found.find(Query(judge=len(found.names) - 1))[0][:_MOST_ROWS]
        table = found.table.iloc[rows].drop(columns="annotator")
        table = table.assign(**{side: table[side].map(word) for side in ("human", *found.names)})
        table = with_content(table, self.session.pairs.previews)
        return "".join([*parts, html_table(table, index=False)])
