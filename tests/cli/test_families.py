"""`bedplate families`: the table says what is so; the proof can fail."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import transformers

from bedplate.cli.main import main
from bedplate.inference.measure import parity
from bedplate.inference.native.allowed import refused_field
from bedplate.models.families import FAMILIES

NAMES = [name for format_, name in FAMILIES if format_ == "hf"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    with pytest.raises(SystemExit) as stop:
        main(["families", *arguments])
    out, error = capsys.readouterr()
    return int(stop.value.code or 0), json.loads(out) if "--json" in arguments else out, error


@pytest.mark.parametrize("name", NAMES)
def test_what_a_family_takes_for_granted_is_what_transformers_does(name: str) -> None:
    """Fields that a config leaves out have transformers' defaults (of what is not told by a checkpoint's tensors)."""
    family = FAMILIES["hf", name]
    for example in family.examples:
        whole = transformers.AutoConfig.for_model(name, **example).to_dict()
        assert family.by_names(family.to_spec(example), ()) == family.by_names(family.to_spec(whole), ())


def test_every_family_is_listed_with_what_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    code, listed, _ = run(capsys, "--json")
    assert code == 0
    assert [row["family"] for row in listed] == NAMES
    for row in listed:
        family = FAMILIES["hf", row["family"]]
        fields = [refused_field(family.to_spec(example)) for example in family.examples]
        assert row["kernel"] == next((field for field in fields if field), None)
        assert (row["gguf"] is not None) == (("gguf", row["gguf"]) in FAMILIES)
        assert ("generate" in row["can"]) == (row["kind"] != "encoder")
    code, text, _ = run(capsys, "bert")
    assert (code, "bert" in text, "llama" in text) == (0, True, False)


def test_the_proof_can_fail(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.cli.families._SEEDS", 1)
    code, checks, _ = run(capsys, "bert", "--check", "--json")
    assert code == 0
    assert all(check["holds"] for check in checks)
    assert {check["what"] for check in checks} >= {"states", "gradients", "exported weights"}
    family = FAMILIES["hf", "bert"]
    wrong = replace(family, to_spec=lambda config: family.to_spec(config).with_(norm_eps=0.5))
    monkeypatch.setitem(FAMILIES, ("hf", "bert"), wrong)
    code, text, _ = run(capsys, "bert", "--check")
    assert code == 1
    assert "DIFFERS" in text
    assert any("holds" in line and "exported weights" in line for line in text.splitlines())


def test_the_proof_asks_for_what_it_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise parity.UsageError("transformers is not installed")

    monkeypatch.setattr(parity, "_transformers", missing)
    code, _, error = run(capsys, "bert", "--check")
    assert code == 2
    assert "transformers is not installed" in error
    code, _, error = run(capsys, "brt")
    assert code == 2
    assert "did you mean 'bert'?" in error
