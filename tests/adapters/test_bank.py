"""The bank: identity at B = 0, scaling, mixed batches equal separate runs, merging, and its refusals."""

import copy
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.near import assert_near

from bedplate.adapters.bank import Bank
from bedplate.adapters.linear_adapter import MAGNITUDE
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears
from bedplate.adapters.site import MASK_TOKENS, AdapterRows
from bedplate.core.errors import SkinError, UsageError
from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs
from bedplate.models.layers.fused.linears import fuse_linears
from bedplate.models.layers.linear import Linear

TOKENS = torch.arange(24).reshape(4, 6) % 64


def random_adapter(model, config: LoraConfig, seed: int) -> dict[str, torch.Tensor]:
    bank = Bank(model)
    slot = bank.add(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    fresh = bank.state(slot)
    drawn = {k: torch.randn(v.shape, generator=generator) * 0.2 for k, v in fresh.items()}
    bank.close()
    return {k: fresh[k] * (1 + v) if k.endswith(MAGNITUDE) else v for k, v in drawn.items()}


def run(model, bank, rows, tokens=TOKENS) -> torch.Tensor:
    bank.select(rows)
    with torch.no_grad():
        return model(Inputs(tokens)).hidden


@pytest.mark.parametrize("dora", [False, True])
def test_a_fresh_adapter_is_the_identity_and_the_base_runs_without_hooks(decoder, dora):
    bank = Bank(decoder)
    plain = decoder(Inputs(TOKENS)).hidden
    slot = bank.add(LoraConfig(r=4, dora=dora))
    assert torch.equal(run(decoder, bank, slot), plain)
    for rows in (None, -1, torch.full((4,), -1)):
        bank.select(slot)
        assert torch.equal(run(decoder, bank, rows), plain)
        assert all(m.low_rank is None for m in decoder.modules() if isinstance(m, Linear))


def test_a_scaled_adapter_that_overflows_is_refused(make_decoder):
    """Alone its rows would be infinite; beside others, B's columns are multiplied by all rows' zeros."""
    decoder = make_decoder()
    bank = Bank(decoder, slots=2)
    configs = LoraConfig(r=2, alpha=2, targets=("q",)), LoraConfig(r=2, alpha=8, targets=("q",))
    state = random_adapter(decoder, configs[0], 1)
    large = {name: value.fill_(2e38) if name.endswith("lora_B") else value for name, value in state.items()}
    bank.add(configs[0], large)
    with pytest.raises(SkinError, match=r"layers.0.attention.q.lora_B has a value of 2e\+38, which overflows"):
        bank.add(configs[1], large)
    assert bank.slots == (0,)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / math.sqrt(4))])
def test_the_update_is_scaling_times_b_a_x(decoder, rslora, scale):
    linear = decoder.layers[0].attention.q
    config = LoraConfig(r=4, alpha=8, rslora=rslora, targets=("q",))
    state = random_adapter(decoder, config, 1)
    bank = Bank(decoder)
    bank.select(bank.add(config, state))
    x = torch.randn(3, 32)
    a, b = state["layers.0.attention.q.lora_A"], state["layers.0.attention.q.lora_B"]
    expected = x.double() @ (linear.weight.double() + scale * b.double() @ a.double()).T
    assert_near(linear(x).double(), expected)
    assert decoder.layers[0].attention.k.low_rank is None


def test_all_linear_is_every_linear_of_the_blocks(decoder):
    names = {path.split(".", 2)[2] for path in block_linears(decoder)}
    assert names == {f"attention.{x}" for x in "qkvo"} | {f"feedforward.{x}" for x in ("gate", "up", "down")}
    untied = Decoder(decoder.spec.with_(tied_head=False))
    assert "lm_head" not in block_linears(untied)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(-1, 2), min_size=4, max_size=4), long=st.booleans(), flat=st.booleans())
def test_a_mixed_batch_equals_separate_runs(make_decoder, monkeypatch, rows, long, flat):
    monkeypatch.setattr("bedplate.adapters.site.MASK_RANKS", 4)  # so that long batches are sorted into segments
    decoder = make_decoder()
    bank = Bank(decoder, slots=3)
    for seed, config in enumerate(
        (LoraConfig(r=2, alpha=8), LoraConfig(r=5, rslora=True, dora=True), LoraConfig(r=3, targets=("q", "down")))
    ):
        bank.add(config, random_adapter(decoder, config, seed))
    tokens = torch.arange(4 * (MASK_TOKENS if long else 6)).reshape(4, -1) % 64
    index = torch.tensor(rows)
    separate = torch.cat([run(decoder, bank, slot, tokens[i : i + 1]) for i, slot in enumerate(rows)])
    if flat:
        length = tokens.shape[1]
        segments = torch.arange(1, 5).repeat_interleave(length)[None]
        bank.select(index.repeat_interleave(length))
        mixed = decoder(Inputs(tokens.reshape(1, -1), segments=segments)).hidden.reshape(separate.shape)
    else:
        mixed = run(decoder, bank, index, tokens)
    assert_near(mixed, separate)


