"""What a request wants of its answer's form, for the engine: what the model reads about it, and the guide."""

from __future__ import annotations

from collections.abc import Sequence

from granville.hosting.interface import Generate, Tool
from granville_llama.binding import Weights
from granville_llama.constrain import Grammars, Guide
from granville_llama.gbnf import GrammarError
from granville_llama.template import ChatTemplate, PromptError
from granville_llama.tools import check, described, mark_of, offered, told, tool_guide


class Guidance:
    def __init__(self, weights: Weights, template: ChatTemplate | None) -> None:
        self._grammars = Grammars(weights)
        self._template = template
        self._mark = None if template is None else mark_of(weights, template.source)
        self._openings: tuple[int, ...] = ()
        if template is not None and not template.takes_tools:
            self._openings = tuple(weights.tokenize(text, control=False)[0] for text in ('{"', "{"))

    def check(self, tools: Sequence[Tool], choice: str) -> None:
        """Raises PromptError."""
        try:
            check(tools, choice)
        except GrammarError as error:
            raise PromptError("bad_request", str(error)) from None

    def guide(self, request: Generate) -> Guide | None:
        """None for an answer of any form. Raises PromptError."""
        try:
            if request.constraint is not None:
                if request.tools:
                    raise GrammarError("tools: not together with a grammar or a json_schema")
                return self._grammars.guide(request.constraint)
            if not request.tools:
                return None
            check(request.tools, request.tool_choice)
            return tool_guide(self._grammars, request.tools, request.tool_choice, self._mark, self._openings)
        except GrammarError as error:
            raise PromptError("bad_request", str(error)) from None

    def tokens(self, request: Generate, template: ChatTemplate) -> list[int]:
        """The prompt, in which the model also reads what it may call. Raises PromptError."""
        tools = offered(request.tools, request.tool_choice)
        if template.takes_tools or not tools:
            return template.tokens(request.messages, _as_functions(tools))
        return template.tokens(told(request.messages, tools, request.tool_choice))


def _as_functions(tools: Sequence[Tool]) -> list[dict[str, object]]:
    """As templates expect them."""
    return [{"type": "function", "function": tool} for tool in map(described, tools)]
