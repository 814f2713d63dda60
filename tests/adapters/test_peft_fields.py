"""Fields of peft's `adapter_config.json` that change what an adapter computes, against peft itself."""

import json
import re

import peft
import pytest
import safetensors.torch
import torch
from tests.adapters.test_peft import LLAMA, TOKENS, logits, ours
from tests.near import assert_near
from tests.references import reference_llama

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears
from bedplate.adapters.peft import CONFIG_FILE, TENSORS_FILE, read_peft
from bedplate.core.errors import SkinError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
EQUIVALENT_INITS = [True, False, "gaussian", "orthogonal", "mica", "eva"]
CHANGING_INITS = ["pissa", "pissa_niter_4", "olora"]


def saved_by_peft(directory, seed, convert=None, **fields):
    """A peft model with a tuned adapter, in `directory`, and the base it was made of."""
    reference = reference_llama(seed)
    base = ours(reference, LLAMA)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, **{"target_modules": ["q_proj", "o_proj", "down_proj"], **fields}
    )
    theirs = peft.get_peft_model(reference, config).eval()
    if convert is not None:
        theirs.peft_config["default"].init_lora_weights = True
        theirs.save_pretrained(convert)
        theirs.peft_config["default"].init_lora_weights = fields["init_lora_weights"]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    extra = {} if convert is None else {"path_initial_model_for_weight_conversion": str(convert)}
    theirs.save_pretrained(directory, **extra)
    with torch.no_grad():
        return theirs(TOKENS).logits, base


def assert_equal(directory, expected, base):
    config, tensors = read_peft(directory, LLAMA.weights, block_linears(base))
    bank = Bank(base)
    bank.select(bank.add(config, tensors))
    with torch.no_grad():
        assert_near(logits(base), expected)


@pytest.mark.filterwarnings("ignore:(.init_lora_weights. is .eva.|lora with eva):UserWarning")
@pytest.mark.parametrize("start", EQUIVALENT_INITS)
def test_starts_that_leave_the_base_alone_are_read(tmp_path, start):
    expected, base = saved_by_peft(tmp_path, 1, init_lora_weights=start)
    assert_equal(tmp_path, expected, base)


@pytest.mark.filterwarnings("ignore:(PiSSA|OLoRA) changes the base weights:UserWarning")
@pytest.mark.parametrize("start", CHANGING_INITS)
def test_starts_that_change_the_base_are_refused_until_converted(tmp_path, start):
    """What peft itself computes is far from base + B A; with its own conversion it is that."""
    saved_by_peft(tmp_path / "as it is", 2, init_lora_weights=start)
    with pytest.raises(SkinError, match=r"init_lora_weights.*path_initial_model_for_weight_conversion"):
        read_peft(tmp_path / "as it is", LLAMA.weights)
    expected, base = saved_by_peft(tmp_path / "plain", 2, tmp_path / "start", init_lora_weights=start)
    assert_equal(tmp_path / "plain", expected, base)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("seed", range(2))
def test_patterns_mean_what_they_mean_in_peft(tmp_path, seed):
    ranks = {r".*\.down_proj": 3, "^model.layers.0.self_attn.q_proj": 2, "^o_proj": 5}
    alphas = {"^model.layers.1.self_attn.o_proj$": 20, "^q_proj": 9, "0.self_attn.q_proj$": 5, "^down_proj$": 7}
    expected, base = saved_by_peft(
        tmp_path, seed, rank_pattern=ranks, alpha_pattern=alphas, use_rslora=bool(seed), init_lora_weights=False
    )
    assert_equal(tmp_path, expected, base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_lora_weights": "corda"}, "init_lora_weights='corda' changed"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights='lora_ga' changed"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq' changed.*quantised"),
        ({"init_lora_weights": "new"}, "init_lora_weights='new' is not known"),
        ({"init_lora_weights": 3}, "init_lora_weights=3 is not known"),
        ({"use_dorra": True}, "use_dorra=True is not a field.*use_dora"),
        ({"gate_config": {"k": 2}}, "gate_config"),
        ({"alpha_pattern": {"^(q|k)_proj$": 2}}, re.escape("'^(q|k)_proj$'")),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, change, message):
    saved_by_peft(tmp_path, 0)
    path = tmp_path / CONFIG_FILE
    fields = json.loads(path.read_text()) | {"of_a_newer_peft": None, "use_newer": False, "newer_pattern": {}}
    path.write_text(json.dumps(fields))
    read_peft(tmp_path, LLAMA.weights)  # fields that are not known and say nothing
    path.write_text(json.dumps(fields | change))
    with pytest.raises(SkinError, match=message):
        read_peft(tmp_path, LLAMA.weights)


@pytest.mark.parametrize(("dtype", "large"), [(torch.float16, 7e4), (torch.bfloat16, 3.4e38)])
def test_an_adapter_that_overflows_in_the_bases_dtype_is_refused(tmp_path, dtype, large):
    _, base = saved_by_peft(tmp_path, 0)
    path = tmp_path / TENSORS_FILE
    tensors = safetensors.torch.load_file(path)
    tensors[next(iter(tensors))][0, 0] = large
    safetensors.torch.save_file(tensors, path)
    config, read = read_peft(tmp_path, LLAMA.weights, block_linears(base))
    bank = Bank(base.to(dtype))
    with pytest.raises(SkinError, match=rf"{re.escape(format(large, 'g'))}.*{dtype}"):
        bank.add(config, read)
    assert bank.slots == ()
    bank.add(config, read, trainable=True)  # kept in float32
    assert Bank(base.float()).add(LoraConfig(r=2)) == 0
