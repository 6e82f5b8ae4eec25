"""What of a judge's options is secret: the values of all extra headers, user, password and query of
the base URL, and inference parameters that are named like a key, token, secret or password.

Stored are only their names. They come back from ``WORKBENCH_HEADER_<NAME>``,
``WORKBENCH_BASE_URL_CREDENTIALS`` (``user:password@``, ``?key=value``, or both in a row) and
``WORKBENCH_PARAM_<NAME>`` (of nested ones, ``WORKBENCH_PARAM_EXTRA_BODY_API_KEY``).
"""

from __future__ import annotations

import base64
import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from operator import getitem
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel

from workbench.errors import CredentialError

SHORTEST: Final = 12  # characters of a credential that is searched for; shorter ones may be words

URL_VARIABLE: Final = "WORKBENCH_BASE_URL_CREDENTIALS"

Path = tuple[str | int, ...]

_SECRET_NAME = re.compile(
    r"api_?key|secret|passw(or)?d|passphrase|authorization|credential|cookie"
    r"|(^|_)(access|ad|api|auth|bearer|hf|id|identity|private|refresh|security|session)_?"
    r"(key|token)($|_)"
    r"|^(key|token)$"
)

_SECRET_VARIABLE = re.compile(r"_(KEY|TOKEN|SECRET|PASSWORD)$")

# Query parameters that choose a model and open nothing. All others are withheld.
_HARMLESS_QUERY = frozenset({"api-version", "api_version", "deployment", "model", "version"})


