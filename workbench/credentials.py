"""What of a judge's options is secret: taken out before they are stored, put back from the
environment when they are loaded.

Secret are the values of all extra headers, user, password and query of the base URL, and
inference parameters whose name says that they are a key, token, secret or password.

======================================  ====================================================
variable                                holds
======================================  ====================================================
``WORKBENCH_HEADER_<NAME>``             the value of header ``<NAME>`` (``X-Api-Key``:
                                        ``WORKBENCH_HEADER_X_API_KEY``)
``WORKBENCH_BASE_URL_CREDENTIALS``      what was cut out of the base URL, as it stood there:
                                        ``user:password@``, ``?key=value``, or both in a row
``WORKBENCH_PARAM_<NAME>``              an inference parameter; names of nested ones are joined
                                        (``extra_body``, ``api_key``:
                                        ``WORKBENCH_PARAM_EXTRA_BODY_API_KEY``)
======================================  ====================================================
"""

from __future__ import annotations

import base64
import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from workbench.errors import CredentialError

SHORTEST: Final = 12
"""Characters of a credential that is searched for in texts. Shorter ones are often words."""


def redact(text: str, credentials: Iterable[str]) -> str:
    """Replace the given credentials in a text by ``***``.

    Found are credentials of at least 12 characters, as they are, URL-encoded, or in base64 as in
    Basic authentication.

    >>> redact("bad key sk-0123456789abc, promises anything", ["sk-0123456789abc", "anything"])
    'bad key ***, promises anything'
    """
    forms: set[str] = set()
    for one in credentials:
        if len(one) < SHORTEST:
            continue
        encoded = base64.b64encode(one.encode("utf-8", "surrogatepass")).decode()
        forms |= {one, quote(one, safe="", errors="replace"), unquote(one)}
        # What follows a credential changes how its last characters are encoded.
        forms |= {encoded, encoded.rstrip("="), encoded[: len(one) // 3 * 4]}
    for form in sorted((f for f in forms if len(f) >= SHORTEST), key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def credentials_of(
    model: str | None = None,
    base_url: str | None = None,
    headers: Mapping[str, str] | None = None,
    params: Any = None,
) -> tuple[str, ...]:
    """Return the credentials that a request to a model carries.

    These are header values, user, password and query values of the base URL, parameters named as
    secrets, and the keys that the provider's client reads from the environment.
    """
    found: list[str] = [part for v in (headers or {}).values() for part in (v, v.split(" ")[-1])]
    found += [str(value) for _, value in secret_params(params)]
    if base_url:
        parts = urlsplit(base_url)
        user = parts.netloc.rpartition("@")[0]
        queried = [each.partition("=")[2] or each for each in parts.query.split("&")]
        found += [user, parts.username or "", parts.password or "", parts.fragment, *queried]
    provider = (model or "").partition(":/")[0].upper().replace("-", "_")
    if provider:
        secret = re.compile(
            rf"{_ENVIRONMENT.get(provider, provider)}_\w*(KEY|TOKEN|SECRET|PASSWORD)"
        )
        found += [value for name, value in os.environ.items() if secret.match(name)]
    return tuple(dict.fromkeys(filter(None, found)))


_ENVIRONMENT: Final = {
    "BEDROCK": "(AWS|BEDROCK)",
    "AMAZON_BEDROCK": "(AWS|BEDROCK)",
    "GEMINI": "(GEMINI|GOOGLE)",
    "HUGGINGFACE": "(HF|HUGGINGFACE)",
    "TOGETHERAI": "TOGETHER_?AI",
    "VERTEX_AI": "(VERTEX|GOOGLE)",
    "XAI": "(XAI|GROK)",
}
"""How variables of a provider begin where that is not its name."""


URL_VARIABLE: Final = "WORKBENCH_BASE_URL_CREDENTIALS"


_SECRET_NAME = re.compile(
    r"api_?key|secret|passw(or)?d|passphrase|authorization|credential|cookie"
    r"|(^|_)(access|auth|api|bearer|id|refresh|session|security|private)_?(key|token)($|_)"
    r"|^(key|token)$"
)

_HEADER_NAMES = re.compile(r"(^|_)headers?$")


# Query parameters that choose an API and open nothing. A query of others is withheld as a whole.
_HARMLESS_QUERY = frozenset({"api-version", "api_version"})


# In a query also shorter words stand for a secret: signatures, codes, one's own abbreviations.
_SECRET_QUERY = re.compile(
    r"(^|_)(key|token|sig|sign|signature|hmac|code|auth|pass|pwd|pw|jwt|sas|user|username|login"
    r"|session|sid|otp|pin|id_token)($|_)"
)


@dataclass(frozen=True)
class Withheld:
    """Names of what was taken out, and never the values.

    ``headers``: header names. ``url_user``: whether the base URL had a user or password.
    ``url_query``: names of its query parameters. ``params``: paths within the inference
    parameters.
    """

    headers: tuple[str, ...] = ()
    url_user: bool = False
    url_query: tuple[str, ...] = ()
    params: tuple[tuple[str | int, ...], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.headers or self.url_user or self.url_query or self.params)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes."""
        return {key: value for key, value in asdict(self).items() if value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Withheld:
        return cls(
            headers=tuple(data.get("headers", ())),
            url_user=bool(data.get("url_user", False)),
            url_query=tuple(data.get("url_query", ())),
            params=tuple(tuple(path) for path in data.get("params", ())),
        )


def header_variable(name: str) -> str:
    """The environment variable of a header.

    >>> header_variable("X-Api-Key")
    'WORKBENCH_HEADER_X_API_KEY'
    """
    return f"WORKBENCH_HEADER_{_capitals(name)}"


def param_variable(path: tuple[str | int, ...]) -> str:
    """The environment variable of an inference parameter."""
    return f"WORKBENCH_PARAM_{_capitals('_'.join(map(str, path)))}"


def _capitals(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


# -- showing --------------------------------------------------------------------------------

_USER = re.compile(r"[^:/@?]*(?::(?!\d+(?:[/?#]|$))[^@]*)?@")
"""User and password as databases take them: a password may hold any sign but ``@``."""


_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)


def without_credentials(url: str) -> str:
    """The URL without user, password, query and fragment, any of which may hold a secret.

    >>> without_credentials("https://user:pw@gateway.example/v1?key=abc")
    'https://gateway.example/v1'
    """
    parts = urlsplit(url)
    host = parts.netloc.rsplit("@", 1)[-1]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def public_query(url: str) -> tuple[str, ...]:
    """The query parameters whose name is not that of a credential, sorted; never the others.

    >>> public_query("https://gateway.example/v1?deployment=a&key=abc&api-version=1")
    ('api-version=1', 'deployment=a')
    """
    kept = []
    for each in urlsplit(url).query.split("&"):
        name, mark, _ = each.partition("=")
        word = _as_words(unquote(name))
        # A parameter without a name may be a bare key.
        if mark and not (_SECRET_NAME.search(word) or _SECRET_QUERY.search(word)):
            kept.append(each)
    return tuple(sorted(kept))


def shown_address(uri: str) -> str:
    """The address of a store (file, database or server) without user, password and query.

    >>> shown_address("postgresql://me:secret@db.example/mlflow?password=secret")
    'postgresql://db.example/mlflow'
    >>> shown_address("sqlite:////data/mlflow.db")
    'sqlite:////data/mlflow.db'
    """
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return uri
    rest = _USER.sub("", rest, count=1) if _USER.match(rest) else rest
    rest = rest.partition("?")[0]
    # What is left of a password that itself holds the at sign.
    authority, slash, path = rest.partition("/")
    authority = authority.rpartition("@")[2]
    if scheme.lower() in ("http", "https"):
        authority, path = authority.partition("#")[0], path.partition("#")[0]
    return f"{scheme}://{authority}{slash}{path}"


def scrubbed(text: str, uri: str) -> str:
    """A message about the store at ``uri``, with each URL in it as `shown_address` gives it."""
    _, _, rest = uri.partition("://")
    user = _USER.match(rest)
    password = user[0][:-1].partition(":")[2] if user else ""
    query = [each.partition("=")[2] for each in rest.partition("?")[2].split("&")]
    text = _URL.sub(lambda url: shown_address(url[0]), text.replace(uri, shown_address(uri)))
    # Drivers may repeat a password by itself. Very short ones would blot out ordinary words.
    for secret in sorted({password, unquote(password), *query}, key=len, reverse=True):
        if len(secret) >= 6:
            text = text.replace(secret, "***")
    return text


# -- taking out -----------------------------------------------------------------------------


def withhold(options: Mapping[str, Any]) -> tuple[dict[str, Any], Withheld, list[str]]:
    """A judge's options without secrets, the names of these, and their values.

    The values are for checking that they appear nowhere; do not keep them.
    """
    clean = dict(options)
    headers, base_url = clean.get("extra_headers") or {}, clean.get("base_url")
    params = clean.get("inference_params")
    clean["extra_headers"] = None
    clean["inference_params"] = without_secret_params(params)
    url_user, url_query = False, tuple[str, ...]()
    if base_url:
        parts = urlsplit(base_url)
        names = [each.partition("=")[0] for each in parts.query.split("&") if each]
        url_user = "@" in parts.netloc
        clean["base_url"] = without_credentials(base_url)
        if _HARMLESS_QUERY.issuperset(names):
            clean["base_url"] += f"?{parts.query}" * bool(names)
            base_url = urlunsplit(parts._replace(query=""))
        else:
            url_query = tuple(names)
    paths = tuple(path for path, _ in secret_params(params))
    values = credentials_of(None, base_url, headers, params)
    return clean, Withheld(tuple(headers), url_user, url_query, paths), list(values)


def without_secret_params(params: Any) -> Any:
    """Inference parameters without those that are secret.

    >>> without_secret_params({"temperature": 0, "api_key": "abc", "max_tokens": 9})
    {'temperature': 0, 'max_tokens': 9}
    """
    clean = copy.deepcopy(params)
    # From the back, so that positions in lists stay what they are.
    for path, _ in reversed(list(secret_params(params))):
        inner = clean
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
    return clean


def secret_params(
    params: Any, path: tuple[str | int, ...] = (), *, all_of: bool = False
) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """(path, value) of each secret parameter; within a table of headers every value is one."""
    if isinstance(params, Mapping):
        for key, value in params.items():
            name = _as_words(str(key))
            if isinstance(value, (Mapping, list)):
                within = all_of or _HEADER_NAMES.search(name) is not None
                yield from secret_params(value, (*path, key), all_of=within)
            elif value is not None and (all_of or _SECRET_NAME.search(name)):
                yield (*path, key), value
    elif isinstance(params, list):
        for position, value in enumerate(params):
            yield from secret_params(value, (*path, position), all_of=all_of)


def _as_words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[\s\-]+", "_", name).lower()


# -- putting back ---------------------------------------------------------------------------


def restore(
    options: Mapping[str, Any],
    withheld: Withheld,
    *,
    headers: Mapping[str, str] | None = None,
    who: str = "The judge",
) -> dict[str, Any]:
    """The options with secrets from ``headers`` and the environment put back.

    Raises
    ------
    CredentialError
        When some are missing; names each variable to set.
    """
    full, missing = dict(options), []
    given = {name.casefold(): value for name, value in (headers or {}).items()}
    values = dict(headers or {})
    for name in withheld.headers:
        value = given.get(name.casefold(), os.environ.get(header_variable(name)))
        if value is None:
            missing.append(f"{header_variable(name)} (the value of header {name!r})")
        elif name.casefold() not in given:
            values[name] = value
    full["extra_headers"] = values or None

    if withheld.url_user or withheld.url_query:
        text = os.environ.get(URL_VARIABLE)
        form = "user:password@" * withheld.url_user
        form += "?" * bool(withheld.url_query) + "&".join(f"{n}=..." for n in withheld.url_query)
        if text is None:
            missing.append(f"{URL_VARIABLE} (written as {form})")
        else:
            full["base_url"] = _with_url_credentials(full["base_url"], text, withheld, form)

    full["inference_params"] = copy.deepcopy(full.get("inference_params"))
    for path in withheld.params:
        secret = os.environ.get(param_variable(path))
        if secret is None:
            missing.append(f"{param_variable(path)} (inference parameter {_dotted(path)})")
        else:
            _put(full["inference_params"], path, secret)
    if missing:
        hint = " Headers may also be given as headers={...}." if withheld.headers else ""
        raise CredentialError(
            f"{who} needs credentials, which are never stored. Set in the environment: "
            f"{'; '.join(missing)}.{hint}"
        )
    return full


def _with_url_credentials(url: str, text: str, withheld: Withheld, form: str) -> str:
    user, at, rest = text.rpartition("@") if withheld.url_user else ("", "", text)
    if withheld.url_user and not at:  # without the at sign it is the user alone
        user, _, query = text.partition("?")
    else:
        query = rest.lstrip("?")
    names = {each.partition("=")[0] for each in query.split("&")}
    if (withheld.url_user and not user) or not names.issuperset(withheld.url_query):
        raise CredentialError(f"{URL_VARIABLE} does not hold what is needed. Write it as {form}.")
    parts = urlsplit(url)
    return urlunsplit(
        parts._replace(
            netloc=f"{user}@{parts.netloc}" if user else parts.netloc,
            query="&".join(each for each in (parts.query, query) if each),
        )
    )


def _put(params: Any, path: tuple[str | int, ...], value: str) -> None:
    for key in path[:-1]:
        params = params[key]
    if isinstance(params, list):
        params.insert(int(path[-1]), value)
    else:
        params[path[-1]] = value


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))
