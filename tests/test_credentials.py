"""Secrets are taken out before storing and put back from the environment."""

from __future__ import annotations

import base64
import copy
import json
import os
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.credentials import (
    URL_VARIABLE,
    Withheld,
    redact,
    restore,
    scrubbed,
    secret_params,
    variable,
    withhold,
    without_credentials,
    without_secret_params,
)
from workbench.errors import CredentialError


def opts(**changes: Any) -> dict[str, Any]:
    return {"base_url": None, "extra_headers": None, "inference_params": None, **changes}


@pytest.mark.parametrize(
    "name",
    [
        "api_key", "apiKey", "API-KEY", "openai_api_key", "key", "token", "access_token",
        "auth_token", "aws_session_token", "password", "client_secret", "Authorization",
        "credentials", "Cookie", "azure_ad_token", "aws_web_identity_token", "hf_token",
    ],
)  # fmt: skip
def test_parameters_named_like_credentials_are_withheld(name: str) -> None:
    assert without_secret_params({name: "abc", "seed": 1}) == {"seed": 1}


@pytest.mark.parametrize(
    "name",
    ["max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "stop_token",
     "load_token", "prompt_cache_retention", "keyword", "n", "seed"],
)  # fmt: skip
def test_other_parameters_are_kept(name: str) -> None:
    assert without_secret_params({name: 5}) == {name: 5}


def test_all_headers_among_the_parameters_are_withheld_and_nested_secrets_too() -> None:
    params = {
        "extra_headers": {"X-Team": "red"},
        "extra_body": {"tools": [{"api_key": "k", "kind": "search"}], "safe": True},
    }
    assert without_secret_params(params) == {
        "extra_headers": {},
        "extra_body": {"tools": [{"kind": "search"}], "safe": True},
    }
    assert [path for path, _ in secret_params(params)] == [
        ("extra_headers", "X-Team"),
        ("extra_body", "tools", 0, "api_key"),
    ]


def test_options_are_not_changed_by_withholding() -> None:
    options = opts(inference_params={"api_key": "k"}, extra_headers={"A": "b"})
    before = copy.deepcopy(options)
    withhold(options)
    assert options == before


def test_what_is_missing_is_named_variable_by_variable() -> None:
    clean, withheld, _ = withhold(
        opts(
            base_url="https://me:pw@host/v1?key=k",
            extra_headers={"X-Api-Key": "a", "Authorization": "Bearer b"},
            inference_params={"extra_body": {"token": "t"}},
        )
    )
    with pytest.raises(CredentialError) as caught:
        restore(clean, withheld, who="Judge 'q'")
    for name in (
        "WORKBENCH_HEADER_X_API_KEY",
        "WORKBENCH_HEADER_AUTHORIZATION",
        "WORKBENCH_BASE_URL_CREDENTIALS (written as user:password@?key=...)",
        "WORKBENCH_PARAM_EXTRA_BODY_TOKEN",
        "Judge 'q'",
    ):
        assert name in str(caught.value)