def redact(text: str, credentials: Iterable[str], *, shortest: int = SHORTEST) -> str:
    """Replace credentials of so many characters, also URL-encoded or in base64, by ``***``."""
    forms: set[str] = set()
    # Where a key is refused for the line break at its end, messages have that in other forms.
    for one in (form for each in credentials for form in {each, each.strip()}):
        if len(one) >= shortest:
            encoded = base64.b64encode(one.encode("utf-8", "surrogatepass")).decode()
            forms |= {one, quote(one, safe="", errors="replace"), unquote(one)}
            # What follows a credential changes how its last characters are encoded.
            forms |= {encoded, encoded.rstrip("="), encoded[: len(one) // 3 * 4]}
    for form in sorted((f for f in forms if len(f) >= shortest), key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def environment_keys(model: str | None = None) -> list[str]:
    """Return the keys in the environment: all, or those that the client of a model reads."""
    start = "" if model is None else model.partition(":")[0].upper().replace("-", "_") + "_"
    variables = [n for n in os.environ if n.startswith(start) and _SECRET_VARIABLE.search(n)]
    return [os.environ[name] for name in variables]


def credentials_of(
    base_url: str | None, headers: Mapping[str, str] | None, params: Any
) -> tuple[str, ...]:
    """Return the credentials in the options of a judge, which its requests carry."""
    found = [part for v in (headers or {}).values() for part in (v, v.split(" ")[-1])]
    found += [str(value) for _, value in secret_params(params)]
    parts = urlsplit(base_url or "")
    user = parts.netloc.rpartition("@")[0]
    # A user is a secret where it stands alone, as a token does.
    found += [user, user.partition(":")[2], parts.fragment]
    found += [each.partition("=")[2] or each for each in _split_query(parts.query)[1]]
    return tuple(filter(None, found))


def _split_query(query: str) -> tuple[list[str], list[str]]:
    """The parameters that are harmless, and the others."""
    given = [each for each in query.split("&") if each]
    public = [each for each in given if each.partition("=")[0] in _HARMLESS_QUERY]
    return public, [each for each in given if each not in public]


# User and password as databases take them: a password may hold any sign but ``@``. In web
# addresses digits and a slash are a port and a path.
_USER = re.compile(r"[^:/@?]*(?::[^@]*)?@")
_PORT = re.compile(r"[^:/@?]*:\d+(?:[/?#]|$)")

_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)


def without_credentials(address: str) -> str:
    """Return the address of a server, file or database without user, password and query."""
    scheme, mark, rest = address.partition("://")
    if not mark:
        return address
    is_web = scheme.lower() in ("http", "https")
    user = None if is_web and _PORT.match(rest) else _USER.match(rest)
    rest = rest[user.end() if user else 0 :].partition("?")[0]
    if is_web:
        rest = rest.partition("#")[0]
    authority, slash, path = rest.partition("/")
    # What is left of a password that itself holds the at sign goes too.
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def urls_without_credentials(text: str) -> str:
    """Return a text in which every URL has lost user, password and query."""
    return _URL.sub(lambda url: without_credentials(url[0]), text)


def scrubbed(text: str, uri: str) -> str:
    """Return a message about the store at ``uri`` with no URL's credentials and no password."""
    text = urls_without_credentials(text.replace(uri, without_credentials(uri)))
    # Drivers may repeat a password by itself. Very short ones would blot out ordinary words.
    return redact(text, credentials_of(uri, None, None), shortest=6)


def public_query(url: str) -> tuple[str, ...]:
    """Return the query parameters that choose a model and are no credential, sorted."""
    return tuple(sorted(_split_query(urlsplit(url).query)[0]))


class Withheld(BaseModel, frozen=True):
    """What was taken out of a judge's options, without the values."""

    headers: tuple[str, ...] = ()  # their names
    url_user: bool = False
    url_query: tuple[str, ...] = ()  # names of parameters
    params: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes."""
        return self.model_dump(exclude_defaults=True)


def withhold(options: Mapping[str, Any]) -> tuple[dict[str, Any], Withheld, tuple[str, ...]]:
    """Return a judge's options without secrets, the names of these, and their values."""
    headers, params = options.get("extra_headers") or {}, options.get("inference_params")
    url = options.get("base_url") or ""
    public, others = _split_query(urlsplit(url).query)
    withheld = Withheld(
        headers=tuple(headers),
        url_user="@" in urlsplit(url).netloc,
        url_query=tuple(each.partition("=")[0] for each in others),
        params=tuple(path for path, _ in secret_params(params)),
    )
    clean = {**options, "extra_headers": None, "inference_params": without_secret_params(params)}
    if url:
        clean["base_url"] = without_credentials(url) + "?" * bool(public) + "&".join(public)
    return clean, withheld, credentials_of(url, headers, params)


def without_secret_params(params: Any) -> Any:
    """Return inference parameters without those that are secret."""
    clean = copy.deepcopy(params)
    # From the back, so that positions in lists stay what they are.
    for path, _ in reversed(list(secret_params(params))):
        del reduce(getitem, path[:-1], clean)[path[-1]]
    return clean


def secret_params(
    params: Any, path: Path = (), *, all_of: bool = False
) -> Iterator[tuple[Path, Any]]:
    """Yield (path, value) of each secret parameter, and of each header among them."""
    for key, value in params.items() if isinstance(params, Mapping) else enumerate(params or ()):
        name = re.sub(r"(?<=[a-z])(?=[A-Z])|[\s\-]+", "_", str(key)).lower()
        if isinstance(value, (Mapping, list)):
            within = all_of or name.endswith(("header", "headers"))
            yield from secret_params(value, (*path, key), all_of=within)
        elif value is not None and (all_of or _SECRET_NAME.search(name)):
            yield (*path, key), value


def variable(*words: str | int) -> str:
    """Return the environment variable of a header or, by its path, of an inference parameter."""
    return re.sub(r"[^A-Z0-9]", "_", "_".join(["WORKBENCH", *map(str, words)]).upper())


def restore(
    options: Mapping[str, Any],
    withheld: Withheld,
    *,
    headers: Mapping[str, str] | None = None,
    who: str = "The judge",
) -> dict[str, Any]:
    """Return the options with secrets from ``headers`` and the environment put back.

    Where some are missing, a `CredentialError` names each variable to set.
    """
    given = {name.casefold() for name in headers or {}}
    left = {n: variable("HEADER", n) for n in withheld.headers if n.casefold() not in given}
    paths = {path: variable("PARAM", *path) for path in withheld.params}
    form = "user:password@" * withheld.url_user
    form += "?" * bool(withheld.url_query) + "&".join(f"{n}=..." for n in withheld.url_query)
    needed = {name: f"the value of header {header!r}" for header, name in left.items()}
    needed |= {URL_VARIABLE: f"written as {form}"} if form else {}
    needed |= {n: f"inference parameter {'.'.join(map(str, p))}" for p, n in paths.items()}
    missing = [f"{name} ({what})" for name, what in needed.items() if name not in os.environ]
    if missing:
        hint = " Headers may also be given as headers={...}." if withheld.headers else ""
        raise CredentialError(
            f"{who} needs credentials, which are never stored. Set in the environment: "
            f"{'; '.join(missing)}.{hint}"
        )
    full = copy.deepcopy(dict(options))
    values = {**(headers or {}), **{header: os.environ[name] for header, name in left.items()}}
    full["extra_headers"] = values or None
    if form:
        full["base_url"] = _with_credentials(full["base_url"], withheld, form)
    for path, name in paths.items():
        holder = reduce(getitem, path[:-1], full["inference_params"])
        if isinstance(holder, list):
            holder.insert(int(path[-1]), os.environ[name])
        else:
            holder[path[-1]] = os.environ[name]
    return full


def _with_credentials(url: str, withheld: Withheld, form: str) -> str:
    text = os.environ[URL_VARIABLE]
    user, _, query = text.partition("?") if withheld.url_user else ("", "", text.lstrip("?"))
    names = {each.partition("=")[0] for each in query.split("&")}
    if (withheld.url_user and not user) or not names.issuperset(withheld.url_query):
        raise CredentialError(f"{URL_VARIABLE} does not hold what is needed. Write it as {form}.")
    if user:
        url = url.replace("://", f"://{user.removesuffix('@')}@", 1)
    return f"{url}{'&' if '?' in url else '?'}{query}" if query else url
