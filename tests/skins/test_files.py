"""A skin's directory: same bytes, same skin back, and no damaged file that loads."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bedplate.adapters.bank import Bank
from bedplate.core.errors import SkinError, UsageError
from bedplate.core.files import sha256_file
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs
from bedplate.skins.files import SKIN_FILE, read_skin, skin_files, skin_id, write_skin
from bedplate.skins.output import JsonOutput, LabelsOutput
from bedplate.skins.skin import BaseReference, Skin
from bedplate.skins.verify import verify_skin


def edit(directory: Path, change: dict | None = None, rehash: str | None = None) -> None:
    """Change skin.json's fields, and list the present hash of one file."""
    path = directory / SKIN_FILE
    fields = json.loads(path.read_text()) | (change or {})
    if rehash:
        fields["files"][rehash] = sha256_file(directory / rehash)
    path.write_text(json.dumps(fields))


def identical(a: Skin, b: Skin) -> bool:
    return skin_files(a) == skin_files(b)


def test_written_read_and_written_again(tmp_path, skin):
    write_skin(skin, tmp_path / "one", {"report.json": b"{}"})
    reread = read_skin(tmp_path / "one")
    assert identical(skin, reread)
    assert reread.demonstrations == skin.demonstrations
    assert reread.output == skin.output
    assert reread.directory == tmp_path / "one"
    assert skin_id(skin) == skin_id(reread)
    write_skin(reread, tmp_path / "two", {"report.json": b"{}"})
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    if skin.probe is not None:
        assert torch.equal(reread.probe.head.weight, skin.probe.head.weight)


def test_every_field_reaches_the_id(skin):
    changed = dataclasses.replace(skin, provenance=skin.provenance.model_copy(update={"seed": 7}))
    assert skin_id(changed) != skin_id(skin)


def test_never_over_another_one_unless_asked(tmp_path, skin):
    write_skin(skin, tmp_path / "s")
    with pytest.raises(UsageError, match="exists"):
        write_skin(skin, tmp_path / "s")
    write_skin(dataclasses.replace(skin, name="other"), tmp_path / "s", replace=True)
    assert read_skin(tmp_path / "s").name == "other"


def test_a_skin_that_would_not_be_read_back_is_not_written(tmp_path, lora_skin):
    tensors = {k: v.clone() for k, v in lora_skin.lora.tensors.items()}
    next(iter(tensors.values()))[0, 0] = torch.nan
    bad = dataclasses.replace(lora_skin, lora=dataclasses.replace(lora_skin.lora, tensors=tensors))
    with pytest.raises(SkinError, match="NaN"):
        write_skin(bad, tmp_path / "s")
    with pytest.raises(SkinError, match="cannot carry"):
        write_skin(lora_skin, tmp_path / "s", {"notes.pkl": b""})
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_file_never_loads_silently(tmp_path_factory, skin, data):
    """One byte changed, cut, or added anywhere: SkinError, or (in skin.json alone) a skin that says the same."""
    directory = tmp_path_factory.mktemp("skin") / "s"
    write_skin(skin, directory)
    path = directory / data.draw(st.sampled_from(sorted(p.name for p in directory.iterdir())))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "add"]))
    if how == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del content[place:]
    else:
        content[place:place] = bytes([data.draw(st.integers(0, 255))])
    path.write_bytes(content)
    try:
        loaded = read_skin(directory)
    except SkinError:
        return
    # skin.json has no hash of itself: a change there must at least be one of content that shows in the id
    assert path.name == SKIN_FILE
    assert skin_id(loaded) != skin_id(skin) or json.loads(content) == json.loads(skin_files(skin)[SKIN_FILE])


