"""A sampler chain for each request, in llama.cpp's own order: penalties, top_k, top_p, min_p, temperature."""

from __future__ import annotations

import secrets

from granville.hosting.interface import Sampling
from granville_llama.binding import SamplerChain

PENALTY_TOKENS = 64
"""How far back `repeat_penalty` looks: llama.cpp's default."""


def sampler_chain(sampling: Sampling, vocabulary_size: int, prompt: list[int]) -> SamplerChain:
    """The chain for one job. It keeps a random state of its own, so what a seed gives depends on no other job."""
    chain = SamplerChain()
    if sampling.repeat_penalty != 1.0:
        chain.penalties(vocabulary_size, PENALTY_TOKENS, sampling.repeat_penalty)
        for token in prompt[-PENALTY_TOKENS:]:
            chain.accept(token)
    if sampling.temperature <= 0:
        chain.greedy()
        return chain
    if sampling.top_k > 0:
        chain.top_k(sampling.top_k)
    if sampling.top_p < 1:
        chain.top_p(sampling.top_p)
    if sampling.min_p > 0:
        chain.min_p(sampling.min_p)
    chain.temperature(sampling.temperature)
    # 2**32 - 1 means "draw one" to llama.cpp.
    chain.distribution(secrets.randbelow(2**32 - 1) if sampling.seed is None else sampling.seed)
    return chain
