"""Every snippet of the documentation runs, the command line's page is current, and the site builds."""

from __future__ import annotations

import argparse
import functools
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import yaml
from tests.rows import slow_unless
from tests.scripts import DOCS, script
from tests.serving.conftest import running, words_model
from tests.tiny import write_tiny_base

from bedplate.adaptation.task.target_spec import TargetSpec
from bedplate.adaptation.task.task_file import load_adapt_task
from bedplate.cli.main import VERBS
from bedplate.core.config import load_config
from bedplate.data.corpus.curate.presets import checked
from bedplate.data.corpus.recipe import load_recipe
from bedplate.economics.costs.amortisation import AmortisationFile, amortise
from bedplate.economics.costs.decisions import decide, load_case
from bedplate.economics.hardware.devices import HardwareFile, find_device_in
from bedplate.economics.numbers.prices import Prices
from bedplate.evaluation.costs import MetricSpec
from bedplate.evaluation.metrics_judge import judge_metric
from bedplate.evaluation.task import load_task
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.models.checkpoints.base import load_base
from bedplate.pretraining.runfile.file import load_run
from bedplate.serving.server.app import loaded_server
from bedplate.skins.export import export_skin
from bedplate.skins.files import write_skin
from bedplate.skins.output import LabelOutput
from bedplate.skins.phrasings import default_continuations, default_prompt, values_prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, Skin

ROOT = Path(__file__).parents[2]
PARTS = ("economics", "predictions", "architecture", "families")
"""Pages with generated parts."""
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]
SLOW_PAGES = ("label-budget.md",)
"""Whose snippets run a whole ladder, as `tests/adaptation/labels` does."""


def snippets(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    module = script(DOCS / "build.py")
    cached = {
        name: functools.cache(generate) for name, generate in module.GENERATED.items()
    }  # asked for again and again
    module.GENERATED.update(cached)
    return module


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What stands for a base, a skin, an exported one and a server in the snippets."""
    root = tmp_path_factory.mktemp("docs")
    directory, labels = write_tiny_base(root / "tiny"), ("negative", "positive")
    skin = Skin(
        name="reviews",
        bases={"main": BaseReference.of(str(directory), "llama", load_base(directory).identity)},
        inputs={"review": InputField()},
        output=LabelOutput(labels=labels, continuations=default_continuations(labels)),
        prompt=default_prompt("reviews", "Decide.", ["review"], labels),
        evaluated_with=EvaluatedWith(weights="float32"),
    )
    path = write_skin(skin, root / "reviews")
    words = Skin(
        name="words",
        bases={},
        inputs={"review": InputField()},
        output=LabelOutput(labels=labels),
        prompt=values_prompt(["review"]),
        classical=words_model(),
    )
    export_skin(words, root / "exported")
    with loaded_server(directory, [path], state=root / "state") as state, running(state) as url:
        yield {
            "BASE": str(directory),
            "SKIN": str(path),
            "MODEL": "reviews",
            "URL": f"{url}/v1",
            "EXPORTED": str(root / "exported"),
        }


@pytest.mark.parametrize(
    "page", slow_unless(lambda page: page.name not in SLOW_PAGES, PAGES), ids=lambda page: page.name
)
def test_python_snippets_run(
    page: Path, names: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    scope: dict[str, Any] = dict(names)
    for language, code in snippets(page):
        if language == "python":
            exec(compile(code, str(page), "exec"), scope)
    printed = capsys.readouterr().out
    if page.name == "serving.md":
        skin = load(names["SKIN"])
        assert isinstance(skin, LoadedSkin)
        assert printed.strip() == skin("It broke after a day.")
        skin.close()


def curl(words: list[str], url: str) -> httpx.Response:
    """What the command line asks, sent to a server of ours; options that it does not know are errors."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("url")
    parser.add_argument("-X", dest="method")
    parser.add_argument("-d", dest="data")
    options = parser.parse_args(words)
    place = options.url.removeprefix("http://127.0.0.1:8000")
    assert place.startswith("/"), options.url
    headers = {} if options.data is None else {"content-type": "application/x-www-form-urlencoded"}  # as curl does
    method = options.method or ("GET" if options.data is None else "POST")
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        return client.request(method, place, content=options.data, headers=headers)


def test_commands_that_load_skins_on_a_live_server_run(names: dict[str, str], tmp_path: Path) -> None:
    page = (DOCS / "serving.md").read_text("utf-8").split("## Skins while the server runs")[1].split("\n## ")[0]
    text = next(code for code in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S))
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with loaded_server(names["BASE"], skins_directory=shelf, state=tmp_path / "state") as state, running(state) as url:
        shutil.copytree(names["SKIN"], shelf / "reviews")
        replies = [curl(words[1:], url) for words in lines if words[:1] == ["curl"]]
    statuses = [reply.status_code for reply in replies]
    assert statuses == [200, 201, 201, 200, 200, 200, 200, 200], [reply.text for reply in replies]
    assert replies[0].json()["data"] == []
    loaded, answered, replaced, scanned = (replies[place].json() for place in (1, 3, 4, 7))
    example = json.loads(next(re.finditer(r"^```json\n(.*?)^```", page, re.M | re.S))[1])
    assert {name: loaded[name] for name in example} == example
    assert answered["choices"][0]["message"]["content"] in ("negative", "positive")
    assert replaced["replaced"] == loaded["id"]
    deleted = {"name": "reviews-next", "deleted": True, "calls_running": 0, "durable": True}
    assert replies[6].json() == deleted
    assert isinstance(scanned, dict)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_other_snippets_are_whole(page: Path, tmp_path: Path) -> None:
    checks: dict[str, Callable[[str], object]] = {
        "json": json.loads,
        "yaml": lambda text: _file(tmp_path, text),
        "sh": _commands,
    }
    for language, text in snippets(page):
        assert language in {"python", "text", *checks}, f"{page.name}: nothing checks a {language!r} snippet"
        if language in checks:
            checks[language](text)