def test_missing_unlisted_and_linked_files(tmp_path, lora_skin):
    directory = tmp_path / "s"
    write_skin(lora_skin, directory)
    (directory / "extra.txt").write_text("x")
    with pytest.raises(SkinError, match="not listed"):
        read_skin(directory)
    (directory / "extra.txt").unlink()
    (directory / "folder").mkdir()
    with pytest.raises(SkinError, match="not listed"):
        read_skin(directory)
    (directory / "folder").rmdir()
    outside = tmp_path / "outside"
    shutil.move(directory / "prompt.jinja", outside)
    with pytest.raises(SkinError, match=r"prompt\.jinja is missing"):
        read_skin(directory)
    (directory / "prompt.jinja").symlink_to(outside)
    with pytest.raises(SkinError, match="symbolic link"):
        read_skin(directory)
    shutil.move(directory / SKIN_FILE, tmp_path / SKIN_FILE)
    with pytest.raises(SkinError, match="not a skin"):
        read_skin(directory)
    (directory / SKIN_FILE).symlink_to(tmp_path / SKIN_FILE)
    with pytest.raises(SkinError, match="symbolic link"):
        read_skin(directory)
    with pytest.raises(SkinError, match="not a directory"):
        read_skin(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", ["../prompt.jinja", "/etc/passwd", "adapter_model.bin", "a/../prompt.jinja", "weights.pkl"]
)
def test_paths_and_pickles_in_the_list_are_refused(tmp_path, skin, name):
    write_skin(skin, tmp_path / "s")
    files = json.loads((tmp_path / "s" / SKIN_FILE).read_text())["files"]
    edit(tmp_path / "s", {"files": files | {name: "0" * 64}})
    with pytest.raises(SkinError, match="not a part of a skin"):
        read_skin(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "update Bedplate"),
        ({"schema_version": True}, "positive number"),
        ({"schema_version": None}, "positive number"),
        ({"kind": "prompt"}, "does not fit"),
        ({"kind": "dream"}, "kind"),
        ({"colour": "red"}, "colour"),
        ({"name": "a/b"}, "cannot be called"),
        ({"bases": {}}, "main base"),
        ({"lora": None}, "does not fit"),
        ({"probe": {"layer": "layers.1", "pooling": "last"}}, "does not fit"),
        ({"inputs": {"text": {"kind": "text"}}}, "'review', which is not an input"),
        ({"inputs": {"review": {"kind": "image"}}}, "inputs.review.kind"),
        ({"prompt": {"format": "chat", "system": 3}}, "prompt.system"),
    ],
)
def test_manifests_that_do_not_fit(tmp_path, lora_skin, change, message):
    write_skin(lora_skin, tmp_path / "s")
    edit(tmp_path / "s", change)
    with pytest.raises(SkinError, match=message):
        read_skin(tmp_path / "s")


def test_weights_that_do_not_fit_although_their_hash_does(tmp_path, lora_skin):
    directory = tmp_path / "s"
    write_skin(lora_skin, directory)
    weights = directory / "adapter_model.safetensors"
    good = safetensors.torch.load_file(weights)
    first = next(iter(good))
    for value, message in ((torch.full_like(good[first], torch.inf), "NaN or inf"), (torch.zeros(3, 7), "rank 2")):
        safetensors.torch.save_file(good | {first: value}, weights)
        edit(directory, rehash=weights.name)
        with pytest.raises(SkinError, match=message):
            read_skin(directory)
    safetensors.torch.save_file(good, weights)
    config = directory / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 5}))
    edit(directory, rehash=weights.name)
    edit(directory, rehash=config.name)
    with pytest.raises(SkinError, match="disagree"):
        read_skin(directory)


def test_verify_names_what_differs(skin, base):
    assert verify_skin(skin, base) == []

    def on(**identity):
        return dataclasses.replace(base, identity=dataclasses.replace(base.identity, **identity))

    with pytest.raises(SkinError, match="belongs to the base tiny"):
        verify_skin(skin, on(weights_id="f" * 64))
    with pytest.raises(SkinError, match="tokenizer"):
        verify_skin(skin, on(tokenizer_id="f" * 64))
    # a plain prompt does not depend on the chat template, a chat one does
    assert verify_skin(skin, on(template_id="f" * 64)) == []
    chat = dataclasses.replace(skin, prompt=dataclasses.replace(skin.prompt, format="chat"))
    with pytest.raises(SkinError, match="chat template"):
        verify_skin(chat, on(template_id="f" * 64))
    with pytest.raises(SkinError, match=r"judged with float32 weights and would run with bfloat16"):
        verify_skin(skin, dataclasses.replace(base, dtype=torch.bfloat16))
    caveats = verify_skin(skin, base, weights="int4", kernel="vnni", allow_other_weights=True)
    assert [("int4" in s, "vnni" in s) for s in caveats] == [(True, False), (False, True)]


