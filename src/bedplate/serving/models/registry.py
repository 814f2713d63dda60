"""Maps model names to served models (`Registry`), and gives calls leases on them.

A skin's name points to a version, which never changes. Replacing the name leaves the old version to the calls that
began with it; it is unloaded when the last of them ends.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bedplate.core.errors import BedplateError, SkinError, UnknownModelError, UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.serving.callers.caller_guard import Caller
from bedplate.serving.models.residency import PooledSkin, Replaced, Residency, ResidentPool, SkinPrefixes, run_in_thread
from bedplate.serving.models.served import Served, ServedBase
from bedplate.serving.models.served_skin import ServedCascade, ServedClassical, ServedSkin
from bedplate.serving.schemas.http_errors import LoadingError, StatusError
from bedplate.serving.settings.server_config import RouteConfig, Routed, need_model_name
from bedplate.skins.files import Card, card_of, parts_of, read_card, skin_directories
from bedplate.skins.skin import BaseReference, EndpointReference, EvaluatedWith, Skin

SOURCE_CHARACTERS = 1024


@dataclass(frozen=True)
class Scanned:
    """The result of a scan: the cards of skins, and a message for each skin that could not be read."""

    cards: Sequence[Card] = ()
    problems: Sequence[str] = ()


def locate_skin(root: Path, source: str) -> Path:
    """The directory that `source` (a path below the root, or relative to it) names. SkinError where it leads out,
    through a link, or to nothing."""
    if "\0" in source or not source:
        raise SkinError("source is not a path")
    if len(source) > SOURCE_CHARACTERS:
        raise SkinError(f"source is longer than {SOURCE_CHARACTERS:,} characters; give the skin's path")
    path, place = Path(source), root.resolve()
    if ".." in path.parts or (path.is_absolute() and not path.is_relative_to(place)):
        raise SkinError("source lies outside of the server's skins directory; put the skin there first")
    for part in (path.relative_to(place) if path.is_absolute() else path).parts:
        place /= part
        try:
            linked = place.is_symlink()
        except OSError as error:  # a name that no file system has room for
            raise SkinError(f"{part[:80]!r} in source cannot be looked at: {error.strerror}") from None
        if linked:
            raise SkinError(f"{part!r} in source is a symbolic link; put the skin itself into the skins directory")
    if not place.is_dir():
        raise SkinError(f"there is no directory {source[:200]!r} in the server's skins directory")
    return place


def scan_skins(root: Path) -> Scanned:
    """Every skin below the root, by `skin.json` alone (a cascade's: and those of its two skins). UsageError."""
    if not root.is_dir():
        raise UsageError(f"skins_directory {root} is not a directory; make it, or leave it out")
    cards: list[Card] = []
    problems: list[str] = []
    for directory in skin_directories(root.resolve()):
        try:
            card = read_card(directory)
            parts_of(card)
            cards.append(card)
        except (SkinError, OSError) as error:
            problems.append(f"{directory}: {error}")
    return Scanned(cards, problems)


@dataclass(eq=False)
class Lease:
    """A model in use by one call, which stays the same version until the call ends."""

    served: Served
    _pooled: PooledSkin | None = None
    routed: Routed | None = None
    """How the call came to this version, where its name was a route's."""

    def release(self) -> None:
        """Ends the use of the model; calling it again does nothing."""
        pooled, self._pooled = self._pooled, None
        if pooled is not None:
            pooled.release()


@dataclass(frozen=True)
class ModelRequest:
    """A call's request for a model: the name and the caller; the call's id, path and body as it was sent. origin: the
    purpose of a call that the server makes to itself, None for a client's."""

    name: str
    caller: Caller
    id: str = ""
    path: str = ""
    sent: Mapping[str, Any] = field(default_factory=dict[str, Any])
    origin: object = None


class Registry:
    """The models of one server, by name, on its engines; the first engine is the main base's, where there is one.

    adapters: skins with weights in memory, for each engine; prompt_skins: those without. prefix_bytes: what computed
    prompt beginnings may take. routes: a model with a route's name must be one of its versions. Belongs to the event
    loop's thread; before there is a loop, to the thread that loads, which may set the engines later as well.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        adapters: int = 32,
        prompt_skins: int = 512,
        prefix_bytes: int = 256 * 1024 * 1024,
        allow_other_weights: bool = False,
        routes: Mapping[str, RouteConfig] | None = None,
    ) -> None:
        self.created = int(time.time())
        self.models: dict[str, Served] = {}
        self.prefixes = SkinPrefixes(prefix_bytes)
        self._adapters_per_engine = adapters
        self.set_engines(engines)
        self.loading = False
        """Whether bases are still loaded: a name that is not served may be served soon."""
        self.plain = ResidentPool(prompt_skins)
        self._allow_other_weights, self._routes = allow_other_weights, routes or {}
        self._pooled: dict[str, PooledSkin] = {}
        self._retired: list[PooledSkin] = []
        self._scanned: dict[str, str] = {}
        """Name → id of what the last scan registered."""
        self.removed: dict[str, str] = {}
        """Name → id of skins that were removed by hand: a scan does not bring them back."""
        self._precedence: dict[Path | None, int] = {}

    def set_engines(self, engines: Sequence[Engine]) -> None:
        self.engines = engines
        self.adapters = {engine: ResidentPool(self._adapters_per_engine) for engine in engines}

    # Names

    def skin(self, source: Card | Skin, name: str | None = None) -> ServedSkin:
        """Builds the served form of a skin, on its base or without one, without registering it. SkinError where its
        base is not here, or it was judged with other weights."""
        mine = source.bases.get("main") if isinstance(source, Skin) else source.base
        if isinstance(mine, EndpointReference):
            raise SkinError(
                f"skin {source.name!r} is answered by {mine.name}, and a server answers with bases of its own; call it "
                "with `bedplate.load` or `bedplate predict`, or send clients to that endpoint"
            )
        if "cascade" in source.parts:
            card = card_of(source) if isinstance(source, Skin) else source
            parts = parts_of(card)
            if not parts:
                raise SkinError(f"skin {source.name!r} is a cascade in memory; write it, and serve its directory")
            return ServedCascade(card, self.skin(parts[0]), self.skin(parts[1]), name=name)
        if mine is None:
            return ServedClassical(source, name=name)
        engine = self._engine_of(source, mine, source.evaluated_with)
        second = source.embedder and self._engine_of(source, source.embedder, source.embedded_with)
        allowed = self._allow_other_weights
        return ServedSkin(engine, source, self.prefixes, embedder=second, name=name, allow_other_weights=allowed)

    def _engine_of(self, source: Card | Skin, base: BaseReference, judged: EvaluatedWith | None) -> Engine:
        """Returns the engine of this base with the weights and kernel that were `judged`, else its first. SkinError."""
        its = [engine for engine in self.engines if base.has_weights_of(engine.base.identity)]
        if not its:
            base_names = ", ".join(dict.fromkeys(engine.base.name for engine in self.engines)) or "no base"
            raise SkinError(
                f"skin {source.name!r} belongs to the base {base.name} (weights {base.weights_id[:12]}…); served here "
                f"is {base_names}: serve that base too"
            )
        evaluated_as = None if judged is None else (judged.weights, judged.kernel)
        return next((engine for engine in its if (engine.weights, engine.kernel) == evaluated_as), its[0])

    def label(self, engine: Engine) -> str:
        """An engine's name in metrics: its base's, with weights and kernel where another engine has the plain name."""
        bases = [model for model in self.models.values() if isinstance(model, ServedBase)]
        for model in bases:
            if model.engine is engine:
                return model.name
        names = (model.name for model in bases if model.engine.base.identity == engine.base.identity)
        return f"{next(names, engine.base.name)} ({engine.weights}, {engine.kernel})"

    def check_name(self, served: Served) -> None:
        """UsageError for a name that cannot be a model's, or that a skin cannot take because it is a base's or leads
        elsewhere."""
        name = served.name
        need_model_name(name)
        if isinstance(served, ServedSkin) and isinstance(self.models.get(name), ServedBase):
            raise UsageError(f"{name!r} is a base; a skin cannot take its name")
        route = self._routes.get(name)
        if route is not None and name not in (*route.versions, route.shadow):
            raise UsageError(f"{name!r} is the name of a route that does not lead to it; give the skin another name")

    def add(self, served: Served) -> None:
        """Serves it from now on. UsageError for a name that is taken or cannot be a model name."""
        name = served.name
        self.check_name(served)
        if name in self.models:
            raise UsageError(f"two models are called {name!r}; rename one of them")
        self.models[name] = served
        if isinstance(served, ServedSkin):
            # It counts with the adapters of the engine that has to hold its weights, if it has some.
            pool = self.plain if served.adapted_on is None else self.adapters[served.adapted_on]
            self._pooled[name] = PooledSkin(pool, served)
            self.removed.pop(name, None)

    def complete(self, models: Sequence[Served]) -> None:
        """Serves these as well once all bases are loaded, and lists them first. A scanned skin, which was served before
        it was known what a base is called, leaves that base its name. UsageError as `add`."""
        for served in models:
            if self.models.get(served.name) is not served:
                if served.name in self._scanned:
                    self._retire(served.name)
                self.add(served)
        names = dict.fromkeys([*(served.name for served in models), *self.models])
        self.models = {name: self.models[name] for name in names}
        self.loading = False

    def set_precedence(self, card: Card, name: str) -> None:
        """Of skins with one name a scan prefers those that were served under it by hand, and takes last those that were
        served under another: a canary does not take the name of the version before it."""
        self._precedence[card.directory] = -1 if card.name == name else 1

    def replace(self, served: ServedSkin) -> ServedSkin | None:
        """Serves it in place of the skin that has its name, which is returned. UsageError for a base's name."""
        self.check_name(served)
        old = self.models.get(served.name)
        assert old is None or isinstance(old, ServedSkin)
        if old is not None:
            self._retire(served.name)
        self.add(served)
        return old

    def remove(self, name: str) -> int:
        """Stops serving the skin. Returns the number of calls that still run on it. UnknownModelError."""
        use_count, served = self.pooled(name).use_count, self.models[name]
        assert isinstance(served, ServedSkin)
        self.removed[name] = served.card.id
        self._retire(name)
        return use_count

    def _retire(self, name: str) -> None:
        pooled = self._pooled.pop(name)
        del self.models[name]
        self._scanned.pop(name, None)
        self._retired.append(pooled)
        pooled.retire()

    def pooled(self, name: str) -> PooledSkin:
        """Returns the skin's state in its pool. UnknownModelError for a name that is no skin's."""
        if name not in self._pooled:
            raise UnknownModelError(f"no skin is called {name[:100]!r} here", param="name")
        return self._pooled[name]

    @property
    def retired(self) -> list[PooledSkin]:
        """Versions that are no longer served and still in use."""
        self._retired = [
            pooled for pooled in self._retired if pooled.use_count or pooled.state is not Residency.UNLOADED
        ]
        return self._retired

    def register(self, scanned: Scanned) -> dict[str, Any]:
        """Registers the skins of a scan: new ones are added, changed ones replaced, and those of an earlier scan that
        are gone are removed. Skins that were named stay as they are."""
        names: dict[str, list[str]] = {"added": [], "replaced": [], "removed": []}
        problems = list(scanned.problems)
        cards_by_name: dict[str, Card] = {}
        for card in sorted(scanned.cards, key=lambda card: self._precedence.get(card.directory, 0)):
            twin = cards_by_name.setdefault(card.name, card)
            try:
                if twin is not card:
                    raise UsageError(f"{twin.directory} has the name {card.name!r} already")
                change = self._register(card)
                if change is not None:
                    names[change].append(card.name)
            except BedplateError as error:
                problems.append(f"{card.directory}: {error.message}")
        for name in [name for name in self._scanned if name not in cards_by_name]:
            self._retire(name)
            names["removed"].append(name)
        return {**names, "registered": len(self._pooled), "problems": problems}

    def _register(self, card: Card) -> str | None:
        """Returns "added", "replaced", or None where nothing changes."""
        existing = self.models.get(card.name)
        if isinstance(existing, ServedSkin) and existing.card.id == card.id:
            return None
        if self.removed.get(card.name) == card.id:
            raise UsageError(f"{card.name!r} was deleted while the server ran; POST /admin/skins serves it again")
        if existing is not None and card.name not in self._scanned:
            raise UsageError(f"another model is called {card.name!r}")
        replaced = self.replace(self.skin(card))
        self._scanned[card.name] = card.id
        return "added" if replaced is None else "replaced"

    # Use

    def visible(self, caller: Caller) -> list[Served]:
        return [served for name, served in self.models.items() if caller.may_use(name)]

    def lookup(self, name: str, caller: Caller) -> Served:
        """UnknownModelError also for a model that the caller may not use: it learns nothing of it. Any other name is
        a LoadingError while bases load."""
        served = self.models.get(name) if caller.may_use(name) else None
        if served is None and self.loading:
            raise LoadingError(f"{name[:100]!r} is not served yet: the server is loading its models; try again soon")
        if served is None:
            names = [*(model.name for model in self.visible(caller)), *filter(caller.may_use, self._routes)]
            listed = ", ".join(names[:20]) + (f", and {len(names) - 20} more" if len(names) > 20 else "")
            hint = f"the models are: {listed}" if names else "the caller may use none of those that are here"
            raise UnknownModelError(f"there is no model {name[:100]!r} here; {hint}", param="model")
        return served

    async def lease(self, model_request: ModelRequest) -> Lease:
        """Leases a model for one call and loads it if need be; waits where more skins are in use than fit in memory."""
        name = model_request.name
        while True:
            served = self.lookup(name, model_request.caller)
            pooled = self._pooled.get(name)
            if pooled is None or not isinstance(served, ServedSkin):
                return Lease(served)
            try:
                await pooled.acquire()
            except Replaced:
                continue
            except BedplateError as error:
                # Its files are not what was registered, or do not verify: nothing that the caller could change.
                message = f"the skin {name!r} cannot be loaded; the server's log says why"
                raise StatusError(503, message, "skin_unavailable", "model") from error
            try:
                if not served.is_warm:
                    await run_in_thread(served.warm)
            except BaseException:
                pooled.release()
                raise
            return Lease(served, pooled)

    def describe(self, served: Served) -> dict[str, Any]:
        head = {"id": served.name, "object": "model", "created": self.created, "owned_by": "bedplate"}
        return {**head, "bedplate": {"base": served.answerer.describe().name, **served.describe()}}
