"""Who comes to the daemon in the simulation, and what they insist on in what they are told."""

from __future__ import annotations

import errno
from collections import defaultdict, deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import msgpack
import trio
import trio.testing

from granville.doors.address import Address
from granville.doors.peer import Peer
from granville.doors.senders import Senders
from granville.wire.framing import FrameReader
from tests.sim.scenario import Kind, Scenario

if TYPE_CHECKING:
    from tests.sim.world import World

Map = dict[str, Any]
PATIENCE_S = 1e5
REFUSALS = {400, 404, 409, 413, 422, 429, 503}


@dataclass(frozen=True)
class SimPeer(Peer):
    """Someone on a Unix socket: end of file alone does not mean that they have gone."""

    gone: trio.Event = field(default_factory=trio.Event)

    async def hung_up(self, *, at_end_of_file: bool) -> None:
        await self.gone.wait()


@dataclass(eq=False)
class Ask:
    """A request as it was sent, and what is due to it."""

    message: Map
    words: list[str]
    """What a model says to it, when nothing stops it."""
    conflicts: bool = False
    """Its id may be another's."""

    @property
    def id(self) -> str:
        return str(self.message["id"])


class Reader:
    """Checks one stream of messages. Ids are told apart by the ACKs between them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sent: dict[str, deque[Ask]] = defaultdict(deque)
        """Neither acknowledged nor refused."""
        self.live: dict[str, Ask] = {}
        self.elsewhere: set[str] = set()
        """Ids whose answer may go another way."""
        self.asked = 0
        """Control operations that have no reply yet."""
        self._deltas: dict[str, str] = defaultdict(str)
        self._streams: dict[str, set[bool]] = defaultdict(set)
        self._changed = trio.Event()

    def expect(self, ask: Ask) -> None:
        self.sent[ask.id].append(ask)

    def may_lose(self, id: str) -> None:
        self.elsewhere.add(id)
        self._wake()

    def take(self, message: Map) -> None:
        if "rid" in message or "op" in message:
            self.asked -= 1
            self.world.check_reply(message)
        elif message.get("status") == "accepted":
            ask = self.sent[message["id"]].popleft()
            assert list(message) == ["id", "status"]
            if ask.message.get("callback") is None:
                self.live[ask.id] = ask
                self._streams[ask.id].add(bool(ask.message.get("stream")))
        elif "delta" in message:
            assert message["id"] in self.live, "a delta before its ACK, or after its end"
            self._deltas[message["id"]] += message["delta"]
        elif message.get("code") == 409 or message["id"] not in self.live:
            self._refused(message)
        else:
            ask = self.live.pop(message["id"])
            self.world.check_end(ask, message, self._deltas.pop(ask.id, ""), self._streams.pop(ask.id))
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _refused(self, message: Map) -> None:
        assert "error" in message, f"an end without a beginning: {message}"
        assert message["code"] in REFUSALS, message
        ask = self.sent[message["id"]].popleft()
        self.world.check_refusal(ask, message)

    def has_all(self) -> bool:
        return not any(self.sent.values()) and not self.asked and not (self.live.keys() - self.elsewhere)

    async def all_read(self) -> None:
        with trio.move_on_after(PATIENCE_S):
            while not self.has_all():
                await self._changed.wait()
        assert self.has_all(), f"never answered: {self.live} {dict(self.sent)} {self.asked} operations"


class Person:
    """One client and its connection."""

    def __init__(self, world: World, number: int, kind: Kind) -> None:
        scenario = world.scenario
        self.world = world
        self.kind = kind
        self.number = number
        self.rng = Random(f"{scenario.seed} person {number}")
        self.reader = Reader(world)
        self.peer = SimPeer(None)
        self.stream: Any
        self.theirs: Any
        make_pair = trio.testing.lockstep_stream_pair if kind == "slow" else trio.testing.memory_stream_pair
        self.stream, self.theirs = make_pair()
        self._asks: list[Ask] = []

    async def run(self) -> None:
        scenario, rng = self.world.scenario, self.rng
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, nursery.cancel_scope)
            leaves_at = rng.randrange(scenario.requests) if self.kind == "leaving" else None
            for n in range(scenario.requests):
                await trio.sleep(rng.expovariate(1 / scenario.pause_s) if scenario.pause_s else 0)
                if n == leaves_at:
                    await self._leave()
                    break
                await self._send(self._draw(n))
                if rng.random() < 0.15:
                    await self._send_control(n)
            else:
                if self.kind == "half-closing":
                    await self.stream.send_eof()
                await self.reader.all_read()
            nursery.cancel_scope.cancel()
        self.world.lossy |= self.reader.live.keys()
        self.peer.gone.set()
        await trio.aclose_forcefully(self.stream)

    async def _leave(self) -> None:
        """In the middle of a message, now and then."""
        for id in (*self.reader.live, *(id for id, asks in self.reader.sent.items() if asks)):
            self.world.lossy.add(id)
        if self.rng.random() < 0.3:
            await self._give(b"\x85\xa2id")

    async def _read(self, scope: trio.CancelScope) -> None:
        frames = FrameReader()
        while True:
            if self.kind == "slow":
                await trio.sleep(self.rng.choice([0.0, 0.3, 5.0]))
            data = await self.stream.receive_some(700 if self.kind == "slow" else 65536)
            if not data:
                assert self.reader.has_all(), "the daemon closed the connection"
                scope.cancel()
                return
            for value in frames.feed(data):
                assert isinstance(value, dict)
                self.reader.take(value)

    async def _send(self, asks: list[Ask]) -> None:
        for ask in asks:
            self._asks.append(ask)
            self.reader.expect(ask)
            self.world.expect(ask)
        await self._give(b"".join(msgpack.packb(ask.message) for ask in asks))

    async def _send_control(self, n: int) -> None:
        rng, scenario = self.rng, self.world.scenario
        op = rng.choice(["cancel", "status", "job", "models", "ping", "warm", "warm"])
        message: Map = {"op": op, "rid": f"{self.number}-{n}"}
        if op == "cancel" and not scenario.cancels:
            return
        if op == "warm":
            message |= self._draw_wish()
        if op in ("cancel", "job"):
            message |= {"op": "cancel" if op == "cancel" else "status", "id": self.world.some_id(rng)}
        if op == "cancel":
            self.world.cancelled.add(message["id"])
        self.reader.asked += 1
        await self._give(msgpack.packb(message))

    async def _give(self, data: bytes) -> None:
        with trio.fail_after(PATIENCE_S):
            await self.stream.send_all(data)

    def _draw(self, n: int) -> list[Ask]:
        """What is sent next: a new request most often, or two; or one that has been sent before, or nearly."""
        rng, world = self.rng, self.world
        if world.scenario.repeats and world.repeatable and rng.random() < 0.25:
            earlier = rng.choice(world.repeatable)
            message = dict(earlier.ask.message)
            if rng.random() < 0.3:
                return [self._conflicting(earlier.ask)]
            world.repeatable.remove(earlier)
            if message.get("callback") is None:
                for reader in (earlier.reader, self.reader):  # whoever is heard last gets the answer
                    reader.may_lose(earlier.ask.id)
                world.repeats.add(earlier.ask.id)
                return [Ask(message | {"stream": rng.random() < 0.5}, earlier.ask.words)]
            return [Ask(message, earlier.ask.words)]
        asks = [self._new(f"{self.number}.{n}.{k}") for k in range(rng.choice([1, 1, 1, 3]))]
        for ask in asks:
            if self.kind != "leaving" and rng.random() < 0.3 and "timeout_ms" not in ask.message:
                world.repeatable.append(Repeatable(ask, self.reader))
        return asks

    def _conflicting(self, ask: Ask) -> Ask:
        """Another request under an id that may be live; over a callback, so that its end is not taken for the
        other's."""
        message = {"id": ask.id, "text": "another one", "callback": self.world.post.box(Random(0))}
        return Ask(message, ["another", "one"], conflicts=True)

    def _new(self, id: str) -> Ask:
        rng, scenario = self.rng, self.world.scenario
        type = rng.choice([model.type for model in scenario.models])
        words = [f"w{id}", *("abcdefgh"[i % 8] for i in range(rng.choice([0, 1, 3, 8, 20])))]
        message: Map = {"id": id, "client": rng.choice(["one", "two"])}
        if type != "inference":
            message["model_type"] = type
        if type == "embedding" and rng.random() < 0.5:
            message["documents"] = [" ".join(words), "second"]
        else:
            message["text"] = " ".join(words)
        if type == "rerank":
            message["documents"] = ["a b", "c d e"]
        if type in ("inference", "ranker"):
            self._draw_generation(message, words)
        level = rng.choice(scenario.classes)
        if level is not None or rng.random() < 0.5:
            message["priority"] = level
        elif rng.random() < 0.7:
            message["ranked"] = True
        if rng.random() < 0.15:
            message["model_id"] = rng.choice([f"fake-{n}" for n, m in enumerate(scenario.models) if m.type == type])
        if scenario.deadlines and rng.random() < 0.3:
            message["timeout_ms"] = rng.choice([1, 500, 3000, 20_000])
        if self.kind == "callback" and rng.random() < 0.8:
            message["callback"] = self.world.post.box(rng)
        if self.kind == "half-closing" and rng.random() < 0.2:
            message["unheard_of"] = 1
        return Ask(message, words)

    def _draw_wish(self) -> Map:
        """What may be asked next."""
        rng, scenario = self.rng, self.world.scenario
        what: Map = {"messages": [{"role": "user", "content": "first"}, {"role": "assistant", "content": "f"}]}
        if scenario.sessions and rng.random() < 0.6:
            what = {"session_id": f"s{rng.randrange(scenario.sessions)}"}
        priority = rng.choice(scenario.classes)
        return what | {"ttl_ms": rng.choice([1, 500, 20_000]), "wait": rng.random() < 0.5, "priority": priority}

    def _draw_generation(self, message: Map, words: list[str]) -> None:
        rng, scenario = self.rng, self.world.scenario
        if "poison" in scenario.faults and rng.random() < 0.1:
            words.append("poison")
            message["text"] = " ".join(words)
        message["stream"] = rng.random() < 0.5
        if rng.random() < 0.3:
            message["max_tokens"] = rng.choice([1, 2, 5])
        if scenario.sessions and rng.random() < 0.6:
            message["session_id"] = f"s{rng.randrange(scenario.sessions)}"
            message["reset_cache"] = rng.random() < 0.1
        if rng.random() < 0.15:
            text = message.pop("text")
            message["messages"] = [
                {"role": "user", "content": "first"},
                {"role": "assistant", "content": "f"},
                {"role": "user", "content": text},
            ]
        if ("session_id" in message or "messages" in message) and rng.random() < 0.4:
            message["overflow"] = "drop_oldest"


