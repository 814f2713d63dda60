"""LoRA on experts: both ways through peft's `target_parameters`, mixed batches, merging, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.counting import Counted
from tests.near import assert_near
from tests.peft_directory import write_peft

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import adaptable, hf_module_name
from bedplate.adapters.peft import read_peft
from bedplate.core.errors import SkinError, UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Sampling
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.forward.spans import Span
from bedplate.inference.measure.parity import reference_of
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TOKENS = torch.arange(24).reshape(3, 8) * 3 % 90 + 3
EXPERT_TARGETS = ("experts.gate_up", "experts.down")
CONFIGS = {
    "experts": LoraConfig(r=2, alpha=3, targets=EXPERT_TARGETS),
    "one of them, and linears": LoraConfig(r=3, alpha=6, rslora=True, targets=("experts.gate_up", "o")),
    "one layer": LoraConfig(r=2, alpha=4, targets=("layers.2.feedforward.experts.down", "layers.1.attention.o")),
}
SHARED = {
    "with experts": LoraConfig(r=2, alpha=3, targets=(*EXPERT_TARGETS, "gate", "up", "down", "o")),
    "other ranks": LoraConfig(
        r=3,
        alpha=6,
        rslora=True,
        targets=("up", "down"),
        ranks={"layers.2.feedforward.shared.down": 2},
        alphas={"layers.1.feedforward.shared.up": 9},
    ),
    "one layer": LoraConfig(r=2, alpha=4, targets=("layers.0.feedforward.up", "layers.2.feedforward.shared.down")),
}
"""On linears that are named like the matrices of single experts."""


def pair(name: str, path: Path, **changes: Any) -> tuple[Any, Base]:
    family = FAMILIES["hf", name]
    reference = reference_of(family, {**family.examples[0], **changes}, 0)
    reference.save_pretrained(path / "base")
    return reference, load_base(path / "base", "float32", "cpu")


def logits(base: Base, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return base.model.head(base.model(Inputs(tokens)).hidden)


def filled(bank: Bank, config: LoraConfig, seed: int = 7) -> dict[str, torch.Tensor]:
    slot = bank.add(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {k: torch.randn(v.shape, generator=generator) * 0.2 for k, v in bank.state(slot).items()}
    bank.remove(slot)
    return tensors


def a_bank(base: Base, slots: int = 1) -> Bank:
    return Bank(base.model, slots, hf_name=lambda path: hf_module_name(base.family.weights, path))


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize(
    ("config", "family"),
    [
        *((config, family) for config in CONFIGS.values() for family in ("mixtral", "gpt_oss", "deepseek_v3")),
        *((config, "deepseek_v3") for config in SHARED.values()),
    ],
)
def test_our_adapter_in_peft_and_back(config: LoraConfig, family: str, tmp_path: Path) -> None:
    reference, base = pair(family, tmp_path)
    bank, plain = a_bank(base), logits(base)
    tensors = filled(bank, config)
    slot = bank.add(config, tensors)
    write_peft(tmp_path / "a", config, tensors, base.family.weights, base_name="tiny")
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "a").eval()
    bank.select(slot)
    ours = logits(base)
    assert (ours - plain).abs().max() > 1e-3
    with torch.no_grad():
        assert_near(ours, theirs(TOKENS).logits, 4e-6)
    bank.merge(slot)
    assert_near(logits(base), ours, 1e-5)
    read_config, read = read_peft(tmp_path / "a", base.family.weights, adaptable(base.model))
    paths = read_config.paths(adaptable(base.model), None)
    assert read_config.r == config.r
    assert all(
        (read_config.rank(path), read_config.scaling(path)) == (config.rank(path), pytest.approx(config.scaling(path)))
        for path in paths
    )
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) for name, value in tensors.items())


PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("qwen3_moe", {"target_modules": ["v_proj"], "target_parameters": PARAMETERS}),
        ("gpt_oss", {"target_modules": ["v_proj"], "target_parameters": PARAMETERS}),
        # peft makes of these names those of the parameters that hold all experts, with a rank of its own
        ("qwen3_moe", {"target_modules": ["v_proj", "gate_proj", "up_proj", "down_proj"]}),
    ],
)
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
def test_an_adapter_of_peft_is_read(family: str, targets: dict[str, Any], tmp_path: Path) -> None:
    reference, base = pair(family, tmp_path)
    config = peft.LoraConfig(r=3, lora_alpha=5, **targets)
    theirs = peft.get_peft_model(reference, config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    read_config, tensors = read_peft(tmp_path / "theirs", base.family.weights, adaptable(base.model))
    bank = a_bank(base)
    bank.select(bank.add(read_config, tensors))
    with torch.no_grad():
        assert_near(logits(base), theirs(TOKENS).logits, 2e-6)


@pytest.mark.parametrize("flat", [False, True])
def test_rows_with_different_adapters_are_separate_runs(flat: bool, tmp_path: Path) -> None:
    """On experts, linears and the latents' product, whose absorbed form needs the weights themselves."""
    _, base = pair("deepseek_v3", tmp_path)
    config = LoraConfig(r=2, alpha=3, targets=(*EXPERT_TARGETS, "kv_up", "q_up", "shared.down"))
    bank = a_bank(base, 2)
    slots = [bank.add(config, filled(bank, config, seed)) for seed in (1, 2)]
    rows = [slots[0], -1, slots[1]]
    alone = []
    for number, slot in enumerate(rows):
        bank.select(slot)
        alone.append(logits(base, TOKENS[number : number + 1]))
    index = torch.tensor(rows)
    if flat:
        bank.select(index.repeat_interleave(TOKENS.shape[1]))
        segments = torch.arange(3).repeat_interleave(TOKENS.shape[1])[None] + 1
        with torch.no_grad():
            hidden = base.model(Inputs(TOKENS.reshape(1, -1), segments=segments)).hidden
            together = base.model.head(hidden).view(3, *alone[0].shape[1:])
    else:
        bank.select(index)
        together = logits(base)
    assert_near(together, torch.cat(alone), 2e-6)


