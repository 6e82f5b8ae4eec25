"""What models cost and how much they read, by the lists that MLflow and litellm bundle."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def token_prices(model: str) -> tuple[float, float] | None:
    """US dollars for a token read and a token written by a model URI; None where not known.

    From the catalog that MLflow bundles, then from litellm's.
    """
    found = _catalog_entry(model)
    if not found.get("input_cost_per_token"):
        found = _litellm_entry(model)
    prices = [found.get(f"{side}_cost_per_token") or 0.0 for side in ("input", "output")]
    return (prices[0], prices[1]) if sum(prices) > 0 else None


def context_window(model: str) -> int | None:
    """Tokens that a model reads at most, by MLflow's catalog; None where it does not list it."""
    return int(_catalog_entry(model).get("max_input_tokens") or 0) or None


@functools.lru_cache(maxsize=256)
def _catalog_entry(model: str) -> Mapping[str, Any]:
    provider, _, name = model.partition(":/")
    with suppress(ImportError, KeyError, TypeError, ValueError):
        from mlflow.utils.providers import get_models

        found = [one for one in get_models(provider) if one["model"] == name.lstrip("/")]
        return dict(found[0]) if found else {}
    return {}


def _litellm_entry(model: str) -> Mapping[str, Any]:
    provider, _, name = model.replace(":/", "/", 1).partition("/")
    listed = getattr(sys.modules.get("litellm"), "model_cost", None) or _litellm_prices()
    found: Mapping[str, Any] = listed.get(f"{provider}/{name}") or listed.get(name) or {}
    found = listed.get(found.get("alias_of", "")) or found
    return found if str(found.get("litellm_provider")).startswith(provider) else {}


@functools.cache
def _litellm_prices() -> Mapping[str, Any]:
    """Read litellm 1.110.2's list from its file, since to import litellm takes seconds."""
    spec = find_spec("litellm")
    for folder in (spec and spec.submodule_search_locations) or ():
        with suppress(OSError, ValueError):
            listed = Path(folder, "model_prices_and_context_window_backup.json")
            return dict(json.loads(listed.read_text("utf-8")))
    return {}
