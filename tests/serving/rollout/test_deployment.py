"""The deployment files against the server's own file, its routes, and the command line."""

from __future__ import annotations

import configparser
import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from fastapi.routing import APIRoute
from tests.serving.conftest import Files, Server, running
from tests.serving.test_guard import make_key
from tests.serving.test_operations import ROOT, instructions

from bedplate.cli.main import VERBS, command_of
from bedplate.core.config import load_config
from bedplate.serving.callers.api_keys import KeysFile, change_keys
from bedplate.serving.server.app import ROUTERS, loaded_server
from bedplate.serving.settings.server_config import ServerConfig

DEPLOYMENT = ROOT / "examples" / "deployment"


def seconds_from_signal_to_kill(pod: dict[str, Any]) -> float:
    return pod["terminationGracePeriodSeconds"] - float(
        pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1]
    )


def test_the_kubernetes_manifest_agrees_with_the_servers_file_and_its_routes():
    objects = {part["kind"]: part for part in yaml.safe_load_all((DEPLOYMENT / "kubernetes.yaml").read_text("utf-8"))}
    server_file = ServerConfig.model_validate(yaml.safe_load(objects["ConfigMap"]["data"]["server.yaml"]))
    pod = objects["StatefulSet"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": server_file.port}
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    served = {route.path for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in served
        assert container[probe]["httpGet"]["port"] in ports
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    assert seconds_from_signal_to_kill(pod) > server_file.grace_seconds
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}
    assert server_file.keys is not None
    assert server_file.state is not None
    assert str(server_file.keys.parent) in mounts
    written = [path for path, mount in mounts.items() if not mount.get("readOnly")]
    assert any(server_file.state.is_relative_to(path) for path in written)
    readiness = container["readinessProbe"]  # one late answer must not take the only replica away
    assert readiness["failureThreshold"] >= 3
    assert min(readiness["timeoutSeconds"], container["livenessProbe"]["timeoutSeconds"]) >= 3
    container_settings = dict(instructions())
    assert container["args"] == json.loads(container_settings["CMD"])
    assert str(pod["securityContext"]["runAsUser"]) in " ".join(text for name, text in instructions() if name == "RUN")


def test_the_systemd_unit_starts_what_the_command_line_knows():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(DEPLOYMENT / "bedplate.service")
    assert unit.sections() == ["Unit", "Service", "Install"]
    program, verb, option, path = shlex.split(unit["Service"]["ExecStart"])
    assert (Path(program).name, verb in VERBS, option) == ("bedplate", True, "--config")
    assert Path(path).is_absolute()
    assert float(unit["Service"]["TimeoutStopSec"]) > 20  # the grace_seconds of the documented file
    assert unit["Service"]["User"] == "bedplate"  # its keys file has an owner that stays the same
    assert path == "/etc/bedplate/server.yaml"
    home = dict(word.split("=", 1) for word in unit["Service"]["Environment"].split())["BEDPLATE_HOME"]
    made = [f"/var/lib/{word}" for word in unit["Service"]["StateDirectory"].split()]
    assert unit["Service"]["WorkingDirectory"] == home == made[0]
    server_file = load_config(DEPLOYMENT / "server.yaml", ServerConfig)
    assert str(server_file.skins_directory) in made  # systemd makes it, and the server starts on it
    assert server_file.state is not None
    assert server_file.state.is_relative_to(home)  # the rest of the disk is read-only
    assert float(unit["Service"]["TimeoutStopSec"]) > server_file.grace_seconds


# --- commands


def check_command(line: str) -> None:
    """The command line's own parser reads every option and argument of `bedplate …`. AssertionError."""
    words = shlex.split(line)[1:]
    table = VERBS
    while True:
        name, about = table[words[0]]
        module, verb = importlib.import_module(name), words.pop(0)
        table = getattr(module, "ACTIONS", None)
        if table is None:
            break
        if not words or words[0] not in table:
            assert not words or words[0] in ("VERB", "--help"), f"{line}: there is no verb {words[0]}"
            return
    command = command_of(getattr(module, verb.replace("-", "_")), about, verb)
    context = command.context_class(command, info_name=verb)
    extra, mistake = [], ""
    try:
        _, extra, _ = command.make_parser(context).parse_args(words)
    except typer.BadParameter.__mro__[1] as error:
        mistake = str(error)
    assert not mistake or "requires an argument" in mistake, f"{line}: {mistake}"  # prose leaves values out
    assert not extra, f"{line}: {extra} is too much"


def test_what_the_command_line_does_not_know_is_seen():
    for line in ("bedplate evaluate SKIN --config task.yaml", "bedplate pull a b c", "bedplate plan nowhere"):
        with pytest.raises(AssertionError, match="bedplate"):
            check_command(line)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_commands_in_the_text_of_pages_are_those_of_the_command_line(page: Path):
    for line in re.findall(r"`(bedplate [a-z][^`\n]*)`", page.read_text("utf-8")):
        check_command(line.replace("…", "").replace("[NAME]...", "").strip())


def commands_of(text: str) -> list[str]:
    """Every `bedplate` command of the file, in comments too, without the path and the words before it."""
    lines = re.findall(r"^#.*?\b(?:/opt/bedplate/bin/)?(bedplate [a-z]+ [^#\n&|]*)$", text, re.M)
    return [line.strip() for line in lines if line.split()[1] in VERBS]


def test_commands_in_deployment_files_are_those_of_the_command_line():
    commands = {path.name: commands_of(path.read_text("utf-8")) for path in DEPLOYMENT.iterdir()}
    assert any("pull" in line for line in commands["bedplate.service"])
    assert any("keys create" in line for line in commands["bedplate.service"])
    for line in (line for lines in commands.values() for line in lines):
        check_command(line)


# --- the first start


def test_the_manifest_starts_on_an_empty_volume_and_takes_skins(files: Files, tmp_path: Path):
    """Its init container's commands and its server's file, with the volume and the secret in a directory here."""
    objects = {part["kind"]: part for part in yaml.safe_load_all((DEPLOYMENT / "kubernetes.yaml").read_text("utf-8"))}
    pod = objects["StatefulSet"]["spec"]["template"]["spec"]
    (tmp_path / "data").mkdir()
    (tmp_path / "keys").mkdir()
    key, secret = make_key(admin=True)
    change_keys(tmp_path / "keys" / "keys.yaml", lambda _: KeysFile(keys=(key,)))
    (first,) = pod["initContainers"]
    container = pod["containers"][0]
    assert first["image"] == container["image"]
    writable = {mount["mountPath"] for mount in first["volumeMounts"]}
    assert {"/data", "/tmp"} <= writable
    shell, option, script = first["command"]
    assert (shell, option) == ("sh", "-ec")
    server_file = yaml.safe_load(objects["ConfigMap"]["data"]["server.yaml"])
    pulled = []
    for line in script.strip().splitlines():
        if line.startswith("bedplate "):
            check_command(line)
            pulled.append(line.removeprefix("bedplate pull "))
        else:
            here = line.replace("/data", str(tmp_path / "data"))
            subprocess.run(["sh", "-ec", here], check=True, timeout=30)
    assert pulled == [base["source"] for base in server_file["bases"]]
    for key in ("skins_directory", "keys", "state"):
        server_file[key] = f"{tmp_path}{server_file[key]}"
    (tmp_path / "server.yaml").write_text(yaml.safe_dump({**server_file, "bases": [{"source": str(files.base)}]}))
    settings = load_config(tmp_path / "server.yaml", ServerConfig).model_copy(update={"port": 0})
    assert settings.skins_directory is not None
    with loaded_server(settings) as state, running(state) as url:
        server = Server(url, state, {})
        assert server.request("GET", "/ready").json() == {"status": "ok"}
        shutil.copytree(files.skins[0], settings.skins_directory / "reviews")  # as `kubectl cp` does
        scanned = server.post("/admin/skins/scan", headers={"authorization": f"Bearer {secret}"})
        assert scanned.json()["added"] == ["prompted"]