def test_a_verified_equivalent_is_the_same_base(skin, base):
    file_hash = "a" * 64
    export = dataclasses.replace(base.identity, weights_id="b" * 64, equivalent_of=file_hash)
    for mine, its in (
        ({"weights_id": file_hash}, export),
        ({"equivalent_of": base.identity.weights_id, "weights_id": "c" * 64}, base.identity),
        ({"equivalent_of": file_hash, "weights_id": "c" * 64}, export),
    ):
        reference = skin.base.model_copy(update=mine)
        assert reference.has_weights_of(its)
    stranger = dataclasses.replace(export, weights_id="d" * 64, equivalent_of=None)
    assert not BaseReference.of("x", "llama", export).has_weights_of(stranger)


def test_verify_checks_shapes_against_the_base(base, build_skin):
    lora, probe = build_skin(base, "lora"), build_skin(base, "probe")
    name = "layers.0.attention.q.lora_A"
    tensors = {**lora.lora.tensors, name: torch.zeros(2, 5)}
    with pytest.raises(SkinError, match="shape"):
        verify_skin(dataclasses.replace(lora, lora=dataclasses.replace(lora.lora, tensors=tensors)), base)
    with pytest.raises(SkinError, match=r"layers\.3"):
        verify_skin(dataclasses.replace(probe, probe=dataclasses.replace(probe.probe, layer="layers.3")), base)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_loads_the_skin_directory_and_agrees(tmp_path, lora_skin, base):
    write_skin(lora_skin, tmp_path / "s", {"report.json": b"{}"})
    family = FAMILIES[("hf", "llama")]
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**family.to_config(base.spec))).eval()
    state = {family.weights.to_external(k): v for k, v in base.model.state_dict().items()}
    reference.load_state_dict(state | {"lm_head.weight": base.model.embedding.weight})
    bank = Bank(base.model)
    read = read_skin(tmp_path / "s")
    tokens = torch.arange(12).reshape(2, 6)
    bank.select(bank.add(read.lora.config, read.lora.tensors))
    hidden = base.model(Inputs(tokens)).hidden
    bank.close()
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "s")
    with torch.no_grad():
        expected = theirs(tokens).logits
    torch.testing.assert_close(base.model.head(hidden), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_process(tmp_path, lora_skin):
    """Hash randomisation must not reach the files."""
    write_skin(lora_skin, tmp_path / "s")
    code = "import sys; from bedplate.skins.files import read_skin, skin_id; print(skin_id(read_skin(sys.argv[1])))"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")],
        env=os.environ | {"PYTHONHASHSEED": "1"},  # ours is drawn
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == skin_id(lora_skin)


def test_a_json_skin_comes_back_with_its_schema(tmp_path, base, build_skin):
    schema = {"type": "object", "properties": {"s": {"enum": ["a", "b"]}}, "required": ["s"]}
    skin = dataclasses.replace(build_skin(base, "prompt"), output=JsonOutput(json_schema=schema), demonstrations=())
    write_skin(skin, tmp_path / "json")
    reread = read_skin(tmp_path / "json")
    assert reread.output == skin.output
    assert reread.output.json_schema == schema
    assert skin_id(reread) == skin_id(skin)
    edit(tmp_path / "json", {"output": {"kind": "json", "json_schema": {"not": {}}}})
    with pytest.raises(SkinError, match="not"):
        read_skin(tmp_path / "json")


def test_a_threshold_belongs_to_a_head_for_the_same_labels(build_skin, base, tmp_path):
    probe, plain = build_skin(base, "probe"), build_skin(base, "prompt")
    labels = probe.output.labels
    several = dataclasses.replace(probe, output=LabelsOutput(labels=labels, threshold=0.3))
    assert identical(read_skin(write_skin(several, tmp_path / "several")), several)
    assert read_skin(tmp_path / "several").output.threshold == 0.3
    for parts, message in (
        ({"output": LabelsOutput(labels=labels)}, "one of some labels, or any by a threshold"),
        ({"output": LabelsOutput(labels=labels[::-1], threshold=0.3)}, "its head was made for the labels"),
    ):
        with pytest.raises(SkinError, match=message):
            dataclasses.replace(probe, **parts)
    with pytest.raises(SkinError, match="has a threshold for its labels' probabilities, but no head"):
        dataclasses.replace(plain, output=LabelsOutput(labels=labels, threshold=0.3))
    edit(tmp_path / "several", {"output": {"kind": "labels", "labels": list(labels)}})
    with pytest.raises(SkinError, match="must be a label, or labels with a threshold"):
        read_skin(tmp_path / "several")
