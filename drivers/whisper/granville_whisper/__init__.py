"""granville-whisper: speech to text with Whisper models, on faster-whisper. Importing this costs nothing; the backend
is loaded with the first model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from granville.hosting.interface import Model, ModelSpec

__all__ = ["WhisperDriver"]


class WhisperDriver:
    """The driver for Whisper models in CTranslate2's format, a folder each. docs/speech.md has its options."""

    name = "granville-whisper"
    version = "0.1.0"

    @property
    def config_schema(self) -> Mapping[str, Any]:
        from granville_speech.options import schema_of

        from granville_whisper.options import Options

        return schema_of(Options)

    def load(self, spec: ModelSpec) -> Model:
        """Raises DriverError with a sentence for a person: faster-whisper is not installed, or the folder or an option
        is wrong."""
        from granville_whisper.loading import load

        return load(spec)
