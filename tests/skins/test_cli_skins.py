"""`bedplate skins list|show|verify`."""

import json

import pytest

from bedplate.cli.main import main
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import skin_id, write_skin
from bedplate.skins.records import CatalogRecord


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["skins", *arguments])
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_list_show_and_verify(tmp_path, capsys, lora_skin):
    directory = write_skin(lora_skin, tmp_path / "s")
    code, out, _ = run(capsys, "list", str(tmp_path), "--json")
    assert code == 0
    assert [(s["name"], s["kind"], s["id"]) for s in json.loads(out)["skins"]] == [
        ("sentiment", "lora", skin_id(lora_skin))
    ]
    assert "sentiment" in run(capsys, "list")[1]
    for target in (str(directory), "sentiment", skin_id(lora_skin)[:8]):
        code, out, _ = run(capsys, "show", target, "--json")
        shown = json.loads(out)
        assert (code, shown["id"], shown["lora"]["r"]) == (0, skin_id(lora_skin), 2)
        assert shown["unrecorded"] == []
        assert lora_skin.base.weights_id in {ancestor["id"] for ancestor in shown["ancestors"]}
    assert "{{ review }}" in run(capsys, "show", "sentiment")[1]
    code, out, _ = run(capsys, "verify", str(directory), "--json")
    assert (code, json.loads(out)["files"]) == (0, "ok")
    (directory / "prompt.jinja").write_text("changed {{ review }}")
    code, _, err = run(capsys, "verify", str(directory))
    assert code == 1
    assert "prompt.jinja is not the file" in err


def test_mistakes(tmp_path, capsys):
    assert run(capsys, "show")[0] == 2
    assert run(capsys, "show", "nothing-such")[0] == 2
    assert run(capsys, "verify", str(tmp_path))[0] == 1
    assert run(capsys, "polish")[0] == 2
    with Catalog.open() as catalog:
        catalog.record([CatalogRecord("run", "r1", "a-run", tmp_path)])
    code, _, err = run(capsys, "show", "a-run")
    assert code == 2
    assert "is a run" in err