@torch.no_grad()
@pytest.mark.parametrize("laid", [True, False])
@pytest.mark.parametrize("dora", [True, False])
@pytest.mark.parametrize("batch_layout", ["rows", "flat", "places"])
def test_infinities_of_one_adapter_stay_in_its_rows(make_decoder, batch_layout: str, dora: bool, laid: bool):
    """0 times an infinity is NaN: what is not a row's own is left out and not multiplied. In the last feed-forward,
    behind which no row sees another."""
    decoder, last = make_decoder(), tuple(f"layers.1.feedforward.{name}" for name in ("gate", "up", "down"))
    bank, config, bad_config = (
        Bank(decoder, slots=2),
        LoraConfig(r=2, dora=dora, targets=last),
        LoraConfig(r=3, targets=last),
    )
    good, drawn = bank.add(config, random_adapter(decoder, config, 0)), random_adapter(decoder, bad_config, 1)
    bad = bank.add(bad_config, {k: v.sign() * 1e38 if k.endswith("A") else v for k, v in drawn.items()})
    if laid:
        fuse_linears(decoder)
    slots = [good, bad, -1, good]
    alone = torch.cat([run(decoder, bank, slot, TOKENS[i : i + 1]) for i, slot in enumerate(slots)])
    segments = torch.arange(1, 5).repeat_interleave(6)[None]
    flat, index = Inputs(TOKENS.reshape(1, -1), segments=segments), torch.tensor(slots).repeat_interleave(6)
    if batch_layout == "rows":
        mixed = run(decoder, bank, torch.tensor(slots))
    elif batch_layout == "flat":
        bank.select(index)
        mixed = decoder(flat).hidden.view_as(alone)
    else:
        bank.select(None)
        places = bank.fixed.assign({good, bad}, 2)
        assert places == 2
        with bank.fixed.selected(torch.tensor([bank.fixed.place_of(slot) for slot in index.tolist()]), places):
            mixed = decoder(flat).hidden.view_as(alone)
    assert not mixed[1].isfinite().all()
    assert_near(mixed[[0, 2, 3]], alone[[0, 2, 3]])


def test_stacked_and_segmented_paths_agree(decoder):
    bank = Bank(decoder, slots=2)
    for seed, r in enumerate((2, 7)):
        bank.add(LoraConfig(r=r), random_adapter(decoder, LoraConfig(r=r), seed))
    site = bank._sites["layers.1.feedforward.up"]
    index = torch.tensor([1, -1, 0, 1])
    bank.select(index)
    rows = AdapterRows(index.tolist(), (0, 1), torch.device("cpu"))
    x = torch.randn(4, 3, 32)
    y = site.module(x)
    assert_near(site.stacked(x, y, rows), site.segmented(x, y, rows))
    assert torch.equal(site.stacked(x, y, rows)[1], torch.zeros(3, 48))


@torch.no_grad()
@pytest.mark.parametrize("laid", [True, False])
def test_without_gradients_updates_are_added_in_their_last_product(make_decoder, laid: bool):
    """One after another and as one product of projections that read the same; one adapter for all rows, and a mixture
    of which some are on few linears."""
    decoder = make_decoder()
    bank, plain = Bank(decoder, slots=3), LoraConfig(r=3, alpha=5.0)
    configs = (plain, LoraConfig(r=2, targets=("q", "v", "down")), LoraConfig(r=4, rslora=True, targets=("k", "up")))
    for seed, config in enumerate(configs):
        bank.add(config, random_adapter(decoder, config, seed))
    tokens = torch.arange(12).reshape(4, 3)
    rows = [2, -1, 0, 1]
    merged: list[torch.Tensor] = []
    for i, slot in enumerate(rows):  # by weights that hold the update, which no product adds
        model = merged_copy(decoder, bank, slot, configs[slot]) if slot >= 0 else decoder
        merged.append(model(Inputs(tokens[i : i + 1])).hidden)
    if laid:
        fuse_linears(decoder)
    for i, slot in enumerate(rows):
        assert_near(run(decoder, bank, slot, tokens[i : i + 1]), merged[i])
    bank.select(torch.tensor(rows).repeat_interleave(3))
    segments = torch.arange(1, 5).repeat_interleave(3)[None]
    for _ in range(2):  # what was put together for the first pass is used again
        mixed = decoder(Inputs(tokens.reshape(1, -1), segments=segments)).hidden
        assert_near(mixed.reshape(4, 3, -1), torch.cat(merged))


