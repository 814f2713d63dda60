"""Skins with a soft prompt: as directories, and on bases that they do not fit."""

from __future__ import annotations

import dataclasses
import json

import pytest
import safetensors.torch
import torch

from bedplate.adapters.soft_prompt import SoftPrompt
from bedplate.adapters.tensor_files import SOFT_PROMPT_FILE
from bedplate.core.errors import SkinError
from bedplate.core.files import sha256_file
from bedplate.skins.files import SKIN_FILE, read_skin, skin_id, write_skin
from bedplate.skins.verify import verify_skin


def with_vectors(skin, vectors):
    return dataclasses.replace(skin, soft_prompt=SoftPrompt(vectors))


@pytest.fixture
def soft(base, build_skin):
    return with_vectors(build_skin(base, "prompt"), torch.randn(4, 16, generator=torch.Generator().manual_seed(3)))


def test_a_directory_gives_back_the_skin_and_the_same_bytes(soft, base, tmp_path):
    reread = read_skin(write_skin(soft, tmp_path / "one"))
    assert (reread.kind, skin_id(reread)) == ("soft_prompt", skin_id(soft))
    assert torch.equal(reread.soft_prompt.vectors, soft.soft_prompt.vectors)
    assert (reread.prompt, reread.demonstrations) == (soft.prompt, soft.demonstrations)
    write_skin(reread, tmp_path / "two")
    written = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert written[0] == written[1]
    assert SOFT_PROMPT_FILE in written[0]
    assert verify_skin(reread, base) == []
    changed = with_vectors(soft, soft.soft_prompt.vectors + 1e-3)
    assert skin_id(changed) != skin_id(soft)


def test_a_skin_has_vectors_exactly_when_its_kind_says_so(soft):
    assert soft.kind == "soft_prompt"
    assert dataclasses.replace(soft, soft_prompt=None).kind == "prompt"


def test_a_base_that_the_vectors_do_not_fit_is_refused(soft, base):
    with pytest.raises(SkinError, match="vectors of size 17"):
        verify_skin(with_vectors(soft, torch.zeros(4, 17)), base)
    with pytest.raises(SkinError, match="fill the base's"):
        verify_skin(with_vectors(soft, torch.zeros(base.spec.context_length, 16)), base)


def test_changed_missing_and_unfitting_files_are_refused(soft, tmp_path):
    directory = write_skin(soft, tmp_path / "skin")
    path, manifest = directory / SOFT_PROMPT_FILE, directory / SKIN_FILE
    whole, listed = path.read_bytes(), json.loads(manifest.read_text())
    path.write_bytes(SoftPrompt(soft.soft_prompt.vectors * 2).to_bytes())
    with pytest.raises(SkinError, match="sha256 differs"):
        read_skin(directory)
    safetensors.torch.save_file({"soft_prompt": torch.full((4, 16), float("nan"))}, path)
    manifest.write_text(json.dumps(listed | {"files": listed["files"] | {SOFT_PROMPT_FILE: sha256_file(path)}}))
    with pytest.raises(SkinError, match="NaN"):
        read_skin(directory)
    path.unlink()
    manifest.write_text(json.dumps(listed))
    with pytest.raises(SkinError, match="missing"):
        read_skin(directory)
    fewer = {name: digest for name, digest in listed["files"].items() if name != SOFT_PROMPT_FILE}
    manifest.write_text(json.dumps(listed | {"files": fewer}))
    with pytest.raises(SkinError, match=f"{SOFT_PROMPT_FILE} does not fit"):
        read_skin(directory)
    path.write_bytes(whole)
    manifest.write_text(json.dumps(listed | {"kind": "prompt"}))
    with pytest.raises(SkinError, match=f"{SOFT_PROMPT_FILE} does not fit"):
        read_skin(directory)