def test_mixed_rows_wait_for_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On experts, linears and latents, by tensors that say they are a device's: products of groups are torch's."""
    _, base = pair("deepseek_v3", tmp_path)
    config = LoraConfig(r=2, alpha=3, targets=(*EXPERT_TARGETS, "kv_up", "q_up", "shared.down"))
    bank = a_bank(base, 2)
    slots = [bank.add(config, filled(bank, config, seed)) for seed in (1, 2)]
    cache = SlotCache(base.spec, torch.float32, torch.device("cpu"))
    cache.reserve({0: 8, 1: 8, 2: 8})
    spans = [Span(row, 0, 8) for row in range(3)]
    inputs = Inputs(TOKENS.reshape(1, -1), torch.arange(8).repeat(3)[None], last=7)
    rows = [slot for slot in (slots[0], -1, slots[1]) for _ in range(8)]
    bank.select(rows)
    counts = []
    for _ in range(2):  # what is tried once, and kept, is so the first time
        attend = cache.attend(spans)
        with monkeypatch.context() as patched, torch.no_grad(), Counted() as counted:
            patched.setattr(torch.Tensor, "is_cpu", property(lambda tensor: False))
            hidden = base.model(inputs, cache=attend).hidden
        counts.append(counted)
    assert counts[1].waited == 0, counts[1].waits
    bank.select(None)
    for number, slot in enumerate((slots[0], -1, slots[1])):
        bank.select(slot)
        alone = Inputs(TOKENS[number : number + 1])
        with torch.no_grad():
            assert_near(hidden[:, 8 * number : 8 * number + 8], base.model(alone).hidden, 1e-5)


def test_only_the_experts_weights_are_trained(tmp_path: Path) -> None:
    _, base = pair("mixtral", tmp_path)
    bank = a_bank(base)
    slot = bank.add(LoraConfig(r=2, alpha=4, targets=EXPERT_TARGETS))
    bank.select(slot)
    base.model(Inputs(TOKENS)).hidden.square().mean().backward()
    trained = dict(bank.parameters(slot))
    assert len(trained) == 4 * base.spec.layers
    assert all(p.grad is not None for name, p in trained.items() if name.endswith("lora_B"))
    assert all(p.grad is None for p in base.model.parameters())
    assert all("experts" in name for name in trained)


def test_what_experts_do_not_take_is_refused(tmp_path: Path) -> None:
    reference, base = pair("mixtral", tmp_path)
    bank = a_bank(base)
    for config, message in (
        (LoraConfig(dora=True, targets=EXPERT_TARGETS), "magnitudes"),
        (LoraConfig(dropout=0.1, targets=EXPERT_TARGETS), "dropout"),
    ):
        with pytest.raises(UsageError, match=message):
            bank.add(config)
    linears = LoraConfig().paths(adaptable(base.model), None)
    assert not any("experts" in path for path in linears)
    with pytest.raises(SkinError, match="'down' names no linear"):
        LoraConfig(targets=("down",)).paths(adaptable(base.model), None)
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["mlp.gate.weight"])
    peft.get_peft_model(reference, config).save_pretrained(tmp_path / "router")
    with pytest.raises(SkinError, match=r"gate\.weight, which is neither a linear"):
        read_peft(tmp_path / "router", base.family.weights, adaptable(base.model))


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss"])
def test_the_engine_runs_adapters_on_experts_together_as_alone(family: str, tmp_path: Path) -> None:
    """Two adapters and the base in one batch, over cached latents or windows: the tokens of each by itself."""
    _, base = pair(family, tmp_path)
    config = LoraConfig(r=2, alpha=3, targets=(*EXPERT_TARGETS, "o"))
    adapters = {name: filled(a_bank(base), config, seed) for seed, name in enumerate("ab")}
    prompts = [tuple(row.tolist()) for row in TOKENS]
    sampling = Sampling(max_tokens=12, ignore_eos=True)
    requests = [
        Generate(prompt, sampling, adapter=name) for prompt, name in zip(prompts, (None, "a", "b"), strict=True)
    ]
    with Engine(base, weights="float32", kernel="torch", speculate=False) as engine:
        for name, tensors in adapters.items():
            engine.load_adapter(name, config, tensors)
        together = engine.run(requests)
        alone = [engine.run([request])[0] for request in requests]
    for batched, separate in zip(together, alone, strict=True):
        assert batched.token_ids == separate.token_ids
        assert_near(torch.tensor(batched.logprobs), torch.tensor(separate.logprobs), 1e-4)
    assert len({result.token_ids for result in together}) == 3
