"""Parameter counts against transformers' and diffusers' own models, and against what publishers print."""

from __future__ import annotations

from decimal import Decimal

import pytest
import torch
from tests.economics import oracles, tiny
from tests.encoders import ENCODERS, converted
from tests.rows import first_of_each, slow_unless
from tests.tiny import tiny_spec

from bedplate.economics.model.parameters import parameters, weights
from bedplate.models.build import build
from bedplate.models.families import FAMILIES
from bedplate.models.specs import TransformerSpec
from bedplate.models.specs.presets import PRESETS
from bedplate.models.specs.transformer import Experts

# Totals of the published files, from the index of their safetensors.
EXACT = {
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "smollm2-135m": 134_515_008,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 4_300_079_472,
    "gemma-3-27b": 27_432_406_640,
    "phi-4": 14_659_507_200,
    "phi-3-mini": 3_821_079_552,
    "pythia-6.9b": 6_857_302_016,
    "bert-base": 109_482_240,
    "lfm2-350m": 354_483_968,
    "lfm2-700m": 742_489_344,
    "lfm2-1.2b": 1_170_340_608,
    "vit-b-16": 86_567_656,
    "qwen2-vl-7b": 8_291_375_616,
    # One number an expert and layer of the file is the load balancer's, no parameter: 58 · 256.
    "deepseek-v3": 671_026_419_200 - 58 * 256,
}


# fmt: off
PRINTED: dict[str, tuple[str, str | None]] = {
    "gpt2": ("0.124", None), "gpt2-medium": ("0.355", None), "gpt2-large": ("0.774", None),
    "gpt2-xl": ("1.558", None), "gpt3-175b": ("175", None), "chinchilla-70b": ("70", None),
    "tinyllama-1.1b": ("1.1", None), "llama-1-7b": ("6.7", None), "llama-1-13b": ("13.0", None),
    "llama-1-33b": ("32.5", None), "llama-1-65b": ("65.2", None), "llama-2-7b": ("6.7", None),
    "llama-2-13b": ("13.0", None), "llama-2-70b": ("69", None), "llama-3.1-8b": ("8.03", None),
    "llama-3.1-70b": ("70.6", None), "llama-3.1-405b": ("405", None), "llama-3.2-1b": ("1.23", None),
    "llama-3.2-3b": ("3.21", None), "smollm2-135m": ("0.135", None), "smollm2-360m": ("0.36", None),
    "smollm2-1.7b": ("1.7", None), "mistral-7b": ("7.2", None), "mistral-nemo-12b": ("12.2", None),
    "qwen2.5-0.5b": ("0.49", None), "qwen2.5-1.5b": ("1.54", None), "qwen2.5-7b": ("7.61", None),
    "qwen2.5-14b": ("14.7", None), "qwen2.5-32b": ("32.5", None), "qwen2.5-72b": ("72.7", None),
    "qwen3-0.6b": ("0.6", None), "qwen3-1.7b": ("1.7", None), "qwen3-4b": ("4.0", None), "qwen3-8b": ("8.2", None),
    "qwen3-14b": ("14.8", None), "qwen3-32b": ("32.8", None),
    # Embedding plus other parameters, as the report's table has them.
    "gemma-2-2b": ("2.614", None), "gemma-2-9b": ("9.242", None), "gemma-2-27b": ("27.227", None),
    "gemma-3-1b": ("1.000", None), "olmo-2-7b": ("7.3", None), "olmo-2-13b": ("13.7", None),
    "olmo-2-32b": ("32.2", None), "olmo-3-7b": ("7.3", None), "olmo-3-32b": ("32.2", None),
    "phi-3-mini": ("3.8", None), "phi-4": ("14.7", None), "pythia-6.9b": ("6.857", None),
    "mixtral-8x7b": ("46.7", "12.9"), "mixtral-8x22b": ("141", "39"), "qwen3-30b-a3b": ("30.5", "3.3"),
    "qwen3-235b-a22b": ("235", "22"), "deepseek-v2-lite": ("15.7", "2.4"), "deepseek-v3": ("671", "37"),
    "gpt-oss-20b": ("20.91", "3.61"), "gpt-oss-120b": ("116.83", "5.13"), "lfm2-350m": ("0.35", None),
    "lfm2-700m": ("0.74", None), "lfm2-1.2b": ("1.17", None), "granite-4.0-h-micro": ("3", None),
    "granite-4.0-h-tiny": ("7", "1"), "qwen3-next-80b-a3b": ("80", "3"), "bert-base": ("0.11", None),
    "bert-large": ("0.34", None), "minilm-l6": ("0.0227", None), "modernbert-base": ("0.149", None),
    "modernbert-large": ("0.395", None), "t5-base": ("0.22", None), "flan-t5-xl": ("2.85", None),
    "whisper-small": ("0.24", None), "whisper-large-v3": ("1.54", None), "vit-b-16": ("0.086", None),
    "qwen2-vl-7b": ("8.29", None),
    # Vision tower, embedding and other parameters, as the report's table has them.
    "gemma-3-4b": ("4.3", None), "gemma-3-27b": ("27.4", None), "dit-xl-2": ("0.675", None),
    "sd3-medium": ("2.0", None),
}
# fmt: on
"""Parameters and those of a token, in billions, as publishers print them, rounding and all. (T5's paper counts a head
beside the table of t5-large; the files that are published tie the two.)"""


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("seed", slow_unless((1).__eq__, [1, 2, 3]))
def test_random_specs_have_as_many_parameters_as_the_reference_model(family: str, seed: int) -> None:
    oracle, spec = tiny.random_specs(seed)[family]
    assert parameters(spec).total == oracles.count(oracles.model_of(oracle, spec))


