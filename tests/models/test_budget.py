"""A budget in calls, tokens and money is never exceeded by a single call."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import pytest
from asking import OwnJudge, run
from hypothesis import given
from hypothesis import strategies as st
from loopback import Loopback
from mlflow.entities import Feedback
from mlflow.genai.judges import Judge

import workbench
from workbench import Budget
from workbench.errors import ArgumentError, BudgetError
from workbench.judging.verdicts import Verdict
from workbench.models.budget import (
    ASSUMED_OUTPUT,
    UNPAID,
    Usage,
    context_window,
    cost,
    most_tokens,
    tokens_used,
    usd_per_1000,
)
from workbench.store.traces import Example

PRICED = "openai:/gpt-4.1-mini"
A_CALL = 110  # tokens that the simulated server says it used

Start = Callable[..., Loopback]


def judge_of(url: str, model: str = "openai:/m", **parameters: Any) -> Judge:
    return workbench.make_judge(
        "good",
        "Is {{ outputs }} good?",
        model=model,
        base_url=url,
        feedback_value_type=Literal["yes", "no"],
        inference_params=parameters or None,
    )


def asked(many: int) -> list[Example]:
    return [Example(f"tr-{n}", None, f"answer {n}") for n in range(many)]


def ask(judge: Judge, many: int, budget: Budget, concurrency: int) -> list[Verdict]:
    """The verdicts that came before the budget ended."""
    found: list[Verdict] = []
    with pytest.raises(BudgetError, match=r"budget is spent"):
        run(judge, asked(many), budget=budget, concurrency=concurrency, on_verdict=found.append)
    return found


# -- the account ----------------------------------------------------------------------------


@given(
    limit=st.integers(0, 3000),
    requests=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 100)), max_size=30),
    threads=st.integers(1, 8),
)
def test_what_is_used_is_never_more_than_the_budget(
    limit: int, requests: list[tuple[int, int]], threads: int
) -> None:
    """Whatever requests may use and do use, and however many are under way at once."""
    budget = Budget(tokens=limit)
    used, refused = [], []
    waiting = list(requests)

    def work() -> None:
        while waiting:
            try:
                most, share = waiting.pop()
            except IndexError:
                return
            text = {"max_tokens": most}
            try:
                held = budget.reserve("offline:/rubric", text)
            except BudgetError:
                refused.append(most)
                continue
            output = most * share // 100
            used.append(held.read + output)
            budget.settle(held, held.read, output)

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert budget.spent_tokens == sum(used) <= limit
    assert len(used) + len(refused) == len(requests)
    # Nobody is refused what there was enough for.
    overhead = most_tokens({"max_tokens": 1})[0]
    assert all(sum(used) + most + overhead > limit for most in refused)


def test_a_request_waits_for_what_others_leave_over() -> None:
    """Most of what is set aside comes back, so that a small budget still does much."""
    budget = Budget(tokens=1000)
    first = budget.reserve("offline:/rubric", {"max_tokens": 600})
    got: list[Any] = []
    other = threading.Thread(
        target=lambda: got.append(budget.reserve("offline:/rubric", {"max_tokens": 600}))
    )
    other.start()
    time.sleep(0.2)
    assert not got
    budget.settle(first, 10, 10)
    other.join(10)
    assert len(got) == 1


def test_who_waits_can_be_told_that_it_is_over() -> None:
    budget = Budget(tokens=1000)
    budget.reserve("offline:/rubric", {"max_tokens": 600})
    with pytest.raises(BudgetError):
        budget.reserve("offline:/rubric", {"max_tokens": 600}, lambda: True)


def test_what_is_not_told_counts_in_full() -> None:
    budget = Budget(tokens=10_000)
    held = budget.reserve("offline:/rubric", {"max_tokens": 500})
    budget.settle(held)
    assert budget.spent_tokens == held.tokens
    with pytest.raises(BudgetError, match="tokens the server does not report counts in full"):
        budget.reserve("offline:/rubric", {"max_tokens": 10_000})


def test_more_than_was_reserved_counts_in_full() -> None:
    """Where an answer has no limit, one that is longer than assumed leaves less for others."""
    budget = Budget(tokens=100_000)
    held = budget.reserve("offline:/rubric", {})
    assert held.written == ASSUMED_OUTPUT
    budget.settle(held, 100, 3 * ASSUMED_OUTPUT)
    assert budget.spent_tokens == 100 + 3 * ASSUMED_OUTPUT


def test_a_number_is_a_budget_of_calls() -> None:
    """None is no limit, and a budget is shared by those who are given it."""
    assert Budget.of(3).limit == 3
    assert not Budget.of(None).is_limited
    own = Budget(tokens=5)
    assert Budget.of(own) is own
    assert repr(Budget(2, tokens=1000, usd=1.5)) == (
        "Budget(0 of 2 calls, 0 of 1,000 tokens, $0.0000 of $1.50)"
    )
    assert repr(Budget(np.int64(2), usd=np.float32(1))) == "Budget(0 of 2 calls, $0.0000 of $1.00)"


@pytest.mark.parametrize(
    "limits",
    [{"calls": -1}, {"tokens": -5}, {"usd": float("nan")}, {"usd": "1"}, {"calls": True}],
)
def test_a_limit_is_a_number(limits: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="budget="):
        Budget(**limits)


@given(st.text(), st.integers(1, 500))
def test_a_prompt_has_no_more_tokens_than_is_thought(text: str, most: int) -> None:
    """By a tokenizer that litellm carries."""
    import litellm

    messages = [{"role": "user", "content": text}]
    prompt, output = most_tokens({"messages": messages, "max_tokens": most})
    assert prompt >= litellm.token_counter(model="gpt-4.1-mini", messages=messages)
    assert output == most


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"usage": {"prompt_tokens": 5, "completion_tokens": 7}}, (5, 7, None)),
        (
            {"usage": {"input_tokens": 5, "cache_read_input_tokens": 4, "output_tokens": 7}},
            (9, 7, 4),
        ),
        (
            {
                "usage": {
                    "prompt_tokens": 5,
                    "completion_tokens": 7,
                    "prompt_tokens_details": {"cached_tokens": 3},
                }
            },
            (5, 7, 3),
        ),
        ({"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 7}}, (5, 7, None)),
        (  # as MLflow's gateway and litellm tell Anthropic's
            {
                "usage": {
                    "prompt_tokens": 12,
                    "completion_tokens": 7,
                    "cache_creation_input_tokens": 3,
                    "cache_read_input_tokens": 4,
                    "prompt_tokens_details": {"cached_tokens": 4},
                }
            },
            (12, 7, 4),
        ),
        (  # DeepSeek's
            {"usage": {"prompt_tokens": 5, "completion_tokens": 7, "prompt_cache_hit_tokens": 3}},
            (5, 7, 3),
        ),
        ({"usage": None}, (None, None, None)),
        (None, (None, None, None)),
        ({"usage": {"prompt_tokens": "many"}}, (None, None, None)),
    ],
)
def test_usage_is_read_as_providers_tell_it(answer: Any, told: tuple[Any, Any, Any]) -> None:
    assert tokens_used(answer) == told


# -- on real requests -----------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 7, 64])
def test_tokens_are_never_exceeded(loopback: Start, concurrency: int) -> None:
    """As the server counts them; and the budget does not end long before it is spent."""
    server = loopback(latency=0.01)
    budget = Budget(tokens=8_000)
    verdicts = ask(judge_of(server.url, max_tokens=50), 200, budget, concurrency)
    assert server.requests * A_CALL == budget.spent_tokens <= 8_000
    assert budget.spent == server.requests == len(verdicts)
    assert server.requests > 40


def test_failed_requests_and_repeated_ones_are_counted(loopback: Start) -> None:
    """Each is a call; what a provider refused to answer used no tokens."""
    server = loopback(script="200x1,500x2,200x5", retry_after=0)
    budget = Budget(calls=6, tokens=50_000)
    ask(judge_of(server.url), 20, budget, 1)
    assert (budget.spent, server.requests) == (6, 6)
    assert budget.spent_tokens == 4 * A_CALL


def test_money_is_never_exceeded(loopback: Start) -> None:
    """By the list price."""
    server = loopback()
    each = cost(PRICED, 100, 10)
    assert each is not None
    budget = Budget(usd=0.01)
    ask(judge_of(server.url, PRICED, max_tokens=50), 400, budget, 16)
    assert server.requests * each == pytest.approx(budget.spent_usd)
    assert budget.spent_usd <= 0.01
    assert server.requests > 50


def test_a_budget_that_is_too_small_for_one_request_asks_nothing(loopback: Start) -> None:
    """And says how much the first one might have used."""
    server = loopback()
    budget = Budget(tokens=100)
    with pytest.raises(BudgetError, match=r"0 of 100 tokens are used, and the next request"):
        run(judge_of(server.url), asked(3), budget=budget)
    assert (server.requests, budget.spent, budget.spent_tokens) == (0, 0, 0)


def test_without_a_price_money_is_refused_before_anything_is_spent(
    loopback: Start, store: str
) -> None:
    server = loopback()
    with pytest.raises(BudgetError, match="know no price of openai:/m"):
        run(judge_of(server.url), asked(3), budget=Budget(usd=1))
    judge = judge_of(server.url)
    assert server.requests == 0
    table = [
        {"question": f"q {n}", "answer": f"answer {n}", "label": ["yes", "no"][n % 2]}
        for n in range(20)
    ]
    import pandas as pd

    traces = workbench.import_traces(
        pd.DataFrame(table),
        inputs="question",
        outputs="answer",
        labels={"ana": "label"},
        label_name="good",
        progress=False,
    )
    workbench.assess(judge, traces, progress=False)
    spent = server.requests
    with pytest.raises(BudgetError, match="know no price of openai:/m"):
        workbench.align(judge, traces, budget=Budget(usd=1), progress=False)
    assert server.requests == spent
    # Tokens need no price; what was told beforehand names them.
    alignment = workbench.align(
        judge,
        traces,
        workbench.SIMBA(model="offline:/rubric", max_steps=1, progress=False),
        budget=(budget := Budget(tokens=30_000)),
        progress=False,
    )
    told = alignment.preflight.set_index("check")["finding"]["learning takes"]
    assert "tokens; the budget is never exceeded" in told
    assert 0 < budget.spent_tokens <= 30_000


class Own(OwnJudge):
    """A judge that calls whatever it calls."""

    @property
    def feedback_value_type(self) -> Any:
        return bool

    def __call__(self, *, outputs: Any) -> Feedback:
        return Feedback(name=self.name, value=True)


def test_a_judge_that_cannot_be_measured_has_no_budget_in_tokens() -> None:
    """One in calls it has."""
    with pytest.raises(BudgetError, match="Nothing was spent"):
        run(Own(name="own"), asked(2), budget=Budget(tokens=1000))
    assert len(run(Own(name="own"), asked(2), budget=Budget(2))) == 2


def test_a_judge_that_asks_one_of_mlflows_is_counted_once(loopback: Start) -> None:
    """Its first request is the call that was counted for it."""
    server = loopback()
    inner = judge_of(server.url)

    class Asking(Own):
        def __call__(self, *, outputs: Any) -> Feedback:
            return inner(outputs=outputs)

    budget = Budget(5)
    verdicts = run(Asking(name="own"), asked(5), budget=budget)
    assert [verdict.calls for verdict in verdicts] == [1] * 5
    assert budget.spent == server.requests == 5


def test_what_is_kept_back_is_for_later() -> None:
    """Until then the rest is all that there is."""
    budget = Budget(100)
    with budget.keeping(calls=40):
        assert budget.left == 60
        for _ in range(20):
            budget.settle(budget.reserve("offline:/rubric"))
        assert budget.left == 40
    assert budget.left == 80
    with (
        pytest.raises(BudgetError, match="nothing is left to learn with"),
        budget.keeping(calls=80),
    ):
        pass


def test_who_shares_a_budget_gives_back_what_was_kept_for_them() -> None:
    """In whatever order they end."""
    budget = Budget(100)
    with ExitStack() as later:
        with budget.keeping(calls=40):
            later.enter_context(budget.keeping(calls=44))
        assert budget.left == 56
    assert budget.left == 100


def test_what_was_spent_is_told_as_far_as_it_is_known() -> None:
    """Tokens that were not counted and models without a price leave no figure behind."""
    assert Budget().figures() == {"calls": 0, "tokens": 0, "cost": 0.0}

    def spent(model: str, *used: int | None) -> dict[str, Any]:
        budget = Budget()
        budget.settle(budget.reserve(model), *used)
        return budget.figures()

    price = cost(PRICED, 100, 10)
    assert spent(PRICED, 100, 10) == {"calls": 1, "tokens": 110, "cost": price}
    assert spent(PRICED, None, None) == {"calls": 1, "tokens": None, "cost": None}
    assert spent("openai:/of-nobody", 100, 10) == {"calls": 1, "tokens": 110, "cost": None}
    assert spent("offline:/rubric", None, None) == {"calls": 1, "tokens": None, "cost": 0.0}


def test_a_sum_is_known_where_all_its_parts_are() -> None:
    """After a request that got lost nothing is; one that was never made changes nothing."""
    one, lost = Usage(1, 10, 5, 0.25, 8), Usage(1)
    assert one + Usage(2, 20, 5, 0.5) == Usage(3, 30, 10, 0.75, 8)
    assert one + lost == lost + one == Usage(2, repeated=8)
    assert one + UNPAID == UNPAID + one == one


def test_what_a_run_has_cost_is_told_as_its_budget_tells_it(loopback: Start) -> None:
    """Refused requests cost nothing; of one that timed out nobody knows."""
    quick = judge_of(loopback(script="200x1,429x1,200x5", retry_after=0).url, PRICED)
    slow, budget = judge_of(loopback(latency=0.5).url, PRICED, timeout=0.1), Budget()
    paid = sum((v.paid for v in run(quick, asked(3), budget=budget)), UNPAID)
    assert (paid.requests, paid.cost) == (4, pytest.approx(budget.figures()["cost"]))
    paid += run(slow, asked(1), budget=budget)[0].paid
    assert (paid.requests, paid.read, paid.cost, budget.figures()["cost"]) == (6, None, None, None)


def test_prices_and_contexts_that_only_mlflow_lists_are_known() -> None:
    """Of models that litellm leaves out."""
    model = "gemini:/gemini-2.0-flash"
    assert cost(model, 1_000_000, 1_000_000) == pytest.approx(0.5)
    assert context_window(model) == 1_048_576
    assert cost("gemini:/of-nobody", 1, 1) is None


def test_the_price_of_a_thousand_answers_is_that_of_those_whose_cost_is_known() -> None:
    usages = [Usage(1, 100, 10, 0.002), Usage(2, 300, 30, 0.004)]
    assert usd_per_1000(usages) == usd_per_1000([*usages, Usage(1)]) == pytest.approx(3)
    assert usd_per_1000([Usage(1)]) is usd_per_1000([]) is None


def test_prices_that_only_litellm_lists_are_known_without_it() -> None:
    """From its file, since to import it takes seconds."""
    from litellm import model_cost

    priced = [
        f"{entry['litellm_provider']}:/{name.partition('/')[2]}"
        for name, entry in model_cost.items()
        if name.startswith(f"{entry.get('litellm_provider')}/")
        and entry.get("mode") == "chat"
        and entry.get("input_cost_per_token")
    ]
    program = (
        "import sys; from workbench.models.budget import cost; "
        f"print(sum(cost(m, 1, 1) is None for m in {priced!r}), 'litellm' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert len(priced) > 500
    assert ran.stdout.split() == ["0", "False"]
