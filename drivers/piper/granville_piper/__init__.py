"""granville-piper: text to speech with Piper's voices, on piper-tts. Importing this costs nothing; the backend, which
is under the GPL, is loaded with the first model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from granville.hosting.interface import Model, ModelSpec

__all__ = ["PiperDriver"]


class PiperDriver:
    """The driver for Piper's voices: an .onnx file with its .onnx.json, or a folder of them. docs/speech.md has its
    options."""

    name = "granville-piper"
    version = "0.1.0"

    @property
    def config_schema(self) -> Mapping[str, Any]:
        from granville_speech.options import schema_of

        from granville_piper.options import Options

        return schema_of(Options)

    def load(self, spec: ModelSpec) -> Model:
        """Raises DriverError with a sentence for a person: piper-tts is not installed, or a file or an option is
        wrong."""
        from granville_piper.loading import load

        return load(spec)