@pytest.mark.parametrize("name", first_of_each(oracles.oracle, PRESETS))
def test_presets_have_as_many_parameters_as_the_reference_model(name: str) -> None:
    oracle = oracles.oracle(name)
    if oracle is None:
        assert name in {"chinchilla-70b", "nanochat-d24", "dit-xl-2", "sd3-medium"}
        return
    spec = PRESETS[name]
    assert parameters(spec).total == oracles.count(oracles.model_of(oracle, spec))


@pytest.mark.parametrize("name", PRINTED)
def test_presets_have_the_printed_number_of_parameters(name: str) -> None:
    counts, (total, active_part) = parameters(PRESETS[name]), PRINTED[name]
    _as_printed(total, counts.total)
    if active_part is not None:
        # Mistral and Qwen count the embedding as active, DeepSeek and OpenAI do not.
        off = [abs(float(active_part) - active / 1e9) for active in (counts.active, counts.active - counts.embedding)]
        assert min(off) < _unit(active_part)


def _as_printed(printed: str, ours: int) -> None:
    """Within one unit of the last digit that is printed, or 1%: some round, some cut off."""
    assert abs(float(printed) * 1e9 - ours) <= max(_unit(printed) * 1e9, 0.01 * ours)


def _unit(printed: str) -> float:
    return float(Decimal(1).scaleb(int(Decimal(printed).as_tuple().exponent)))


@pytest.mark.parametrize("name", EXACT)
def test_presets_equal_the_published_files(name: str) -> None:
    assert parameters(PRESETS[name]).total == EXACT[name]


def test_there_are_presets_of_every_kind_of_model() -> None:
    assert len(PRESETS) >= 45
    spec_types = {type(spec).__name__ for spec in PRESETS.values()}
    assert spec_types == {"TransformerSpec", "EncoderDecoderSpec", "VisionSpec", "MultimodalSpec", "DiffusionSpec"}
    assert all(name == name.lower() for name in PRESETS)


def test_what_we_build_has_as_many_parameters_as_we_count() -> None:
    specs = [tiny_spec(), tiny_spec(tied_head=False, attention_bias=True, feedforward_bias=True)]
    specs += [tiny_spec(norm="layer", norm_placement="post", gated=False, rope=None)]
    encoder = tiny_spec(kind="encoder", rope=None, norm="layer", norm_placement="post", token_types=2, gated=False)
    specs += [encoder, encoder.with_(pooler=True, kv_heads=6)]
    for spec in specs:
        assert oracles.count(build(spec, device="meta")) == parameters(spec).total


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_and_their_classifiers_have_as_many_parameters_as_the_reference(name: str) -> None:
    reference = ENCODERS[name].random_model(0, torch.float32)
    model, _ = converted(reference, torch.float32)
    assert parameters(model.spec).total == oracles.count(reference)


@pytest.mark.parametrize("key", [key for key, family in FAMILIES.items() if family.examples and key[0] == "hf"])
def test_families_have_as_many_parameters_as_we_count(key: tuple[str, str]) -> None:
    for example in FAMILIES[key].examples:
        spec = FAMILIES[key].to_spec(example)
        assert oracles.count(build(spec, device="meta")) == parameters(spec).total


def test_diffusion_transformers_equal_the_papers_and_diffusers() -> None:
    assert parameters(PRESETS["dit-xl-2"]).total == pytest.approx(675e6, rel=1e-3)  # 2212.09748, table 1
    pytest.importorskip("diffusers")
    spec = PRESETS["sd3-medium"]
    assert parameters(spec).total == oracles.count(oracles.model_of(oracles.sd3, spec))


def test_shares_of_the_parameters() -> None:
    dense = parameters(PRESETS["llama-3.1-8b"])
    table = 128_256 * 4096
    assert (dense.active, dense.embedding, dense.head) == (dense.total, table, table)
    norms = (2 * 32 + 1) * 4096
    assert dense.products == dense.total - table - norms  # everything but the look-up and the norms
    tied = parameters(PRESETS["smollm2-135m"])
    assert tied.head == tied.embedding
    assert tied.products == tied.total - (2 * 30 + 1) * 576  # the tied table is used as the head


def test_experts_that_a_token_does_not_pass_are_not_active() -> None:
    spec = PRESETS["mixtral-8x7b"]
    assert isinstance(spec, TransformerSpec)
    counts = parameters(spec)
    idle = 6 * 32 * 3 * 4096 * 14_336
    assert counts.active == counts.total - idle
    all_chosen = parameters(spec.with_(experts=Experts(8, 8, 14_336)))
    assert all_chosen.active == all_chosen.total == counts.total


def test_a_prediction_module_is_a_block_a_join_and_three_norms() -> None:
    spec = PRESETS["deepseek-v3"]
    assert isinstance(spec, TransformerSpec)
    with_module = parameters(spec.with_(prediction_modules=1))
    block = sum(weight.stored for weight in weights(spec) if weight.layer == 60)
    assert with_module.total - parameters(spec).total == block + 2 * 7168**2 + 3 * 7168
    # The published file has the module's own copies of table and head: 685 billion in all.
    assert with_module.total + 2 * 129_280 * 7168 == pytest.approx(684.5e9, rel=1e-3)


def test_value_tables_are_looked_up() -> None:
    spec = tiny_spec(value_tables=2)
    plain = parameters(spec.with_(value_tables=0))
    counts = parameters(spec)
    tables = 2 * spec.vocab_size * spec.attention.kv_heads * spec.attention.head_dim
    assert counts.total - plain.total == counts.embedding - plain.embedding == tables
    assert counts.products == plain.products
