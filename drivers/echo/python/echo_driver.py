"""A driver in Python: it answers with its prompt, a word a step."""

from granville.hosting import interface as granville


class EchoModel:
    capabilities = granville.Capabilities(sampling=False)

    def __init__(self, spec: granville.ModelSpec) -> None:
        self.slots = spec.slots
        self.info = granville.ModelInfo("echo", context_size=0, memory_bytes=0)
        self._running: dict[str, tuple[list[str], int, int]] = {}  # a job's words, the most it may say, how many it has

    def submit(self, request: granville.Task) -> None:
        assert isinstance(request, granville.Generate)  # its capabilities name no other kind of work
        text = " ".join(request.messages[-1].content.split())
        ends = [text.find(stop) for stop in request.stop if stop in text]
        self._running[request.id] = (text[: min(ends, default=None)].split(" "), request.max_tokens, 0)

    def step(self, prefill_ms: float | None) -> list[granville.Event]:
        events: list[granville.Event] = []
        for id, (words, most, said) in list(self._running.items()):
            if said < min(len(words), most):
                events.append(granville.Token(id, words[said] if said == 0 else f" {words[said]}"))
                self._running[id] = (words, most, said + 1)
            else:
                del self._running[id]
                usage = granville.Usage(prompt_tokens=len(words), completion_tokens=said)
                events.append(granville.Finished(id, "stop" if said == len(words) else "length", usage))
        return events

    def cancel(self, id: str) -> None:
        self._running.pop(id, None)

    def park(self, id: str) -> None:
        raise granville.DriverError("this driver cannot park")  # Capabilities(park=False): the kernel does not ask

    resume = park

    def limit_cache(self, kv_ram_bytes: int) -> None:
        """Nothing is cached."""

    def stats(self) -> dict[str, int | float | str]:
        return {"running": len(self._running)}

    def interrupt(self) -> None:
        """Steps are short: there is nothing to cut short."""

    def close(self) -> None:
        self._running.clear()


class EchoDriver:
    name, version = "granville-echo-py", "1.0.0"

    def load(self, spec: granville.ModelSpec) -> EchoModel:
        if not spec.path.exists():
            raise granville.DriverError(f"there is no file {spec.path}")
        return EchoModel(spec)
