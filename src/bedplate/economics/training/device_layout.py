"""How a model's training is divided over devices, and what each device then holds and waits for.

Memory, in bytes a parameter under AdamW in 16 bits (ZeRO, https://arxiv.org/abs/1910.02054): weights 2, gradients 4
(accumulated in float32), float32 master weights 4 and two moments 8. ZeRO stage 1 shards the last two over the
replicas, stage 2 gradients too, stage 3 (FSDP) everything: then the master weights are the weights, and blocks are
gathered in 16 bits when their turn comes. Tensor parallelism divides blocks, tables, logits and, with sequence
parallelism, activations (2205.05198); pipeline stages hold as many micro-batches as there are stages (2104.04473);
experts are spread over replicas instead of being divided.

Time: what the products take at a fixed share of the peak, idle stages (bubble), and what communication takes beyond
what computation hides. It ranks layouts; the share of the peak that is reported is `mfu`'s, which is of real runs.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

from bedplate.economics.hardware.devices import Device
from bedplate.economics.model import footprint
from bedplate.economics.model.parameters import total, weights
from bedplate.models.specs import Spec, TransformerSpec


class LayoutShape:
    """What a division over devices depends on in a model that is trained on sequences of so many tokens, activations in
    `value_bytes` each: parameters, features, and bytes a token, counted once for a search over many layouts.

    dense, experts: parameters inside the blocks. first, last: parameters before and after them (tables; head). block,
    block_experts: of the largest block, without and of its experts. activation_bytes: of all layers together, a token,
    by recompute; block_activation_bytes: of the largest layer (what "full" computes again at a time). logit_bytes:
    after the last block. attention_share: of the training operations. expert_layers × expert_features: values a token
    sends to experts and gets back. tied: the head is the token table. divisible: its blocks may be spread over pipeline
    stages.
    """

    def __init__(self, spec: Spec, sequence_tokens: int, value_bytes: float = 2.0) -> None:
        stacks, all_weights = footprint.stacks_of(spec), weights(spec)
        main = stacks[-1]
        decodes, experts, layers = main.kind == "decoder", main.experts, range(main.layers)
        self.layers, self.heads, self.hidden = main.layers, main.attention.heads, main.hidden_size
        self.tied, self.divisible = decodes and main.tied_head, len(stacks) == 1

        blocks, expert_blocks = Counter[int](), Counter[int]()
        for weight in all_weights:
            if weight.layer is not None:
                (expert_blocks if weight.copies > 1 else blocks)[weight.layer] += weight.stored
        self.dense, self.block = blocks.total(), max(blocks.values(), default=0)
        self.experts, self.block_experts = expert_blocks.total(), max(expert_blocks.values(), default=0)
        outside = [weight for weight in all_weights if weight.layer is None]
        self.first = total(weight for weight in outside if weight.role == "table")
        self.last = total(outside) - self.first
        self.expert_count = 1 if experts is None else experts.count
        self.expert_layers = 0 if experts is None else sum(map(main.has_experts, layers))
        self.expert_features = 0 if experts is None else experts.per_token * main.hidden_size
        self.kv_features = 2 * max(main.kv_heads_of(n) * main.head_dim_of(n) for n in layers)

        def activations(stack: TransformerSpec, recompute: footprint.Recompute) -> list[float]:
            every = range(stack.layers)
            return [footprint.layer_activation_bytes(stack, n, sequence_tokens, value_bytes, recompute) for n in every]

        recomputes: tuple[footprint.Recompute, ...] = get_args(footprint.Recompute)
        self.activation_bytes = {name: sum(sum(activations(stack, name)) for stack in stacks) for name in recomputes}
        self.block_activation_bytes = max(activations(main, "selective"))
        # The last norm's input and the head's; what the loss holds: logits in 16 and in 32 bits, and their gradients.
        self.logit_bytes = main.hidden_size * (main.norms_output + decodes) * value_bytes
        self.logit_bytes += (2 * value_bytes + 8.0) * main.vocab_size if decodes else 0.0
        self.flops_per_token = footprint.training_flops_per_token(spec, sequence_tokens)
        attention = sum(
            3 * footprint.attention_flops(stack, sequence_tokens) / sequence_tokens for stack in stacks
        ) / len(stacks)
        self.attention_share = min(1.0, attention / self.flops_per_token)


shape_of = lru_cache(maxsize=64)(LayoutShape)


PRODUCT_SHARE = 0.6  # share of the peak that well-shaped products reach
HIDDEN_SHARE = 0.8  # share of the computing time under which gathers, reductions and sends of other layers run
EXPOSED_TENSOR = 0.5
"""Share of tensor- and expert-parallel communication, between a layer's own products, that is waited for."""
EXPOSED_CONTEXT = 0.2
"""Share that is waited for of keys and values that pass around a context ring while attention is computed."""
EXPOSED_HIDDEN = 0.05
"""Share that is felt of communication that could be hidden: it takes memory bandwidth and some cores."""
START_SECONDS = 1e-4
"""Start-up of one block's kernels in one direction, whatever its tokens: why small micro-batches are slow."""
HOP_SECONDS = 1e-5  # from one node to the next in a ring, for each block that is gathered or reduced
SCORE_PASSES = 4
"""Times that a materialised matrix of attention weights crosses the memory bus (scores, softmax, both directions)."""


