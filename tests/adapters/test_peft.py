"""PEFT's layout both ways, against peft and transformers themselves, and what reading refuses."""

import json
import math

import peft
import pytest
import safetensors.torch
import torch
from tests.near import assert_near
from tests.peft_directory import write_peft
from tests.references import reference_bert, reference_llama

from bedplate.adapters.bank import Bank
from bedplate.adapters.linear_adapter import MAGNITUDE
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears, hf_module_name
from bedplate.adapters.peft import CONFIG_FILE, TENSORS_FILE, peft_files, read_peft
from bedplate.core.errors import SkinError
from bedplate.models.build import build
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs

LLAMA, BERT = FAMILIES[("hf", "llama")], FAMILIES[("hf", "bert")]
# transformers' own deprecation, reached from inside peft
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TOKENS = torch.arange(18).reshape(3, 6) % 60


def ours(reference, family):
    spec = family.to_spec(reference.config.to_dict())
    if family is BERT:
        spec = spec.with_(pooler=True)
    model = build(spec)
    state = {family.weights.from_external(k): v for k, v in reference.state_dict().items()}
    keys = model.state_dict().keys()
    model.load_state_dict({k: v for k, v in state.items() if k in keys})
    return model.requires_grad_(False).eval()


def randomise(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    drawn = {k: torch.randn(v.shape, generator=generator) for k, v in tensors.items()}
    # magnitudes near those of the weights, everything else near 0
    return {k: tensors[k] * (1 + 0.2 * v) if k.endswith(MAGNITUDE) else v * 0.1 for k, v in drawn.items()}


def logits(model) -> torch.Tensor:
    hidden = model(Inputs(TOKENS)).hidden
    return model.head(hidden.reshape(-1, hidden.shape[-1])).reshape(*TOKENS.shape, -1)


CONFIGS = {
    "all-linear": LoraConfig(r=4, alpha=8),
    "rslora": LoraConfig(r=4, alpha=6, rslora=True, targets=("q", "v_proj")),
    "one layer": LoraConfig(r=2, alpha=3.5, targets=("layers.1.attention.o", "layers.0.feedforward.up")),
    "patterns": LoraConfig(
        r=4,
        alpha=8,
        targets=("q_proj", "down"),
        ranks={"layers.0.attention.q": 2},
        alphas={"layers.1.feedforward.down": 20},
    ),
    "dora": LoraConfig(r=4, alpha=8, dora=True),
    "dora on some": LoraConfig(r=3, alpha=8, dora=True, rslora=True, targets=("k_proj", "down"), alphas={}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_our_adapter_in_peft_gives_our_logits(tmp_path, name):
    config, reference = CONFIGS[name], reference_llama(0)
    model = ours(reference, LLAMA)
    bank = Bank(model, hf_name=lambda path: hf_module_name(LLAMA.weights, path))
    slot = bank.add(config)
    tensors = randomise(bank.state(slot))
    bank.remove(slot)
    slot = bank.add(config, tensors)
    write_peft(tmp_path / "a", config, tensors, LLAMA.weights, base_name="tiny")
    # peft only warns about missing and unexpected keys; a warning fails a test here
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "a").eval()
    base = logits(model)
    bank.select(slot)
    with torch.no_grad():
        expected = theirs(TOKENS).logits
    assert_near(logits(model), expected)
    assert not torch.allclose(base, expected, atol=1e-2)
    read_config, read = read_peft(tmp_path / "a", LLAMA.weights, block_linears(model))
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[k], tensors[k]) for k in read)
    assert (read_config.r, read_config.alpha, read_config.rslora, read_config.ranks) == (
        config.r,
        config.alpha,
        config.rslora,
        config.ranks,
    )
    assert read_config.alphas == config.alphas
    if name == "all-linear":
        assert read_config == config
    if name == "rslora":
        assert read_config.targets == ("attention.q", "attention.v")


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_a_peft_adapter_in_our_bank_gives_its_logits(tmp_path, targets, dora):
    reference = reference_llama(0, attention_bias=dora)
    model = ours(reference, LLAMA)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=3,
        lora_alpha=9,
        lora_dropout=0.1,
        use_rslora=True,
        use_dora=dora,
        target_modules=targets,
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(reference, config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if MAGNITUDE in name:
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    ours_config, tensors = read_peft(tmp_path, LLAMA.weights, block_linears(model))
    assert ours_config.scaling("layers.0.attention.q") == pytest.approx(9 / math.sqrt(3))
    assert (ours_config.targets == "all-linear") == (targets == "all-linear")
    bank = Bank(model)
    assert ours_config.dora is dora
    slot = bank.add(ours_config, tensors)
    bank.select(slot)
    with torch.no_grad():
        expected = theirs(TOKENS).logits
        assert_near(logits(model), expected)
        bank.merge(slot)
        assert_near(logits(model), expected)
        assert_near(theirs.merge_and_unload()(TOKENS).logits, logits(model))


def test_an_encoder_adapter_in_peft_gives_our_hidden_states(tmp_path):
    reference = reference_bert(0)
    model = ours(reference, BERT)
    bank = Bank(model)
    config = LoraConfig(r=4, alpha=8)
    tensors = randomise(bank.state(bank.add(config)))
    bank.close()
    write_peft(tmp_path / "a", config, tensors, BERT.weights, base_name="tiny", task_type="FEATURE_EXTRACTION")
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "a").eval()
    bank.select(bank.add(config, tensors))
    with torch.no_grad():
        expected = theirs(TOKENS).last_hidden_state
    assert_near(model(Inputs(TOKENS)).hidden, expected)


