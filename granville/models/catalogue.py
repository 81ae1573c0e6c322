"""The embedded catalogue: models that are known by name, with their source, hash, size and licence.

It is the `models` section of registry.json (granville.registry.schema).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import msgspec

from granville.fetch.sources import Mirrors, Source, parse_source, with_facts
from granville.fetch.trees import tree_digest
from granville.registry.schema import embedded


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the catalogue. `license` is an SPDX expression, `type` what it is loaded for. It has either
    one `source`, or several `sources` of the same bytes, tried in order. A model that is a folder has `files`, the
    SHA-256 of each by its path there; its own is that of their list (granville.fetch.trees)."""

    description: str
    source: str | None = None
    sources: list[str] = []
    sha256: str
    size_bytes: int
    license: str
    type: str = "inference"
    driver: str | None = None
    """Where it is another than the daemon's `--driver`."""
    files: dict[str, str] = {}
    aliases: list[str] = []

    def __post_init__(self) -> None:
        if (self.source is None) == (not self.sources):
            raise ValueError("a model has either a `source` or `sources`")
        if self.files and tree_digest(self.files) != self.sha256:
            raise ValueError(f"the `sha256` of these `files` is {tree_digest(self.files)}")

    @property
    def all_sources(self) -> list[str]:
        return self.sources if self.source is None else [self.source]

    @property
    def origin(self) -> Source:
        found = tuple(
            with_facts(parse_source(source, self.sha256), sha256=self.sha256, size=self.size_bytes)
            for source in self.all_sources
        )
        return found[0] if len(found) == 1 else Mirrors(found)


@cache
def embedded_models() -> dict[str, ModelEntry]:
    """The models that this Granville came with."""
    models = embedded().models
    return {} if models is msgspec.UNSET else msgspec.json.decode(models, type=dict[str, ModelEntry])


class Catalogue:
    """Entries by name and alias, in any case."""

    def __init__(self, models: Mapping[str, ModelEntry] | None = None) -> None:
        self.models = embedded_models() if models is None else models
        self._by_name = {known.lower(): name for name, entry in self.models.items() for known in (name, *entry.aliases)}

    def find(self, name: str) -> ModelEntry | None:
        known = self._by_name.get(name.lower())
        return None if known is None else self.models[known]

    def names(self) -> list[str]:
        """Every name and alias that `find` knows."""
        return list(self._by_name)