def test_the_readme_s_commands_are_found_in_a_fresh_shell() -> None:
    """`make` makes the environment; what is installed in it is found once it is activated, or by its path."""
    built = activated = False
    for language, text in snippets(ROOT / "README.md"):
        for line in text.splitlines() if language == "sh" else ():
            words = shlex.split(line, comments=True)
            built |= words[:1] == ["make"]
            activated |= built and words[:2] == [".", ".venv/bin/activate"]
            assert words[:1] != ["bedplate"] or activated, line
    assert activated


def _file(directory: Path, text: str) -> None:
    """A file that its own loader reads; which one it is, its first key says."""
    loaders: dict[str, Callable[[Path], object]] = {
        "task": _task,
        "prices": Prices.load,
        "case": _case,
        "devices": _devices,
        "metric": _metric,
        "target": lambda path: TargetSpec.model_validate(yaml.safe_load(path.read_text("utf-8"))["target"]),
        "amortise": lambda path: amortise(AmortisationFile.load(path)),
        "corpus": lambda path: checked(load_recipe(path).rules),
        "run": load_run,
    }
    first_key = next(iter(yaml.safe_load(text)))
    assert first_key in loaders, f"nothing reads a file that begins with {first_key!r}"
    path = directory / f"{first_key}.yaml"  # a case finds the page's prices beside it
    path.write_text(text, "utf-8")
    loaders[first_key](path)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*/task.yaml")), ids=lambda path: path.parent.name)
def test_task_files_of_examples_are_whole(path: Path) -> None:
    task = load_task(path)
    task.scorer.ready()
    if task.adapt is not None:
        load_adapt_task(path)
    assert task.directory == path.parent


@pytest.mark.parametrize("path", sorted((ROOT / "examples/pretrain").glob("*-data.yaml")), ids=lambda path: path.name)
def test_recipes_of_examples_are_whole(path: Path) -> None:
    checked(load_recipe(path).rules)


def _task(path: Path) -> None:
    load_adapt_task(path)
    shipped = yaml.safe_load((ROOT / "examples/reviews/task.yaml").read_text("utf-8"))
    assert yaml.safe_load(path.read_text("utf-8")) == shipped


