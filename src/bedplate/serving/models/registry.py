"""The registry of served models by name, and the leases by which calls use them.

A skin's name points to a version, which never changes: replacing the name leaves the old version to the calls that
began with it, and it leaves memory with the last of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bedplate.core.errors import BedplateError, SkinError, UnknownModelError, UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.serving.callers.caller_guard import Caller
from bedplate.serving.models.residency import Guest, Moved, Residency, ResidentPool, run_in_thread
from bedplate.serving.models.served import Served, ServedBase
from bedplate.serving.models.served_cascade import ServedCascade
from bedplate.serving.models.served_classical import ServedClassical
from bedplate.serving.models.served_skin import ServedSkin
from bedplate.serving.models.skin_prefixes import SkinPrefixes
from bedplate.serving.models.skins_directory import Scanned
from bedplate.serving.schemas.http_errors import StatusError
from bedplate.serving.settings.route_config import Routed
from bedplate.skins.card import Card, card_of, parts_of
from bedplate.skins.skin import BaseReference, EndpointReference, EvaluatedWith, Skin


@dataclass(eq=False)
class Lease:
    """A model in use by one call. Whatever replaces the name meanwhile, this call ends on what it began with."""

    served: Served
    _guest: Guest | None = None
    routed: Routed | None = None
    """How the call came to this version, where its name was a route's."""

    def release(self) -> None:
        """Once the call is over; a second time does nothing."""
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.release()


@dataclass(frozen=True)
class ModelRequest:
    """What a call says of itself when it wants a model: its name for it, who asks; its own id, its path and its body as
    it was sent; origin: what a call that the server makes to itself is made for."""

    name: str
    caller: Caller
    id: str = ""
    path: str = ""
    sent: Mapping[str, Any] = field(default_factory=dict[str, Any])
    origin: object = None


