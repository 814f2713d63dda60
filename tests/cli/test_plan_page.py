"""`--page` of plan train, serve and decide: a file beside the answer, checked before anything is computed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bedplate.cli.main import main

CASE = Path(__file__).parents[2] / "examples/decide/hosted_at_low_volume.yaml"
TRAIN = ("train", "smollm2-135m", "--tokens", "1B", "--device", "a100-80gb")
DECIDE = ("decide", str(CASE))
SERVE = ("serve", "smollm2-135m", "--device", "a100-80gb", "--prompt-tokens", "20", "--output-tokens", "2")
VERBS = [TRAIN, DECIDE, SERVE]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_the_answer_is_the_same_and_the_page_s_place_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: tuple[str, ...]
) -> None:
    page = tmp_path / "new" / "page.html"
    page.parent.mkdir()
    page.write_text("an older page")
    code, out, error = run(capsys, *verb, "--page", page, "--json")
    assert (code, error) == (0, f"page written to {page}\n")
    assert json.loads(out) == json.loads(run(capsys, *verb, "--json")[1])
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert list(page.parent.iterdir()) == [page]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("page.json", "name a file that ends in .html"),
        ("--all", "--page is --all: name a file that ends in .html"),
        ("directory.html", "name a file that ends in .html"),
        ("file/page.html", "cannot write"),
    ],
)
def test_a_page_that_cannot_be_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verb: tuple[str, ...],
    name: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "directory.html").mkdir()
    code, out, error = run(capsys, *verb, "--page", name)
    assert (code, out) == (2, "")
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory.html", "file"]


def test_what_has_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    code, _, error = run(capsys, "decide", CASE, CASE, "--page", page)
    assert (code, "--page is for one decision file; there are 2" in error) == (2, True)
    code, _, error = run(capsys, "train", "--budget-usd", "100k", "--page", page)
    assert (code, "name it" in error) == (2, True)
    code, _, error = run(capsys, *SERVE, "--p95-ms", "0.001", "--page", page)
    assert (code, "no number of replicas helps" in error) == (2, True)
    code, _, error = run(capsys, "train", "llama-3.1-405b", "--tokens", "1T", "--devices", "1", "--page", page)
    assert (code, "fit" in error) == (2, True)
    assert not page.exists()


def test_a_budget_s_tokens_are_what_the_page_begins_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    code, out, _ = run(capsys, *TRAIN[:2], "--budget-usd", "1k", "--device", "h100", "--page", page, "--json")
    assert code == 0
    text = page.read_text("utf-8")
    data = json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert data["tokens"]["stated"] == json.loads(out)["tokens"]
    assert data["command"] == ["bedplate", "plan", "train", "smollm2-135m", "--device", "h100"]


def test_a_page_loads_nothing_heavy_and_nothing_of_it_is_loaded_without(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom bedplate.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'numpy', 'scipy', 'transformers', 'jinja2', 'bedplate.report.pages'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )

    def loaded(*options: str) -> str:
        words = [sys.executable, "-c", code, "plan", *TRAIN, "--json", *options]
        return subprocess.run(words, capture_output=True, text=True, check=True).stderr.splitlines()[-1]

    assert loaded() == "[]"
    assert loaded("--page", str(tmp_path / "page.html")) == "['bedplate.report.pages', 'jinja2']"