def _metric(path: Path) -> None:
    judge = MetricSpec.model_validate(yaml.safe_load(path.read_text("utf-8"))["metric"]).judge
    assert judge is not None
    judge_metric(judge, ["question"])


def _case(path: Path) -> None:
    decision = decide(*load_case(path))
    assert decision.chosen is not None, "the page's case has no answer"


def _devices(path: Path) -> None:
    for name in load_config(path, HardwareFile).devices:
        assert find_device_in(path, name).name == name


def _commands(text: str) -> None:
    """Each command is a verb that exists with options that its help names, a target of the Makefile, or a script."""
    help_of = (DOCS / "cli.md").read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for line in text.replace("\\\n", " ").strip().splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", makefile, re.M), line
        elif words[:1] == ["bedplate"]:
            assert words[1] in VERBS
            # `plan train`: the section of the longest command that the line begins with
            titles = [" ".join(words[:count]) for count in (3, 2)]
            title = next(title for title in titles if f"## {title}\n" in help_of)
            section = help_of.split(f"## {title}\n")[1].split("\n## ")[0]
            for option in (word for word in words if word.startswith("--")):
                assert option in section, line
        elif words[:1] == ["pytest"]:
            assert all((ROOT / word).exists() for word in words[1:] if word.startswith("tests/")), line
        elif words[:1] == ["python"]:
            assert (ROOT / words[1]).is_file(), line
        else:
            assert words[0] in {"git", "cd", "for", "done", ".", "curl"}, line


def test_the_picture_of_the_architecture_is_current(builder: ModuleType) -> None:
    assert (DOCS / "architecture.svg").read_text("utf-8") == builder._architecture().picture(), "run `make docs`"


def test_the_command_line_page_is_current(builder: ModuleType) -> None:
    assert (DOCS / "cli.md").read_text("utf-8") == builder.command_line(), "run `make docs`"


@pytest.mark.parametrize("page", PARTS)
def test_parts_that_are_generated_are_current(builder: ModuleType, page: str) -> None:
    text = (DOCS / f"{page}.md").read_text("utf-8")
    assert builder.filled(text) == text, "run `make docs`"


def test_every_part_is_in_a_page_and_changes_in_it_are_seen(builder: ModuleType) -> None:
    text = "".join((DOCS / f"{page}.md").read_text("utf-8") for page in PARTS)
    assert sorted(re.findall(r"<!-- (\w+) -->", text)) == sorted([*builder.GENERATED, "measured", "parity"])
    for name in builder.GENERATED:
        changed = text.replace(f"<!-- {name} -->\n", f"<!-- {name} -->\nstale ")
        assert builder.filled(changed) == text
    manual_table = "<!-- measured -->\n| by hand |\n<!-- /measured -->"
    assert builder.filled(manual_table) == manual_table


def test_the_site_builds_and_its_links_lead_somewhere(builder: ModuleType, tmp_path: Path) -> None:
    builder.build(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.html")} == {path.stem for path in DOCS.glob("*.md")}
    for page in tmp_path.glob("*.html"):
        for link in re.findall(r'(?:href|src)="([^":#]+)"', page.read_text("utf-8")):
            assert (tmp_path / link).is_file(), f"{page.name} → {link}"


def test_the_report_page_names_the_keys_of_a_real_report() -> None:
    """The documented form, and the parts that the page lists, against the schema that reports are checked with."""
    from bedplate.report.schema import ReportFile, Row, Verdict

    example = next(json.loads(text) for language, text in snippets(DOCS / "report-json.md") if language == "json")
    Verdict.model_validate(example["verdict"])
    Row.model_validate(example["rungs"][0])
    listed = re.findall(
        r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]+) \|", (DOCS / "report-json.md").read_text(), re.M))
    )
    assert {*example, *listed} | {"schema_version", "target"} == ReportFile.model_fields.keys()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "LOG.md"], ids=lambda page: page.name)
def test_pages_link_to_papers_and_this_machine_only(page: Path) -> None:
    hosts = set(re.findall(r"https?://([^/:\s)\"'`]+)", page.read_text("utf-8")))
    assert hosts <= {"arxiv.org", "127.0.0.1", "localhost"}