class Registry:
    """The models of one server, by name, on its engines; the first engine is the main base's.

    adapters: skins with weights in memory, for each engine; prompt_skins: those without. prefix_bytes: what computed
    prompt beginnings may take. Belongs to the event loop's thread; before there is a loop, to the thread that loads.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        adapters: int = 32,
        prompt_skins: int = 512,
        prefix_bytes: int = 256 * 1024 * 1024,
        allow_other_weights: bool = False,
    ) -> None:
        self.engines = engines
        self.created = int(time.time())
        self.models: dict[str, Served] = {}
        self.prefixes = SkinPrefixes(prefix_bytes)
        self.adapters = {engine: ResidentPool(adapters) for engine in engines}
        self.plain = ResidentPool(prompt_skins)
        self._allow_other_weights = allow_other_weights
        self._guests: dict[str, Guest] = {}
        self._retired: list[Guest] = []
        self._scanned: dict[str, str] = {}
        """Name → id of what the last scan registered."""
        self._removed: set[str] = set()
        """Ids that were removed by hand: a scan does not bring them back."""

    @property
    def engine(self) -> Engine:
        """The main base's."""
        return self.engines[0]

    # Names

    def skin(self, source: Card | Skin, name: str | None = None) -> ServedSkin:
        """A skin on its base, or on none where it needs none, not yet served. SkinError where no engine has it, or it
        was judged with other weights."""
        mine = source.bases.get("main") if isinstance(source, Skin) else source.base
        if isinstance(mine, EndpointReference):
            raise SkinError(
                f"skin {source.name!r} is answered by {mine.name}, and a server answers with bases of its own; call it "
                "with `bedplate.load` or `bedplate predict`, or send clients to that endpoint"
            )
        if "cascade" in source.parts:
            return self._cascade(source, name)
        if mine is None:
            return ServedClassical(source, self.engine.base.spec.context_length, name=name)
        judged, embedded = source.evaluated_with, source.embedded_with
        engine, second = self._engine_of(mine, judged), None
        base_names = ", ".join(dict.fromkeys(engine.base.name for engine in self.engines))
        if engine is None:
            raise SkinError(
                f"skin {source.name!r} belongs to the base {mine.name} (weights {mine.weights_id[:12]}…); served here "
                f"is {base_names}"
            )
        if source.embedder is not None:
            second = self._engine_of(source.embedder, embedded)
            if second is None:
                raise SkinError(
                    f"skin {source.name!r} chooses its demonstrations with the base {source.embedder.name} (weights "
                    f"{source.embedder.weights_id[:12]}…); served here is {base_names}: serve that base too"
                )
        allowed = self._allow_other_weights
        return ServedSkin(engine, source, self.prefixes, embedder=second, name=name, allow_other_weights=allowed)

    def _cascade(self, source: Card | Skin, name: str | None) -> ServedCascade:
        card = card_of(source) if isinstance(source, Skin) else source
        parts = parts_of(card)
        if not parts:
            raise SkinError(f"skin {source.name!r} is a cascade in memory; write it, and serve its directory")
        return ServedCascade(card, self.skin(parts[0]), self.skin(parts[1]), name=name)

    def _pool(self, served: ServedSkin) -> ResidentPool:
        """Where it counts: with the adapters of the engine that has to hold its weights, if it has some."""
        engine = served.adapted_on
        return self.plain if engine is None else self.adapters[engine]

    def _engine_of(self, base: BaseReference, judged: EvaluatedWith | None) -> Engine | None:
        """The engine of this base that holds it as was `judged`, else its first."""
        its = [engine for engine in self.engines if base.has_weights_of(engine.base.identity)]
        evaluated_as = None if judged is None else (judged.weights, judged.kernel)
        return next(
            (engine for engine in its if (engine.weights, engine.kernel) == evaluated_as), its[0] if its else None
        )

    def label(self, engine: Engine) -> str:
        """What an engine is called: by its base's name, and where that stands for another engine, by how it holds it
        as well."""
        bases = [model for model in self.models.values() if isinstance(model, ServedBase)]
        base_name = next((model.name for model in bases if model.engine is engine), None)
        if base_name is not None:
            return base_name
        named = next(
            (model.name for model in bases if model.engine.base.identity == engine.base.identity), engine.base.name
        )
        return f"{named} ({engine.weights}, {engine.kernel})"

    def add(self, served: Served) -> None:
        """Serve it from now on. UsageError for a name that is taken or cannot be a model name."""
        name = served.name
        if not name or ":" in name or any(not c.isprintable() for c in name):
            raise UsageError(f"{name!r} cannot be a model name: it must be printable and without ':'; give another")
        if name in self.models:
            raise UsageError(f"two models are called {name!r}; rename one of them")
        self.models[name] = served
        if isinstance(served, ServedSkin):
            self._guests[name] = Guest(self._pool(served), served)
            self._removed.discard(served.card.id)

    def replace(self, served: ServedSkin) -> ServedSkin | None:
        """Serve it under its name instead of the skin that has the name, which is returned. UsageError for a base's."""
        old = self.models.get(served.name)
        if old is not None and not isinstance(old, ServedSkin):
            raise UsageError(f"{served.name!r} is a base; a skin cannot take its name")
        if old is not None:
            self._retire(served.name)
        self.add(served)
        return old

    def remove(self, name: str) -> int:
        """The skin is served no more. Returns how many calls still run on it. UnknownModelError."""
        guest = self.guest(name)
        holders = guest.holders
        served = self.models[name]
        assert isinstance(served, ServedSkin)
        self._removed.add(served.card.id)
        self._retire(name)
        return holders

    def _retire(self, name: str) -> None:
        guest = self._guests.pop(name)
        del self.models[name]
        self._scanned.pop(name, None)
        self._retired.append(guest)
        guest.retire()

    def guest(self, name: str) -> Guest:
        """A skin's place in memory. UnknownModelError for what is no skin here."""
        if name not in self._guests:
            raise UnknownModelError(f"no skin is called {name[:100]!r} here", param="name")
        return self._guests[name]

    @property
    def retired(self) -> list[Guest]:
        """Versions that are served no more, but still in use."""
        self._retired = [guest for guest in self._retired if guest.holders or guest.state is not Residency.UNLOADED]
        return self._retired

    def register(self, scanned: Scanned) -> dict[str, Any]:
        """Registers what a scan scanned: new skins are added, changed ones replace their name, and those of an earlier
        scan that lie there no more are removed. Skins that were given by hand stay as they are."""
        names: dict[str, list[str]] = {"added": [], "replaced": [], "removed": []}
        problems = list(scanned.problems)
        cards_by_name: dict[str, Card] = {}
        for card in scanned.cards:
            if card.name in cards_by_name:
                problems.append(
                    f"{card.directory}: {cards_by_name[card.name].directory} has the name {card.name!r} already"
                )
                continue
            cards_by_name[card.name] = card
            change, problem = self._register(card)
            if change is not None:
                names[change].append(card.name)
            if problem is not None:
                problems.append(f"{card.directory}: {problem}")
        for name in [name for name in self._scanned if name not in cards_by_name]:
            self._retire(name)
            names["removed"].append(name)
        return {**names, "registered": len(self._guests), "problems": problems}

    def _register(self, card: Card) -> tuple[str | None, str | None]:
        """("added" or "replaced", None), or (None, what is wrong with it, if anything is)."""
        existing = self.models.get(card.name)
        if isinstance(existing, ServedSkin) and existing.card.id == card.id:
            return None, None
        if card.id in self._removed:
            return None, None
        if existing is not None and card.name not in self._scanned:
            return None, f"another model is called {card.name!r}"
        try:
            served = self.skin(card)
            replaced = self.replace(served)
        except BedplateError as error:
            return None, error.message
        self._scanned[card.name] = card.id
        return ("added" if replaced is None else "replaced"), None

    # Use

    def visible(self, caller: Caller) -> list[Served]:
        """The models that the caller may use."""
        return [served for name, served in self.models.items() if caller.may_use(name)]

    def lookup(self, name: str, caller: Caller) -> Served:
        """UnknownModelError also for a model that the caller may not use: it learns nothing of it."""
        served = self.models.get(name) if caller.may_use(name) else None
        if served is None:
            model_names = ", ".join(_first(model.name for model in self.visible(caller)))
            hint = f"the models are: {model_names}" if model_names else "the caller may use none of those that are here"
            raise UnknownModelError(f"there is no model {name[:100]!r} here; {hint}", param="model")
        return served

    async def lease(self, model_request: ModelRequest) -> Lease:
        """The model to use for one call, in memory. Waits for its turn where more are wanted than fit."""
        name = model_request.name
        while True:
            served = self.lookup(name, model_request.caller)
            guest = self._guests.get(name)
            if guest is None or not isinstance(served, ServedSkin):
                return Lease(served)
            try:
                await guest.acquire()
            except Moved:
                continue
            except BedplateError as error:
                raise _unavailable(name) from error
            try:
                if not served.is_warm:
                    await run_in_thread(served.warm)
            except BaseException:
                guest.release()
                raise
            return Lease(served, guest)

    def describe(self, served: Served) -> dict[str, Any]:
        """The entry of /v1/models."""
        head = {"id": served.name, "object": "model", "created": self.created, "owned_by": "bedplate"}
        return {**head, "bedplate": {"base": served.answerer.describe().name, **served.describe()}}


def _first(names: Iterable[str], limit: int = 20) -> list[str]:
    listed = list(names)
    return listed if len(listed) <= limit else [*listed[:limit], f"and {len(listed) - limit} more"]


def _unavailable(name: str) -> StatusError:
    """Its files are not what was registered, or do not verify: nothing that the caller could change."""
    return StatusError(
        503, f"the skin {name!r} cannot be loaded; the server's log says why", "skin_unavailable", "model"
    )
