"""Skins written out: what peft and transformers compute with them is what the skin computes here."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import jinja2
import peft
import pytest
import torch
import transformers
from tests.near import assert_near
from tests.tiny import write_tiny_base
from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.adapters.head import Head
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.soft_prompt import SoftPrompt
from bedplate.cli.main import main
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_gguf
from bedplate.models.inputs import Inputs
from bedplate.skins.files import read_skin, skin_id, write_skin
from bedplate.skins.output import LabelOutput
from bedplate.skins.prompt import Demonstration, Prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, LoraPart, ProbePart, Skin

LABELS = ("negative", "positive")
TOKENS = torch.arange(5, 65).reshape(2, 30)
CONFIG = LoraConfig(r=4, alpha=12, rslora=True, targets=("attention.q", "feedforward.down"))
CLOSE = 2e-4
"""Float32 sums in another order, three layers deep; the adapter itself moves logits by more than 1."""
MODEL_SHAPE = {"hidden_size": 64, "heads": 4, "head_dim": 16, "feedforward_size": 96}
# transformers' own deprecations, reached from inside peft
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["skins", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny", dtype=torch.bfloat16, **MODEL_SHAPE)


@pytest.fixture(scope="module")
def q8(tiny: Path) -> Path:
    return export_gguf(load_base(tiny, dtype="float32"), tiny.parent / "tiny.gguf", "q8_0")


def tiny_skin(source: Path, skin_type: str, prompt: Prompt | None = None) -> Skin:
    base = load_base(source, dtype="float32")
    parts: dict[str, Any] = {}
    if skin_type == "lora":
        bank = Bank(base.model)
        torch.manual_seed(1)
        tensors = {name: torch.randn(x.shape) * 0.2 for name, x in bank.state(bank.add(CONFIG)).items()}
        parts["lora"] = LoraPart(CONFIG, tensors)
    if skin_type == "probe":
        parts["probe"] = ProbePart(Head(torch.randn(2, 64), torch.randn(2), LABELS), "layers.1", "last")
    if skin_type == "soft_prompt":
        parts["soft_prompt"] = SoftPrompt(torch.randn(5, 64, generator=torch.Generator().manual_seed(2)))
    return Skin(
        name="sentiment",
        bases={"main": BaseReference.of(str(source), "llama", base.identity)},
        inputs={"review": InputField()},
        output=LabelOutput(labels=LABELS, continuations=(" negative", " positive")),
        prompt=prompt or Prompt("Review: {{ review }}\nSentiment:"),
        evaluated_with=EvaluatedWith(weights="bfloat16"),
        **parts,
    )


def adapted(source: Path, skin: Skin) -> Tensor:
    """Logits of the base with the skin's adapter on, float32."""
    base = load_base(source, dtype="float32")
    bank = Bank(base.model)
    bank.select(bank.add(skin.lora.config, skin.lora.tensors))
    with torch.no_grad():
        hidden = base.model(Inputs(TOKENS)).hidden
        return base.model.head(hidden.flatten(0, 1)).view(*TOKENS.shape, -1)