def test_headers_may_be_given_and_others_added(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, withheld, _ = withhold(opts(extra_headers={"X-Api-Key": "a", "X-Team": "red"}))
    monkeypatch.setenv("WORKBENCH_HEADER_X_TEAM", "blue")
    full = restore(clean, withheld, headers={"x-api-key": "new", "X-More": "m"})
    assert full["extra_headers"] == {"x-api-key": "new", "X-More": "m", "X-Team": "blue"}


def test_a_query_that_only_chooses_the_api_version_is_kept() -> None:
    url = "https://host/v1?api-version=2024-10-21"
    clean, withheld, secrets = withhold(opts(base_url=url))
    assert clean["base_url"] == url
    assert not withheld
    assert not secrets


@pytest.mark.parametrize("text", ["key=right", "?key=right"])
def test_the_query_may_be_written_with_or_without_its_mark(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, withheld, _ = withhold(opts(base_url="https://host/v1?key=k"))
    monkeypatch.setenv(URL_VARIABLE, text)
    assert restore(clean, withheld)["base_url"] == "https://host/v1?key=right"


@pytest.mark.parametrize("text", ["me:pw", "me:pw@"])
def test_the_user_may_be_written_with_or_without_its_sign(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, withheld, _ = withhold(opts(base_url="https://a:b@host:8000/v1"))
    monkeypatch.setenv(URL_VARIABLE, text)
    assert restore(clean, withheld)["base_url"] == "https://me:pw@host:8000/v1"


@pytest.mark.parametrize("text", ["me:pw@", "?other=1", "me:pw@?other=1"])
def test_half_of_the_credentials_of_a_url_is_an_error(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, withheld, _ = withhold(opts(base_url="https://a:b@host/v1?key=k"))
    monkeypatch.setenv(URL_VARIABLE, text)
    with pytest.raises(CredentialError, match=r"user:password@\?key=\.\.\."):
        restore(clean, withheld)


words = st.text("abcdefghij", min_size=6, max_size=12)


@given(
    user=st.none() | words,
    query=st.dictionaries(words, words, max_size=2),
    headers=st.dictionaries(words, words, max_size=3),
    key=st.none() | words,
)
def test_what_is_withheld_is_nowhere_and_comes_back_whole(
    user: str | None, query: dict[str, str], headers: dict[str, str], key: str | None
) -> None:
    secret = "SECRET"  # no generated word holds capitals
    text = "&".join(f"{name}={secret}{value}" for name, value in query.items())
    at = f"{secret}{user}:pw@" if user else ""
    options = opts(
        base_url=f"https://{at}host/v1" + (f"?{text}" if text else ""),
        extra_headers={name: f"Bearer {secret}{value}" for name, value in headers.items()} or None,
        inference_params={"n": 1} | ({"api_key": secret + key} if key else {}),
    )
    clean, withheld, secrets = withhold(options)
    stored = json.dumps([clean, withheld.to_dict()])
    assert secret not in stored
    assert all(value not in stored for value in secrets if len(value) >= 6)
    environment = {variable("HEADER", k): v for k, v in (options["extra_headers"] or {}).items()}
    environment[URL_VARIABLE] = at + (f"?{text}" if text else "")
    environment[variable("PARAM", "api_key")] = secret + (key or "")
    with mock.patch.dict(os.environ, environment):
        read = Withheld.model_validate(json.loads(stored)[1])
        assert restore(json.loads(stored)[0], read) == options


# -- showing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("https://user:pw@gateway.example:8443/v1?key=abc#x", "https://gateway.example:8443/v1"),
        ("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1"),
        ("https://user@h", "https://h"),
        ("https://a@b@h/p", "https://h/p"),
    ],
)
def test_a_url_is_shown_without_credentials(url: str, bare: str) -> None:
    assert without_credentials(url) == bare


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:pw-4711@db.example:5432/mlflow", "postgresql://db.example:5432/mlflow"),
        ("mysql+pymysql://me:p/w?#:4711@db/mlflow?ssl=pw-4711", "mysql+pymysql://db/mlflow"),
        ("postgresql://me:p@w-4711@db/mlflow", "postgresql://db/mlflow"),
        ("postgresql://me:4711/ab@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        ("postgresql://db/mlflow?user=me&password=pw-4711", "postgresql://db/mlflow"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dpw-4711", "mssql+pyodbc:///"),
        ("https://me:pw-4711@mlflow.example", "https://mlflow.example"),
        ("https://token-4711@mlflow.example/x?key=4711#4711", "https://mlflow.example/x"),
        ("https://mlflow.example:5000/a@b", "https://mlflow.example:5000/a@b"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("file:///tmp/mlruns", "file:///tmp/mlruns"),
        ("databricks://profile", "databricks://profile"),
        ("databricks", "databricks"),
        ("./mlruns", "./mlruns"),
    ],
)
def test_an_address_is_shown_without_credentials(uri: str, shown: str) -> None:
    assert without_credentials(uri) == shown
    message = f"could not connect to {uri} (password pw-4711)"
    assert "4711" not in scrubbed(message, "postgresql://me:pw-4711@db/mlflow")
    assert scrubbed(f"at {uri} now", uri) == f"at {shown} now"


def test_a_password_is_scrubbed_as_it_is_meant_and_as_it_is_written() -> None:
    said = scrubbed("FATAL: no hunter@2 nor hunter%402", "postgresql://me:hunter%402@db/mlflow")
    assert said == "FATAL: no *** nor ***"
    assert scrubbed("no such table", "postgresql://me:no@db/x") == "no such table"


def test_a_credential_is_found_in_each_form_in_which_it_is_sent() -> None:
    """As it is, URL-encoded, and in base64 with whatever stands before or after it."""
    secret = "pass/word-0123456789"
    basic = base64.b64encode(f"{secret}".encode()).decode()
    user = base64.b64encode(f"me:{secret}".encode()).decode()
    text = f"{secret} {quote(secret, safe='')} Basic {basic} Basic {user}"
    assert redact(text, [secret, f"me:{secret}"]) == "*** *** Basic *** Basic ***"


@pytest.mark.parametrize("short", ["", "anything", "enabled", "a-password"])
def test_what_is_short_may_be_a_word(short: str) -> None:
    """README's own OPENAI_API_KEY=anything blots nothing out."""
    text = f"promises {short} the shop"
    assert redact(text, [short]) == text


def test_a_key_read_with_its_line_break_is_replaced_however_a_message_shows_it() -> None:
    for shown in (repr("Bearer sk-0123456789ab\n"), str(b"sk-0123456789ab\n"), "sk-0123456789ab"):
        assert "0123" not in redact(shown, ["sk-0123456789ab\n"])