def test_peft_starts_and_trains_like_us(tmp_path):
    """One SGD step on the same loss from the same A moves the same B."""
    reference = reference_llama(0)
    model = ours(reference, LLAMA)
    bank = Bank(model)
    config = LoraConfig(r=4, alpha=8)
    slot = bank.add(config, seed=3)
    write_peft(tmp_path / "a", config, bank.state(slot), LLAMA.weights, base_name="tiny")
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "a", is_trainable=True)
    bank.select(slot)
    logits(model).log_softmax(-1)[..., 1].mean().backward()
    theirs(TOKENS).logits.log_softmax(-1)[..., 1].mean().backward()
    reference_gradients = {k: p.grad for k, p in theirs.named_parameters() if p.requires_grad}
    for name, parameter in bank.parameters(slot):
        path, part = name.rsplit(".", 1)
        key = f"base_model.model.{hf_module_name(LLAMA.weights, path)}.{part}.default.weight"
        assert_near(parameter.grad, reference_gradients[key], label=key)


def test_target_modules_are_short_and_name_nothing_else():
    def modules(config, model, family):
        tensors = Bank(model, hf_name=lambda p: hf_module_name(family.weights, p))
        files = peft_files(config, tensors.state(tensors.add(config)), family.weights, base_name="x")
        return json.loads(files[CONFIG_FILE])["target_modules"]

    llama = ours(reference_llama(0), LLAMA)
    all_projections = [f"{x}_proj" for x in ("down", "gate", "k", "o", "q", "up", "v")]
    assert modules(LoraConfig(), llama, LLAMA) == all_projections
    assert modules(LoraConfig(targets=("attention.q",)), llama, LLAMA) == ["q_proj"]
    single_module = modules(LoraConfig(targets=("layers.1.attention.q",)), llama, LLAMA)
    assert single_module == ["model.layers.1.self_attn.q_proj"]
    assert "dense" not in modules(LoraConfig(), ours(reference_bert(0), BERT), BERT)


def test_the_same_adapter_gives_the_same_bytes():
    model = ours(reference_llama(0), LLAMA)
    bank = Bank(model)
    state = bank.state(bank.add(LoraConfig()))
    backwards = dict(reversed(state.items()))
    files = [peft_files(LoraConfig(), s, LLAMA.weights, base_name="x") for s in (state, backwards)]
    assert files[0] == files[1]


