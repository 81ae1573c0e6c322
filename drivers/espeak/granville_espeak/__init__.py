"""granville-espeak: text to speech with espeak-ng, small and in a hundred languages. Importing this costs nothing; the
library, which is under the GPL, is loaded with the first model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from granville.hosting.interface import Model, ModelSpec

__all__ = ["EspeakDriver"]


class EspeakDriver:
    """The driver for espeak-ng, which brings its voices: the model is named `espeak` and is no file. docs/speech.md has
    its options."""

    name = "granville-espeak"
    version = "0.1.0"

    @property
    def config_schema(self) -> Mapping[str, Any]:
        from granville_speech.options import schema_of

        from granville_espeak.options import Options

        return schema_of(Options)

    def load(self, spec: ModelSpec) -> Model:
        """Raises DriverError with a sentence for a person: espeakng-loader is not installed, or the name or an option
        is wrong."""
        from granville_espeak.loading import load

        return load(spec)
