"""What follows likeliest, found by the kernel with and without writing logits: torch's argmax of these logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.inference.native.native_models import Cache, base_dtype, logits, random_decoder
from tests.inference.native.native_specs import spec_of

from bedplate.inference.native.library import Library, load
from bedplate.inference.native.packed_weights import Forwarded, NativeDecoder, WeightFormat
from bedplate.models.decoder import Decoder
from bedplate.models.specs.transformer import Scales

pytestmark = pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}")
PIECE = 1024
"""Words of one piece of the head."""
COPIES = {5: (18, 34, 21), 30: (46,), 40: (PIECE + 3,), PIECE + 9: (2 * PIECE + 9, 2 * PIECE + 36)}
"""Words, and others with the same logits: further lanes, the same lane further on, further pieces, the last word."""


def copied(vocab_size: int, weights: WeightFormat, cap: float | None) -> Decoder:
    """Each token is likeliest to follow itself and its copies, if there is no other way to continue."""
    spec = spec_of(vocab_size=vocab_size, layers=1, scales=Scales(logit_cap=cap))
    model = random_decoder(spec, dtype=base_dtype(weights))
    model.embedding.weight.mul_(20.0)
    for word, copies in COPIES.items():
        for copy in copies:
            model.embedding.weight[copy] = model.embedding.weight[word]
    return model


def assert_same_choice(actual: Forwarded, expected: Forwarded, rows: int) -> None:
    assert np.array_equal(actual.argmax_W, expected.argmax_W[:rows])
    assert np.array_equal(actual.top_W, expected.top_W[:rows])
    assert np.array_equal(actual.logsumexp_W, expected.logsumexp_W[:rows])


@pytest.mark.parametrize(("weights", "cap"), [("int8", None), ("bfloat16", None), ("float32", 30.0)])
def test_the_first_of_the_largest_logits(library: Library, weights: WeightFormat, cap: float | None) -> None:
    """Over pieces of a vocabulary whose last one is cut off, for few rows and for more than stay in a cache at once."""
    model = copied(2 * PIECE + 37, weights, cap)
    tokens = [*COPIES, *(copy for copies in COPIES.values() for copy in copies), *range(PIECE + 100, PIECE + 160)]
    native = NativeDecoder(model, weights, threads=2, library=library)
    out = Cache(model.spec, dtype=base_dtype(weights)).run(native, [(1, 0, tokens)])
    full_logits = logits(out)
    assert int((full_logits == full_logits.amax(-1, keepdim=True)).sum()) > len(tokens) + len(COPIES), "some are equal"
    assert torch.equal(torch.from_numpy(out.argmax_W), full_logits.argmax(-1))
    assert torch.equal(torch.from_numpy(out.top_W), full_logits.amax(-1))
    torch.testing.assert_close(torch.from_numpy(out.logsumexp_W), full_logits.logsumexp(-1), rtol=1e-6, atol=1e-5)
    for threads, count in ((2, len(tokens)), (1, 9), (3, 1)):
        native = NativeDecoder(model, weights, threads=threads, library=library)
        cache = Cache(model.spec, dtype=base_dtype(weights))
        alone = cache.run(native, [(1, 0, tokens[:count])], keep_logits=False)
        assert alone.logits_WV is None
        assert_same_choice(alone, out, count)


@pytest.mark.parametrize("vocab_size", [1, 17, PIECE + 1])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_where_logits_are_not_finite_their_sum_says_so(library: Library, vocab_size: int, bad: float) -> None:
    """Of each word in turn, the last one alone in its panel; a word of the vocabulary is given all the same."""
    model = random_decoder(spec_of(vocab_size=vocab_size, layers=1), dtype=torch.float32)
    clean = model.embedding.weight.clone()
    for word in {0, vocab_size // 2, vocab_size - 1}:
        model.embedding.weight.copy_(clean)
        model.embedding.weight[word] = bad  # which is also what this word is read as
        native = NativeDecoder(model, "float32", threads=2, library=library)
        for keep_logits in (True, False):
            out = Cache(model.spec, dtype=torch.float32).run(native, [(0, 0, [0])], keep_logits=keep_logits)
            assert np.isnan(out.logsumexp_W).all()
            assert 0 <= int(out.argmax_W[0]) < vocab_size