@dataclass(eq=False)
class Repeatable:
    ask: Ask
    reader: Reader


class Post(Senders):
    """The callbacks of all people: boxes behind addresses, some of them shut for a while, or for ever, or stuck."""

    def __init__(self, scenario: Scenario, world: World, senders: Senders) -> None:
        super().__init__(senders.bounds, senders.tally, senders.nursery, senders._transport)
        self._world = world
        self._rng = Random(f"{scenario.seed} post")
        self._opens_at = [0.0, 0.0, 0.0, self._rng.uniform(0, 40), float("inf")]
        self.shut = {"/sim/4", "/sim/stuck"}

    def box(self, rng: Random) -> str:
        return rng.choice([*(f"/sim/{n}" for n in range(5)), "/sim/stuck"])

    async def connect(self, address: Address) -> Any:
        await trio.lowlevel.checkpoint()
        if address.where == "/sim/stuck":
            return Stuck()
        if trio.current_time() < self._opens_at[int(address.where[-1])]:
            raise OSError(self._rng.choice([errno.ECONNREFUSED, errno.ENOENT, errno.ENOTCONN]), "nobody is there")
        return Box(self._world)


class Stuck:
    """A callback that takes nothing."""

    async def send_all(self, data: bytes) -> None:
        await trio.sleep_forever()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class Box:
    """One connection to a callback: one job's messages."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._frames = FrameReader()
        self._deltas = ""
        self._ended = False

    async def send_all(self, data: bytes) -> None:
        await trio.sleep(0.01)
        for message in self._frames.feed(data):
            assert isinstance(message, dict)
            assert not self._ended, "a message behind the end"
            if "delta" in message:
                self._deltas += message["delta"]
            else:
                self._ended = True
                self._world.check_delivery(message, self._deltas)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
