"""What every scenario has in common: the same file, threads, slots and lengths for us and for the peer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    rounds: int
    """Each subject is measured once a round, in turn."""
    threads: int
    context_size: int
    """Tokens a slot."""
    max_tokens: int
    """Length of every answer; prompts are such that the model does not stop before."""
    requests_per_client: int
    """In one round."""
    repack: bool
    """Whether llama.cpp may rearrange the weights for the CPU (its AMX code among others), on both sides."""

    churn_minutes: float

    before: str | None = None
    """The interpreter of an environment with an earlier Granville, to be measured beside this one."""

    @property
    def peer_flags(self) -> list[str]:
        return [] if self.repack else ["--no-repack"]

    @property
    def driver_flags(self) -> list[str]:
        """For `granville serve`."""
        return [
            *("--threads", str(self.threads)),
            *("--context-size", str(self.context_size)),
            *("--driver-config", f"repack={'true' if self.repack else 'false'}"),
        ]
