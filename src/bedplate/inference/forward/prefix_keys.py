"""Keys of the prefix cache: tokens, and who may find what was computed for them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

Key = tuple[int, ...]
_SALT_SHIFT = 64


def media_token(sha256: str, offset: int) -> int:
    """The key element of one of the vectors that were made of a media file: negative, so that it equals no token's, and
    with the hash above the bits of tenants' salts."""
    return -((int(sha256, 16) | 1) << 2 * _SALT_SHIFT) - offset


@lru_cache(maxsize=4096)
def _salt(tenant: str) -> int:
    digest = hashlib.blake2b(tenant.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return (int.from_bytes(digest, "big") | 1) << _SALT_SHIFT


def salted(tokens: Sequence[int], shared: int, tenant: str) -> Key:
    """The key of tokens of which the first `shared` are everybody's and the rest are the tenant's alone.

    The tenant enters into one element, from which on paths of different tenants are apart.
    """
    if shared >= len(tokens):
        return tuple(tokens)
    return (*tokens[:shared], tokens[shared] + _salt(tenant), *tokens[shared + 1 :])


def read_whole(tokens: Sequence[int], source: int, tenant: str) -> Key:
    """The key of tokens of which an encoder reads the first `source` as one text: what it makes of each depends on all
    of them, so that only the same text of the same tenant begins alike."""
    digest = hashlib.blake2b(repr((tenant, list(tokens[:source]))).encode("utf-8", "surrogatepass"), digest_size=16)
    return (tokens[0] + (int.from_bytes(digest.digest(), "big") << _SALT_SHIFT), *tokens[1:])
