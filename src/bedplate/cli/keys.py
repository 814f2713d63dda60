"""`bedplate keys`: the API keys of a server: make one, list them, revoke one, change one's secret."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns, count, whole
from bedplate.core.errors import BedplateError, UsageError
from bedplate.core.files import bedplate_home
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.core.tables import Column, show

if TYPE_CHECKING:
    from bedplate.serving.callers.api_keys import Key, KeysFile


def keys(
    action: Annotated[Literal["create", "list", "revoke", "rotate"], typer.Argument(help="What to do.")],
    which: Annotated[
        str | None, typer.Argument(help="create: a name for the key; revoke and rotate: the key's id.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="create: models that it may use (or `a,b`). Default: all."),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="The keys file. Default: keys.yaml in BEDPLATE_HOME.")] = None,
    tenant: Annotated[
        str | None, typer.Option(help="create: keys of one tenant share cached prompts. Default: none do.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="create: the key may use /admin and /metrics.")] = False,
    requests_per_minute: Annotated[int | None, whole(help="create: most calls in any minute.")] = None,
    tokens_per_minute: Annotated[int | None, whole(help="create: most tokens in any minute, such as 50k.")] = None,
    concurrent: Annotated[int | None, whole(help="create: most calls at once.")] = None,
    usd_per_day: Annotated[
        float | None, count(metavar="USD", help="create: most dollars a day; needs a price in the server's file.")
    ] = None,
    usd_per_month: Annotated[float | None, count(metavar="USD", help="create: most dollars a month.")] = None,
    tokens_per_day: Annotated[int | None, whole(help="create: most tokens a day, such as 2M.")] = None,
    tokens_per_month: Annotated[int | None, whole(help="create: most tokens a month.")] = None,
    expires: Annotated[str | None, typer.Option(help="create: when the key ends, such as 2027-01-31 (UTC).")] = None,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make, list, revoke or rotate API keys. A key is shown once, when made; a running server reads the change."""
    try:
        from bedplate.serving.callers.api_keys import change_keys, key_of, new_secret, read_keys, replace_key
    except ModuleNotFoundError as error:
        raise UsageError(f"serving needs the package {error.name}; install bedplate[serve]") from error

    if models and action != "create":
        raise UsageError(f"`bedplate keys {action}` takes {'no name' if action == 'list' else 'one id'}")
    paths.new_file(file) if action == "create" else paths.existing(file)
    path = file or bedplate_home() / "keys.yaml"
    if action == "list":
        if which is not None:
            raise UsageError("`bedplate keys list` takes no name or id")
        _list(read_keys(path), as_json)
        return
    if which is None:
        raise UsageError(f"`bedplate keys {action}` needs {'a name' if action == 'create' else 'the id of a key'}")
    if action == "create":
        per_minute = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        dollars = {"usd_per_day": usd_per_day, "usd_per_month": usd_per_month}
        fields: dict[str, Any] = {
            "name": which,
            "tenant": tenant,
            "models": _models(models or ["all"]),
            "admin": admin,
            "limits": {**per_minute, "concurrent": concurrent},
            "quota": {**dollars, "tokens_per_day": tokens_per_day, "tokens_per_month": tokens_per_month},
            "expires": expires if expires is None else _moment(expires),
        }
        id_, secret = _create(path, fields)
    elif action == "revoke":
        change_keys(path, lambda keys_file: replace_key(keys_file, which, path, disabled=True))
        print(json.dumps({"id": which, "disabled": True}) if as_json else f"{which} is revoked")
        return
    else:
        id_, secret, hash_ = new_secret(which)
        change_keys(path, lambda keys_file: replace_key(keys_file, which, path, hash=hash_))
        if (state := key_of(read_keys(path), which, path).state(datetime.now(UTC))) != "active":
            print(f"warning: the key {which} is {state}, so the new secret is refused; edit {path}", file=sys.stderr)
    if as_json:
        print(json.dumps({"id": id_, "key": secret, "file": str(path)}))
    else:
        print(f"{secret}\n(the key {id_} in {path}; it is not shown again)")
        print(f"a server asks for keys with `bedplate serve … --keys {path}`, or `keys: {path}` in its file")