def theirs(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(TOKENS).logits


def test_an_exported_adapter_computes_the_same_in_peft(tiny, tmp_path, capsys):
    skin = tiny_skin(tiny, "lora")
    directory = write_skin(skin, tmp_path / "skin")
    code, out, _ = run(capsys, "export", directory, "--out", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(out)["files"] == ["adapter_config.json", "adapter_model.safetensors", "prompt.json"]
    model = theirs(tiny)
    plain = logits(model)
    adapter_logits = logits(peft.PeftModel.from_pretrained(model, tmp_path / "out").eval())
    torch.testing.assert_close(adapter_logits, adapted(tiny, skin), atol=CLOSE, rtol=0)
    assert not torch.allclose(adapter_logits, plain, atol=0.1)


def test_an_exported_soft_prompt_computes_the_same_in_peft(tiny, tmp_path, capsys):
    skin = tiny_skin(tiny, "soft_prompt")
    directory = write_skin(skin, tmp_path / "skin")
    assert run(capsys, "export", directory, "--out", tmp_path / "out")[0] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that will go
        model = peft.PeftModel.from_pretrained(theirs(tiny), tmp_path / "out").eval()
        adapter_logits = model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits.detach()
    base = theirs(tiny)
    whole = torch.cat([skin.soft_prompt.vectors.expand(2, -1, -1), base.get_input_embeddings()(TOKENS)], dim=1)
    assert_near(adapter_logits, base(inputs_embeds=whole).logits.detach())


def test_an_exported_chat_is_the_skins_own_conversation(tiny, tmp_path, capsys):
    prompt = Prompt("Is this good? {{ review | trim }}", format="chat", system="Say yes or no.")
    skin = tiny_skin(tiny, "prompt", prompt)
    shown = (Demonstration({"review": "bäd\n"}, "no"), Demonstration({"review": "{{ fine }}"}, "yes"))
    skin = Skin(**{**vars(skin), "demonstrations": shown})
    assert run(capsys, "export", write_skin(skin, tmp_path / "skin"), "--out", tmp_path / "out")[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["prompt.json"]
    written = json.loads((tmp_path / "out" / "prompt.json").read_text("utf-8"))
    *before, last = written["messages"]
    final_turn = {"role": "user", "content": jinja2.Template(last["content"]).render(review=" works well ")}
    assert [*before, final_turn] == prompt.text({"review": " works well "}, shown)
    assert written["output"]["labels"] == list(LABELS)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", CLOSE), ("bfloat16", 0.5)])
def test_a_merged_base_in_transformers_is_base_and_adapter(tiny, tmp_path, capsys, dtype, tolerance):
    skin = tiny_skin(tiny, "lora")
    directory = write_skin(skin, tmp_path / "skin")
    code, out, _ = run(capsys, "merge", directory, "--out", tmp_path / "out", "--dtype", dtype, "--json")
    summary = json.loads(out)
    assert (code, summary["stored"], summary["dequantised"]) == (0, dtype, None)
    expected, merged_logits = adapted(tiny, skin), logits(theirs(tmp_path / "out"))
    assert float((expected - merged_logits).abs().max()) < tolerance
    assert not torch.allclose(logits(theirs(tiny)), expected, atol=1.0)
    assert 0 < summary["drift"]["logit"] < tolerance
    assert 0 < summary["drift"]["kl"] < tolerance**2
    assert (summary["drift"]["same_top"] == 1.0) or dtype == "bfloat16"
    merged = load_base(tmp_path / "out")
    assert merged.identity.weights_id == summary["weights_id"] != skin.base.weights_id
    assert merged.lineage["parent"] == skin.base.weights_id
    assert merged.lineage["merged_skin"] == {"name": "sentiment", "id": skin_id(read_skin(directory))}


def test_the_printed_drift_is_that_of_the_written_weights(tiny, tmp_path, capsys):
    """Computed again by transformers and peft, on the prompts that the drift is measured on."""
    from bedplate.skins.merge import TEXTS

    skin = tiny_skin(tiny, "lora")
    directory = write_skin(skin, tmp_path / "skin")
    summary = json.loads(run(capsys, "merge", directory, "--out", tmp_path / "out", "--json")[1])
    assert summary["stored"] == "bfloat16"  # as the source
    run(capsys, "export", directory, "--out", tmp_path / "adapter")
    base = peft.PeftModel.from_pretrained(theirs(tiny), tmp_path / "adapter").eval()
    merged, tokenizer = theirs(tmp_path / "out"), load_base(tiny).need_tokenizer()
    largest, divergence, matching, count = 0.0, 0.0, 0, 0
    for text in TEXTS:
        ids = torch.tensor([skin.prompt.tokens(tokenizer, {"review": text})])
        with torch.no_grad():
            adapter_logits, two = base(ids).logits[0], merged(ids).logits[0]
        largest = max(largest, float((adapter_logits - two).abs().max()))
        divergence += float(
            torch.nn.functional.kl_div(two.log_softmax(-1), adapter_logits.softmax(-1), reduction="sum")
        )
        matching += int((adapter_logits.argmax(-1) == two.argmax(-1)).sum())
        count += ids.numel()
    drift = summary["drift"]
    assert drift["tokens"] == count
    assert drift["logit"] == pytest.approx(largest, rel=1e-2)
    assert drift["kl"] == pytest.approx(divergence / count, rel=1e-2)
    assert drift["same_top"] == pytest.approx(matching / count, abs=1 / count)


def test_a_quantised_source_is_merged_dequantised_and_says_so(q8, tmp_path, capsys):
    skin = tiny_skin(q8, "lora")
    directory = write_skin(skin, tmp_path / "skin")
    code, out, _ = run(capsys, "merge", directory, "--out", tmp_path / "out")
    assert code == 0
    assert "quantised (q8_0): merged into the dequantised weights" in out
    assert "stored as float32" in out
    torch.testing.assert_close(logits(theirs(tmp_path / "out")), adapted(q8, skin), atol=CLOSE, rtol=0)
    assert load_base(tmp_path / "out").identity.equivalent_of is None


def test_mistakes(tiny, tmp_path, capsys):
    lora, probe, prompt = (
        write_skin(tiny_skin(tiny, skin_type), tmp_path / skin_type) for skin_type in ("lora", "probe", "prompt")
    )
    wrong_base = write_tiny_base(tmp_path / "other", seed=5, **MODEL_SHAPE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    new = tmp_path / "new"
    for arguments, status, message in (
        (("export", lora), 2, "Missing option '--out'"),
        (("show", lora, "--out", new), 2, "No such option: --out"),
        (("merge", probe, "--out", new), 2, "only LoRA weights"),
        (("export", lora, "--out", tmp_path / "full"), 2, "exists already"),
        (("export", lora, "--out", tmp_path / "full", "--overwrite"), 2, "is a directory without prompt.json"),
        (("merge", lora, "--out", lora, "--overwrite"), 2, "is a directory without base.json"),
        (("merge", prompt, "--out", new), 2, "only LoRA weights"),
        (("merge", lora, "--out", tmp_path / "full"), 2, "exists already"),
        (("merge", lora, "--out", new, "--dtype", "int3"), 2, "not known"),
        (("merge", lora, "--out", new, "--base", wrong_base), 1, "belongs to the base"),
    ):
        code, _, error = run(capsys, *arguments)
        assert (code, message in error) == (status, True), (arguments, error)
    assert not new.exists()
    assert (tmp_path / "full" / "file").read_text() == "mine"
    assert run(capsys, "export", prompt, "--out", new)[0] == 0
    assert run(capsys, "export", lora, "--out", new, "--overwrite")[0] == 0
    assert (new / "adapter_config.json").is_file()