@dataclass(frozen=True)
class DeviceLayout:
    """Degrees of division; data · tensor · pipeline · context = devices. expert: over how many of the data · context
    replicas the experts are spread. zero_stage: 0 with one replica. micro_batch: sequences of one forward pass.
    micro_batches: of one replica in a step. interleave: parts of the stack that each stage holds."""

    data: int
    tensor: int
    pipeline: int
    context: int
    expert: int
    zero_stage: int
    recompute: footprint.Recompute
    micro_batch: int
    micro_batches: int
    interleave: int

    @property
    def devices(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def sequences(self) -> int:
        """Of one step, all micro-batches full."""
        return self.data * self.micro_batch * self.micro_batches

    @property
    def replicas(self) -> int:
        """Devices that hold the same part of the model: what ZeRO shards over."""
        return self.data * self.context

    @property
    def expert_replicas(self) -> int:
        """Devices that hold the same experts."""
        return max(1, self.replicas // self.expert)


@dataclass(frozen=True)
class BytesPerParameter:
    """Bytes a parameter. weights: of the copy that is computed with. gradient, master, moments: 0 where frozen.
    extra_bytes: of adapters with all of their states, on every device."""

    weights: float = 2.0
    gradient: float = 4.0
    master: float = 4.0
    moments: float = 8.0
    extra_bytes: float = 0.0


@dataclass(frozen=True)
class DeviceBytes:
    """What the fullest device holds, in bytes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step."""

    compute: float
    bubble: float
    communication: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def device_bytes(
    shape: LayoutShape, layout: DeviceLayout, states: BytesPerParameter, sequence_tokens: int
) -> DeviceBytes:
    """Bytes on the fullest device of a layout."""
    dense, experts = _parameters(shape, layout)
    stage, replicas, expert_replicas = layout.zero_stage, layout.replicas, layout.expert_replicas

    def sharded_bytes(per_parameter: float, sharded: bool) -> float:
        return per_parameter * (dense / (replicas if sharded else 1) + experts / (expert_replicas if sharded else 1))

    # Under stage 3 the master copy is the only one that lasts; frozen weights have no master.
    activations, logits = _activations(shape, layout, sequence_tokens)
    return DeviceBytes(
        weights=sharded_bytes(states.master if stage == 3 and states.master else states.weights, stage == 3),
        gradients=sharded_bytes(states.gradient, stage >= 2),
        optimizer=sharded_bytes(states.moments + (0 if stage == 3 else states.master), stage >= 1),
        activations=activations,
        logits=logits,
        buffers=(_gathered(shape, layout) if stage == 3 and replicas > 1 else 0.0) + states.extra_bytes,
    )


def _parameters(shape: LayoutShape, layout: DeviceLayout) -> tuple[float, float]:
    """Parameters of the fullest stage before sharding over replicas: those divided by tensor, and experts."""
    stages = layout.pipeline
    part = math.ceil(shape.layers / stages) / shape.layers
    last = shape.last + (shape.first if shape.tied and stages > 1 else 0)
    ends = shape.first + last if stages == 1 else max(shape.first, last)
    return (shape.dense * part + ends) / layout.tensor, shape.experts * part / layout.expert


def _gathered(shape: LayoutShape, layout: DeviceLayout) -> float:
    """The block at work and the next one in 16 bits, and a block's gradients on their way."""
    block = shape.block / layout.tensor + shape.block_experts / layout.expert
    return 2.0 * max(3 * block, block + max(shape.first, shape.last) / layout.tensor)


def _activations(shape: LayoutShape, layout: DeviceLayout, sequence_tokens: int) -> tuple[float, float]:
    """Activations and logits of the fuller of the first stage (many micro-batches) and the last (the logits)."""
    tokens = layout.micro_batch * sequence_tokens / layout.context
    stages = layout.pipeline
    stage = tokens * shape.activation_bytes[layout.recompute] / layout.tensor / stages
    recomputed = tokens * shape.block_activation_bytes / layout.tensor if layout.recompute == "full" else 0.0
    logits = tokens * shape.logit_bytes / layout.tensor
    in_flight = min(stages, layout.micro_batches)
    if layout.interleave > 1:  # (1 + (p − 1) / (p·v)) times as many, 2205.05198
        in_flight *= 1 + (stages - 1) / (stages * layout.interleave)
    first, last = stage * in_flight + recomputed, stage + recomputed
    if stages > 1 and first > last + logits:
        return first, 0.0
    return last, logits


def step_time(
    shape: LayoutShape, layout: DeviceLayout, device: Device, peak: float, batch_tokens: float, tokens: int
) -> StepTime:
    """Seconds of a step over `batch_tokens` tokens in sequences of `tokens`, with `peak` operations per second."""
    # Attention's own forward pass is a third of its training operations.
    factor = {"none": 1.0, "selective": 1 + shape.attention_share / 3, "full": 4 / 3}[layout.recompute]
    padded_tokens = max(batch_tokens, layout.sequences * tokens)  # the last micro-batch may be short, but waits
    compute = factor * shape.flops_per_token * padded_tokens / (layout.devices * peak * PRODUCT_SHARE)
    compute += START_SECONDS * 2 * factor * layout.micro_batches * shape.layers / layout.pipeline
    if layout.recompute == "none":
        scores = shape.activation_bytes["none"] - shape.activation_bytes["selective"]
        compute += SCORE_PASSES * max(0.0, scores) * padded_tokens / layout.devices / device.memory_bytes_per_second
    bubble = compute * (layout.pipeline - 1) / (layout.micro_batches * layout.interleave)
    waits = _between_products(shape, layout, device, tokens)
    overlapped = _overlapped_seconds(shape, layout, device, tokens)
    felt = max(EXPOSED_HIDDEN * overlapped, overlapped - HIDDEN_SHARE * (compute + bubble))
    return StepTime(compute, bubble, waits + felt)


def _between_products(shape: LayoutShape, layout: DeviceLayout, device: Device, sequence_tokens: int) -> float:
    """Seconds that layers wait for: tensor, expert and context parallelism."""
    tokens = layout.micro_batch * sequence_tokens / layout.context * layout.micro_batches
    passes = 3 if layout.recompute == "full" else 2

    def seconds(group: int, sent: float, layers: int) -> float:
        """The time of what each device sends in each of the layers: within its node where the group lies in one."""
        inside = group <= device.devices_per_node
        speed = device.link_bytes_per_second if inside else device.network_bytes_per_second
        return sent * 2.0 * layers / layout.pipeline / speed

    waited = 0.0
    if layout.tensor > 1:
        # An all-gather and a reduce-scatter around attention and around the feed-forward, each way.
        sent = 2 * passes * 2 * (layout.tensor - 1) / layout.tensor * tokens * shape.hidden
        waited += EXPOSED_TENSOR * seconds(layout.tensor, sent, shape.layers)
    if layout.expert > 1:
        sent = 2 * passes * tokens * shape.expert_features / layout.tensor * (layout.expert - 1) / layout.expert
        waited += EXPOSED_TENSOR * seconds(layout.expert * layout.tensor, sent, shape.expert_layers)
    if layout.context > 1:
        sent = 3 * tokens * (layout.context - 1) * shape.kv_features / layout.tensor
        waited += EXPOSED_CONTEXT * seconds(layout.context * layout.tensor, sent, shape.layers)
    return waited


def _overlapped_seconds(shape: LayoutShape, layout: DeviceLayout, device: Device, sequence_tokens: int) -> float:
    """Seconds of what may run beside computation: gathers, reductions, sends between stages."""
    dense, experts = _parameters(shape, layout)
    # Stage 3 gathers weights twice and reduces gradients once in each micro-batch; 2 reduces in each and gathers at the
    # end; 1 does both once. Weights travel in 16 bits, gradients in 32.
    micro_batches = layout.micro_batches
    bytes_per_parameter, turns = {
        0: (0.0, 0),
        1: (6.0, 2),
        2: (2.0 + 4.0 * micro_batches, 1 + micro_batches),
        3: (8.0 * micro_batches, 3 * micro_batches),
    }[layout.zero_stage]
    blocks = shape.layers / layout.pipeline * turns
    seconds = _collective(bytes_per_parameter * dense, blocks, layout.replicas, layout, device)
    seconds += _collective(bytes_per_parameter * experts, 0, layout.expert_replicas, layout, device)
    if layout.pipeline > 1:
        tokens = layout.micro_batch * sequence_tokens / layout.context
        sent = 2 * tokens * shape.hidden * 2.0 / layout.tensor * layout.micro_batches * layout.interleave
        seconds += sent / device.network_bytes_per_second
    return seconds


def _collective(sent: float, turns: float, group: int, layout: DeviceLayout, device: Device) -> float:
    """Seconds to gather or reduce `sent` bytes in so many turns over a group of replicas; a node's links are joined."""
    if group <= 1 or sent == 0:
        return 0.0
    of_one_node = max(1, min(group, device.devices_per_node // layout.tensor))
    nodes = group / of_one_node
    inside = sent * (of_one_node - 1) / of_one_node / (device.link_bytes_per_second or device.network_bytes_per_second)
    network = sent * (nodes - 1) / nodes / (of_one_node * device.network_bytes_per_second)
    return max(inside, network + turns * (nodes - 1) * HOP_SECONDS)