def _models(words: list[str]) -> tuple[str, ...] | Literal["all"]:
    """The models of a new key: separate words, or words joined by commas. UsageError for "all" beside names."""
    names = tuple(name.strip() for word in words for name in word.split(",") if name.strip())
    if "all" not in names:
        if not names:
            raise UsageError("MODEL is empty; name models, or leave it out for all of them")
        _warn_of_unknown(names)
        return names
    if names != ("all",):
        raise UsageError("MODEL: `all` includes every model; leave out the other names")
    return "all"


def _warn_of_unknown(names: tuple[str, ...]) -> None:
    """A key is often made before its model is, so that a name that nothing has is no error."""
    from bedplate.hub.catalog import CATALOG
    from bedplate.skins.catalog import Catalog

    try:
        with Catalog.open() as catalog:
            artifacts = [*catalog.entries("skin"), *catalog.entries("base")]
    except BedplateError:  # a key needs no catalogue
        return
    known = {*CATALOG, *(artifact.name for artifact in artifacts)}
    for name in names:
        if name not in known:
            hint = did_you_mean(nearest(name, sorted(known)), "the key works once a server has a model of this name")
            print(f"warning: no skin or base of the catalogue is called {name!r}; {hint}", file=sys.stderr)


def _create(path: Path, fields: dict[str, Any]) -> tuple[str, str]:
    import pydantic

    from bedplate.core.config import first_problem
    from bedplate.serving.callers.api_keys import Key, KeysFile, change_keys, new_secret

    id_, secret, hash_ = new_secret()
    created = datetime.now(UTC).replace(microsecond=0)
    try:
        key = Key.model_validate({**fields, "id": id_, "hash": hash_, "created": created})
    except pydantic.ValidationError as error:
        raise UsageError(first_problem(error)) from error

    def with_key(keys_file: KeysFile) -> KeysFile:
        twin = next((other.id for other in keys_file.keys if other.name == key.name and not other.disabled), None)
        if twin is not None:
            message = (
                f"warning: the key {twin} is called {key.name!r} as well; `bedplate keys revoke {twin} --file {path}`"
            )
            print(f"{message} ends it", file=sys.stderr)
        return KeysFile(keys=(*keys_file.keys, key))

    change_keys(path, with_key)
    return id_, secret


def _moment(text: str) -> datetime:
    """A time to come, of `--expires`; without a zone it is UTC."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"--expires {text}: not a date; write 2027-01-31 or 2027-01-31T18:00") from error
    moment = read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    if moment <= datetime.now(UTC):
        raise UsageError(f"--expires {text} is in the past, so the key would never be accepted; give a later date")
    return moment


def _list(keys_file: KeysFile, as_json: bool) -> None:
    now = datetime.now(UTC)
    if as_json:
        rows = [key.model_dump(mode="json", exclude={"hash"}) | {"state": key.state(now)} for key in keys_file.keys]
        print(json.dumps({"keys": rows}))
        return
    names = ("id", "name", "state", "tenant", Column("models", prose=True), "admin")
    limits = (Column("limits", prose=True), Column("quota", prose=True), "expires")
    show((*names, *limits), [_row(key, key.state(now)) for key in keys_file.keys])


def _row(key: Key, state: str) -> tuple[str, ...]:
    models = "all" if key.models == "all" else ", ".join(key.models)
    limits = ", ".join(f"{name}={value}" for name, value in key.limits.model_dump(exclude_none=True).items())
    quota = ", ".join(f"{name}={value:,}" for name, value in key.quota.model_dump(exclude_none=True).items())
    expires = "" if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M}"
    return key.id, key.name, state, key.tenant or "", models, "yes" if key.admin else "", limits, quota, expires