def test_products_of_groups_equal_segments(decoder):
    bank = Bank(decoder, slots=3)
    for seed, config in enumerate((LoraConfig(r=2), LoraConfig(r=11, alpha=3.0), LoraConfig(r=5, targets=("down",)))):
        bank.add(config, random_adapter(decoder, config, seed))
    site = bank._sites["layers.1.feedforward.up"]
    for index in ([1, -1, 0, 1, 0, 0], [2, 2, 1, 1, -1, 0], [2, -1, 2, 2, -1, -1], [1, 0, 1, 0, 1, 0]):
        rows = AdapterRows(index, tuple(sorted({*index} - {-1})), torch.device("cpu"))
        x = torch.randn(6, 32)
        assert_near(site.grouped(x, rows), site.segmented(x, site.module(x), rows))


def test_a_mixed_batch_with_magnitudes_equals_the_merged_models(make_decoder):
    """On linears with biases, which magnitudes do not touch."""
    decoder = make_decoder()
    spec = decoder.spec.with_(attention_bias=True, feedforward_bias=True)
    torch.manual_seed(1)
    biased = Decoder(spec).requires_grad_(False).eval()
    for name, parameter in biased.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    for model in (decoder, biased):
        bank = Bank(model, slots=3)
        configs = (LoraConfig(r=2, dora=True), LoraConfig(r=3), LoraConfig(r=4, dora=True, targets=("v", "up")))
        slots = [bank.add(config, random_adapter(model, config, seed)) for seed, config in enumerate(configs)]
        mixed = run(model, bank, torch.tensor([*slots, -1]))
        base = run(model, bank, None)
        for row, slot in enumerate(slots):
            bank.select(None)
            merged = merged_copy(model, bank, slot, configs[row])(Inputs(TOKENS[row : row + 1])).hidden
            assert_near(mixed[row : row + 1], merged)
            assert not torch.allclose(merged, base[row : row + 1], atol=1e-2)
        assert_near(mixed[3], base[3])


def test_served_magnitudes_can_be_trained_after(decoder):
    """What is kept from serving, under inference mode, does not stand in training's way; nor does it go stale."""
    config = LoraConfig(r=2, dora=True)
    bank = Bank(decoder, slots=2)
    slot = bank.add(config, random_adapter(decoder, config, 0))
    bank.select(slot)
    with torch.inference_mode():
        served = decoder(Inputs(TOKENS)).hidden
    for parameter in decoder.parameters():
        parameter.requires_grad_(True)
    trained = decoder(Inputs(TOKENS)).hidden
    trained.sum().backward()
    assert_near(trained, served)
    with torch.no_grad():
        decoder.layers[0].attention.q.weight.mul_(2.0)
    changed = decoder(Inputs(TOKENS)).hidden
    fresh_bank = Bank(decoder)
    bank.select(None)
    fresh_bank.select(fresh_bank.add(config, bank.state(slot)))
    assert_near(changed, decoder(Inputs(TOKENS)).hidden)


def test_gradients_arrive_in_float32_parameters_of_a_bfloat16_model(make_decoder):
    decoder = make_decoder(torch.bfloat16)
    bank = Bank(decoder)
    slot = bank.add(LoraConfig(r=4))
    bank.select(slot)
    decoder(Inputs(TOKENS)).hidden.float().pow(2).sum().backward()
    for name, parameter in bank.parameters(slot):
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        # with B = 0 the gradient reaches B first
        assert bool(parameter.grad.abs().sum() > 0) == name.endswith("lora_B")


def test_mixed_rows_train_each_adapter_as_alone(make_decoder):
    decoder = make_decoder(torch.float64)
    bank = Bank(decoder, slots=2)
    config = LoraConfig(r=2)
    for seed in (0, 1):
        bank.add(config, random_adapter(decoder, config, seed), trainable=True)
    weight = torch.randn(6, 32, dtype=torch.float64)
    gradients = []
    for rows in (torch.tensor([0, 0, 1, -1]), None):
        if rows is None:
            for slot, part in ((0, TOKENS[:2]), (1, TOKENS[2:3])):
                bank.select(slot)
                (decoder(Inputs(part)).hidden * weight).sum().backward()
        else:
            bank.select(rows)
            (decoder(Inputs(TOKENS)).hidden * weight).sum().backward()
        parameters = [p for slot in (0, 1) for _, p in bank.parameters(slot)]
        gradients.append([p.grad.clone() for p in parameters])
        for p in parameters:
            p.grad = None
    for mixed_grads, separate_grads in zip(*gradients, strict=True):
        assert_near(mixed_grads, separate_grads)


