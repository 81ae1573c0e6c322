"""granville-llama: GGUF models on llama.cpp, with continuous batching. Importing this costs nothing; llama.cpp is
loaded with the first model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from granville.hosting.interface import Model, ModelSpec

__all__ = ["LlamaDriver"]


class LlamaDriver:
    """The driver for GGUF files. docs/drivers.md has its options."""

    name = "granville-llama"
    version = "0.1.0"
    tuning_module = "granville_llama.tuning"

    @property
    def backend(self) -> str:
        """The bindings are pinned, and their version says which llama.cpp is in them."""
        from importlib.metadata import version

        return f"llama-cpp-python {version('llama-cpp-python')}"

    @property
    def config_schema(self) -> Mapping[str, Any]:
        from granville_llama.options import config_schema

        return config_schema()

    def load(self, spec: ModelSpec) -> Model:
        """Raises DriverError with a sentence for a person when the file or an option is wrong."""
        from granville_llama.loading import load

        return load(spec)