@pytest.fixture
def saved(tmp_path):
    model = ours(reference_llama(0), LLAMA)
    bank = Bank(model)
    config = LoraConfig(r=4, targets=("q", "v"))
    directory = tmp_path / "adapter"
    write_peft(directory, config, bank.state(bank.add(config)), LLAMA.weights, base_name="tiny")
    return directory, block_linears(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"r": 8}, "rank 8"),
        ({"r": "many"}, r"\br\b"),
        ({"lora_alpha": -1}, "alpha"),
        ({"target_modules": ["q_proj"]}, "v_proj"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "'k_proj'"),
        (
            {"target_modules": r".*\.layers\.0\..*(q_proj|v_proj)"},
            r"layers\.[1-9]\.self_attn.[qv]_proj, which target_modules does not",
        ),
        ({"target_modules": ".*(q_proj"}, "is not a regular expression"),
        ({"target_modules": "a" * 5000}, "5,000 characters"),
        ({"target_modules": r"(.*)*(.*)*(.*)*(.*)*z"}, "regular expression|does not name"),
        ({"rank_pattern": {"(a+)+b": 2}}, "not a module name"),
        ({"rank_pattern": {"q_proj": 2}}, "rank 2"),
    ],
)
def test_reading_refuses_other_configurations(saved, change, message):
    directory, modules = saved
    path = directory / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SkinError, match=message):
        read_peft(directory, LLAMA.weights, modules)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q7 = Q.replace(".0.", ".7.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({Q: None}, "no lora_A"),
        ({Q: torch.full((4, 32), float("nan"))}, "NaN"),
        ({Q: torch.zeros(4, 31)}, "shape"),
        ({Q: torch.zeros(3, 32)}, "rank 4"),
        ({Q: torch.zeros(4, 32, dtype=torch.int8)}, "dtype"),
        ({Q.replace("lora_A.weight", "lora_magnitude_vector"): torch.zeros(32)}, "not part of a plain LoRA"),
        ({Q.replace("q_proj", "z_proj"): torch.zeros(4, 32)}, "z_proj"),
        ({Q.replace("self_attn.q_proj", "input_layernorm"): torch.zeros(4, 32)}, "input_layernorm"),
        ({Q7: torch.zeros(4, 32), Q7.replace("_A", "_B"): torch.zeros(32, 4)}, r"layers\.7"),
    ],
)
def test_reading_refuses_other_tensors(saved, change, message):
    directory, modules = saved
    path = directory / TENSORS_FILE
    tensors = {k: v for k, v in (safetensors.torch.load_file(path) | change).items() if v is not None}
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(SkinError, match=message):
        read_peft(directory, LLAMA.weights, modules)


def test_reading_refuses_magnitudes_that_do_not_fit(tmp_path):
    model = ours(reference_llama(0), LLAMA)
    config, bank = LoraConfig(r=4, targets=("q", "v"), dora=True), Bank(model)
    tensors = bank.state(bank.add(config))
    write_peft(tmp_path / "a", config, tensors, LLAMA.weights, base_name="tiny")
    path, key = tmp_path / "a" / TENSORS_FILE, Q.replace("lora_A.weight", MAGNITUDE)
    whole = safetensors.torch.load_file(path)
    assert key in whole
    for changed, message in (
        ({k: v for k, v in whole.items() if k != key}, "use_dora"),
        (whole | {key: torch.ones(7)}, r"\[7\]"),
        (whole | {key: torch.full((48,), torch.nan)}, "NaN"),
    ):
        safetensors.torch.save_file(changed, path)
        with pytest.raises(SkinError, match=message):
            read_peft(tmp_path / "a", LLAMA.weights, block_linears(model))
    # an older peft's name of the same tensor
    safetensors.torch.save_file({f"{k}.weight" if MAGNITUDE in k else k: v for k, v in whole.items()}, path)
    read_config, read = read_peft(tmp_path / "a", LLAMA.weights, block_linears(model))
    assert read_config.dora
    assert all(torch.equal(read[k], tensors[k]) for k in tensors)


def test_reading_refuses_pickles_links_and_broken_files(saved):
    directory, modules = saved
    path, config = directory / TENSORS_FILE, directory / CONFIG_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(SkinError, match="not a whole safetensors"):
        read_peft(directory, LLAMA.weights, modules)
    (directory.parent / "real").write_bytes(whole)
    path.unlink()
    path.symlink_to(directory.parent / "real")
    with pytest.raises(SkinError, match="symbolic link"):
        read_peft(directory, LLAMA.weights, modules)
    path.unlink()
    with pytest.raises(SkinError, match="missing"):
        read_peft(directory, LLAMA.weights, modules)
    torch.save({}, directory / "adapter_model.bin")
    with pytest.raises(SkinError, match="pickle"):
        read_peft(directory, LLAMA.weights, modules)
    config.write_text("{} trailing")
    path.write_bytes(whole)
    with pytest.raises(SkinError, match="not valid JSON"):
        read_peft(directory, LLAMA.weights, modules)


def test_a_plain_configuration_is_written_as_before_there_was_dora():
    """Skins and training states are named by hashes of it."""
    assert set(LoraConfig(r=4).model_dump(mode="json")) == {
        *("r", "alpha", "dropout", "rslora", "targets", "ranks", "alphas")
    }
    for config in (LoraConfig(r=4), LoraConfig(r=4, dora=True)):
        assert LoraConfig.model_validate(config.model_dump(mode="json")) == config
        assert LoraConfig.model_validate_json(config.model_dump_json()) == config