def test_an_optimizer_step_is_seen_by_mixed_rows(decoder):
    bank = Bank(decoder, slots=2)
    config = LoraConfig(r=2)
    for seed in (0, 1):
        bank.add(config, random_adapter(decoder, config, seed))
    index = torch.tensor([0, 1, 0, 1])
    before = run(decoder, bank, index)
    with torch.no_grad():
        for _, parameter in bank.parameters(0):
            parameter.mul_(2.0)
    after = run(decoder, bank, index)
    assert not torch.allclose(before[0], after[0])
    assert_near(after[:1], run(decoder, bank, 0, TOKENS[:1]))
    torch.testing.assert_close(before[1], after[1])


def test_dropout_only_in_training_and_only_before_a(decoder):
    config = LoraConfig(r=4, dropout=0.5, targets=("q",))
    state = random_adapter(decoder, config, 0)
    bank = Bank(decoder, slots=2)
    slot = bank.add(config, state)
    bank.add(LoraConfig(r=1), seed=1)
    undropped = run(decoder, bank, slot)
    assert torch.equal(undropped, run(decoder, bank, slot))
    decoder.train()
    for rows in (slot, torch.tensor([slot, 1, slot, -1])):
        first, second = run(decoder, bank, rows), run(decoder, bank, rows)
        assert not torch.equal(first[0], second[0])
    # the mean over many draws is the update without dropout
    linear, x = decoder.layers[0].attention.q, torch.randn(1, 32).expand(20000, 32)
    bank.select(slot)
    drawn = linear(x).mean(0)
    decoder.eval()
    torch.testing.assert_close(drawn, linear(x[0]), atol=0.15, rtol=0.05)


def merged_copy(model, bank, slot, config):
    """A copy of the model with the slot's adapter in its weights."""
    copied = copy.deepcopy(model)
    other = Bank(copied)
    other.merge(other.add(config, bank.state(slot)))
    return copied


def test_merge_equals_the_adapter(decoder):
    bank = Bank(decoder)
    config = LoraConfig(r=4, alpha=8)
    slot = bank.add(config, random_adapter(decoder, config, 3))
    adapted, base = run(decoder, bank, slot), run(decoder, bank, None)
    bank.merge(slot)
    merged = run(decoder, bank, None)
    assert_near(merged, adapted)
    assert not torch.allclose(merged, base)
    with pytest.raises(UsageError, match="merged"):
        bank.select(slot)
    with pytest.raises(UsageError, match="merged"):
        bank.merge(slot)


def test_state_round_trips_and_initialisation_follows_the_seed(decoder):
    config = LoraConfig(r=4)
    bank = Bank(decoder, slots=3)
    first_slot, two, three = bank.add(config, seed=5), bank.add(config, seed=5), bank.add(config, seed=6)
    a = "layers.0.attention.q.lora_A"
    assert torch.equal(bank.state(first_slot)[a], bank.state(two)[a])
    assert not torch.equal(bank.state(first_slot)[a], bank.state(three)[a])
    assert bank.state(first_slot)[a].abs().max() <= 1 / math.sqrt(32)
    bank.remove(two)
    state = bank.state(three)
    assert bank.add(config, state) == two
    assert all(torch.equal(v, state[k]) for k, v in bank.state(two).items())


def test_refusals(decoder):
    bank = Bank(decoder)
    with pytest.raises(SkinError, match=r"'q_prog'.*gate"):
        bank.add(LoraConfig(targets=("q_prog",)))
    config = LoraConfig(r=2, targets=("q",))
    good = random_adapter(decoder, config, 0)
    bad = {
        "missing": {k: v for k, v in good.items() if k != "layers.1.attention.q.lora_B"},
        "unmatched": good | {"layers.9.attention.q.lora_A": torch.zeros(2, 32)},
        "shape": good | {"layers.1.attention.q.lora_B": torch.zeros(2, 32)},
        "NaN": good | {"layers.1.attention.q.lora_B": torch.full((32, 2), float("nan"))},
        "dtype": good | {"layers.1.attention.q.lora_B": torch.zeros(32, 2, dtype=torch.int64)},
    }
    for reason, tensors in bad.items():
        with pytest.raises(SkinError, match=reason):
            bank.add(config, tensors)
    assert bank.slots == ()
    slot = bank.add(config, good)
    with pytest.raises(UsageError, match="in use"):
        bank.add(config, good)
    bank.select(slot)
    with pytest.raises(UsageError, match="selected"):
        bank.remove(slot)
    with pytest.raises(UsageError, match="holds nothing"):
        bank.select(torch.tensor([0, 3, 0, 0]))
    with pytest.raises(UsageError, match="int64 vector"):
        bank.select(torch.zeros(2, 2))
    bank.select(torch.tensor([0, -1]))
    with pytest.raises(UsageError, match="2 adapter rows"):
        decoder(Inputs(TOKENS))
    second_bank = Bank(decoder)
    with pytest.raises(UsageError, match="another adapter bank"):
        second_bank.select(second_bank.add(config, good))
    bank.close()
    assert decoder.layers[0].attention.q.low_rank is None
