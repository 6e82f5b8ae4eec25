"""Imports of other packages that take less time than they would by themselves."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any


@contextmanager
def deferred_iri_grammar() -> Iterator[None]:
    """Let jsonschema be imported without the grammar of rfc3987-syntax 1.1, which takes a second.

    It is read once an IRI is to be checked.
    """
    name, modules = "rfc3987_syntax", sys.modules
    if name in modules or find_spec(name) is None:
        yield
        return
    later: Any = ModuleType(name)
    later.is_valid_syntax = lambda *asked: importlib.import_module(name).is_valid_syntax(*asked)
    modules[name] = later
    try:
        yield
    finally:
        modules.pop(name, None)
