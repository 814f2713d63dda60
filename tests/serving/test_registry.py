"""Names, versions and leases against a simple model: whatever happens, in whatever order."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bedplate.core.errors import SkinError, UnknownModelError, UsageError
from bedplate.serving.callers.caller_guard import Caller
from bedplate.serving.models import residency
from bedplate.serving.models.registry import Lease, ModelRequest, Registry, Scanned
from bedplate.serving.models.residency import Residency
from bedplate.serving.models.served_skin import ServedSkin
from bedplate.serving.schemas.http_errors import StatusError
from bedplate.skins.files import Card
from bedplate.skins.output import TextOutput
from bedplate.skins.skin import BaseReference

ANYBODY = Caller()
NAMES = ("a", "b", "c", "d", "e")
numbers = itertools.count()


class Engine:
    """Stands for a base: the registry only groups by it."""


def card(name: str, skin_type: str = "lora") -> Card:
    base = BaseReference(name="tiny", family="llama", weights_id="0")
    parts = () if skin_type == "prompt" else (skin_type,)
    return Card(f"{name}{next(numbers)}", name, parts, base, ("text",), TextOutput(), "plain", None, None)


class Skin(ServedSkin):
    """Comes and goes like a skin, and watches that the rules of coming and going are kept."""

    loaded = 0
    peak = 0
    lock = threading.Lock()

    def __init__(self, engine: Engine, name: str, skin_type: str = "lora", fails: bool = False) -> None:
        self.card, self.engine, self.name, self.warnings = card(name, skin_type), engine, name, []
        self.fails, self.resident, self.loads = fails, False, 0

    def load(self) -> None:
        with Skin.lock:
            assert not self.resident, "loaded twice"
            self.loads += 1
            if self.fails:
                raise SkinError("its files changed")
            self.resident = True
            Skin.loaded += 1
            Skin.peak = max(Skin.peak, Skin.loaded)

    def unload(self) -> None:
        with Skin.lock:
            assert self.resident, "unloaded twice"
            self.resident = False
            Skin.loaded -= 1

    is_warm = True


async def settle(registry: Registry) -> None:
    """Until nothing moves any more."""
    pools = [*registry.adapters.values(), registry.plain]
    for _ in range(5):
        await asyncio.sleep(0)
    while any(pool._tasks or pool._timer for pool in pools):
        await asyncio.sleep(0.0005)


class Machine(RuleBasedStateMachine):
    """Three places for five names. The model: which version each name has, and who holds what."""

    @initialize(patience=st.sampled_from([0.0, 0.001]))
    def start(self, patience):
        residency.TURN_SECONDS = patience
        Skin.loaded = Skin.peak = 0
        self.loop = asyncio.new_event_loop()
        self.engine = Engine()
        self.registry = Registry([self.engine], adapters=3)
        self.names: dict[str, Skin] = {}
        self.all_skins: list[Skin] = []
        self.asking: list[tuple[str, asyncio.Task[Lease]]] = []
        self.leases: list[Lease] = []

    def run(self, work):
        async def work_and_settle():
            result = work()
            await settle(self.registry)
            return result

        result = self.loop.run_until_complete(work_and_settle())
        self.collect()
        return result

    def collect(self):
        """Leases that have been granted, and those that ended with an error."""
        for name, task in list(self.asking):
            if not task.done():
                continue
            self.asking.remove((name, task))
            error = None if task.cancelled() else task.exception()
            if error is None and not task.cancelled():
                self.leases.append(task.result())
            else:
                assert error is None or (isinstance(error, UnknownModelError) and name not in self.names)

    @rule(name=st.sampled_from(NAMES))
    def replace_skin(self, name):
        served = Skin(self.engine, name)
        self.all_skins.append(served)
        old = self.run(lambda: self.registry.replace(served))
        assert old is self.names.get(name)
        self.names[name] = served

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name):
        if name not in self.names:
            with pytest.raises(UnknownModelError):
                self.registry.remove(name)
            return
        served = self.names.pop(name)
        running = self.run(lambda: self.registry.remove(name))
        assert running == sum(lease.served is served for lease in self.leases)

    @rule(name=st.sampled_from(NAMES))
    def request_lease(self, name):
        current = self.names.get(name)
        before = set(map(id, self.leases))
        self.asking.append(
            (name, self.run(lambda: self.loop.create_task(self.registry.lease(ModelRequest(name, ANYBODY)))))
        )
        self.collect()
        if current is None:
            assert not self.asking or self.asking[-1][0] != name or not self.asking[-1][1].done()
        for lease in self.leases:
            if id(lease) not in before and lease.served.name == name:
                assert lease.served is current

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def give_back(self, data):
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        self.run(lease.release)
        self.run(lease.release)

    @precondition(lambda self: self.asking)
    @rule(data=st.data())
    def give_up(self, data):
        task = data.draw(st.sampled_from(self.asking))[1]
        self.run(task.cancel)

    @invariant()
    def what_is_held_is_here(self):
        assert Skin.peak <= 3
        for lease in self.leases:
            assert lease.served.resident
        for served in self.all_skins:
            if served not in self.names.values() and not any(lease.served is served for lease in self.leases):
                assert not served.resident, "a version that nobody can reach is still in memory"

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        end = time.monotonic() + 10
        while self.leases or self.asking:
            assert time.monotonic() < end, "a call waits for ever"
            while self.leases:
                self.run(self.leases.pop().release)
            self.run(lambda: None)
        for name in list(self.names):
            self.remove(name)
        assert Skin.loaded == 0
        assert not self.registry.retired
        self.loop.close()


Machine.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestLeases = Machine.TestCase


@pytest.fixture(autouse=True)
def _patience():
    before = residency.TURN_SECONDS
    yield
    residency.TURN_SECONDS = before


def registered(*names: str, places: int = 1, **kwargs) -> tuple[Registry, list[Skin]]:
    engine = Engine()
    registry = Registry([engine], adapters=places, prompt_skins=places)
    skins = [Skin(engine, name, **kwargs) for name in names]
    for skin in skins:
        registry.add(skin)
    return registry, skins


def test_the_skin_that_was_used_longest_ago_makes_room():
    registry, (a, b, c) = registered("a", "b", "c", places=2)

    async def work():
        for name in ("a", "b", "a", "c"):
            (await registry.lease(ModelRequest(name, ANYBODY))).release()
        await settle(registry)

    asyncio.run(work())
    assert (a.resident, b.resident, c.resident) == (True, False, True)


def test_a_skin_in_constant_use_gives_others_their_turn():
    """Two callers who never leave a gap would keep the one place for ever."""
    residency.TURN_SECONDS = 0.02
    registry, _ = registered("busy", "other")

    async def work():
        stop = False

        async def use():
            lease = await registry.lease(ModelRequest("busy", ANYBODY))
            while not stop:
                following = asyncio.create_task(registry.lease(ModelRequest("busy", ANYBODY)))
                await asyncio.sleep(0.002)
                if following.done():
                    lease.release()
                    lease = following.result()
                else:  # told to wait: finish first
                    lease.release()
                    lease = await following
            lease.release()

        users = [asyncio.create_task(use()) for _ in range(2)]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            lease = await registry.lease(ModelRequest("other", ANYBODY))
        stop = True
        lease.release()
        async with asyncio.timeout(5):
            await asyncio.gather(*users)

    asyncio.run(work())


def test_a_skin_that_cannot_be_loaded_is_503_and_the_next_call_tries_again(caplog):
    registry, (skin, good_skin) = registered("bad", "good")
    skin.fails = True

    async def work():
        for _ in range(2):
            with pytest.raises(StatusError) as caught:
                await registry.lease(ModelRequest("bad", ANYBODY))
            assert (caught.value.status, caught.value.code) == (503, "skin_unavailable")
        (await registry.lease(ModelRequest("good", ANYBODY))).release()
        skin.fails = False
        (await registry.lease(ModelRequest("bad", ANYBODY))).release()
        await settle(registry)

    asyncio.run(work())
    assert skin.loads == 3
    assert not good_skin.resident
    assert "its files changed" in caplog.text


def test_who_waits_for_a_version_that_is_replaced_gets_the_new_one():
    registry, (first, _) = registered("a", "b")
    second = Skin(first.engine, "a")

    async def work():
        blocker = await registry.lease(ModelRequest("b", ANYBODY))
        waiting = asyncio.create_task(registry.lease(ModelRequest("a", ANYBODY)))
        await asyncio.sleep(0.01)
        registry.replace(second)
        blocker.release()
        assert (await waiting).served is second

    asyncio.run(work())
    assert first.loads == 0


def test_names():
    registry, (skin,) = registered("a")
    with pytest.raises(UsageError, match="two models"):
        registry.add(Skin(skin.engine, "a"))
    for name in ("", "a:b", "a\nb"):
        with pytest.raises(UsageError, match="cannot be a model name"):
            registry.add(Skin(skin.engine, name))
    with pytest.raises(UnknownModelError, match="none of those that are here"):
        registry.lookup("a", Caller(models=frozenset({"b"})))


def test_scans_add_replace_and_remove_but_never_touch_what_was_given(monkeypatch):
    registry, (fixed_skin,) = registered("given")
    monkeypatch.setattr(registry, "skin", lambda card: _fake(fixed_skin.engine, card))
    first_card, two, changed_card, duplicate_card = card("one"), card("two"), card("one"), card("one")
    assert registry.register(Scanned([first_card, two, card("given")], ["x: broken"])) == {
        "added": ["one", "two"],
        "replaced": [],
        "removed": [],
        "registered": 3,
        "problems": ["x: broken", "None: another model is called 'given'"],
    }
    changed = registry.register(Scanned([changed_card, duplicate_card], []))
    assert (changed["replaced"], changed["removed"]) == (["one"], ["two"])
    assert "has the name 'one' already" in changed["problems"][0]
    assert registry.models["one"].card is changed_card
    registry.remove("one")
    assert registry.register(Scanned([changed_card], []))["added"] == []
    assert registry.register(Scanned([duplicate_card], []))["added"] == ["one"]
    assert registry.pooled("given").state is Residency.UNLOADED


def _fake(engine: Engine, card: Card) -> Skin:
    skin = Skin(engine, card.name)
    skin.card = card
    return skin
