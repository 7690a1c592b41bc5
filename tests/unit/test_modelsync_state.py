"""The root of a state: as the specification says, and different for whatever differs."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.modelsync.state import (
    CHUNK_BYTES,
    CHUNK_ELEMENTS,
    chunk_count,
    chunk_hashes,
    root_of,
    state_root,
)


@pytest.mark.parametrize("elements", [1, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 1, 20 * CHUNK_ELEMENTS])
def test_the_root_is_the_hash_over_the_hashes_of_1_mib_chunks(elements: int) -> None:
    vector = np.random.default_rng(1).standard_normal(elements, dtype=np.float32)
    data = vector.tobytes()
    chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    hashes = [hashlib.sha256(chunk).digest() for chunk in chunks]
    root = hashlib.sha256(b"shoal/state/1" + b"".join(hashes)).digest()
    assert (chunk_count(elements), chunk_hashes(vector)) == (len(chunks), hashes)
    assert chunk_hashes(vector, threads=1) == hashes
    assert state_root(vector) == root_of(hashes) == root


@given(at=st.integers(0, CHUNK_ELEMENTS + 9), bit=st.integers(0, 31))
def test_any_flipped_bit_is_another_root(at: int, bit: int) -> None:
    vector = np.zeros(CHUNK_ELEMENTS + 10, np.float32)
    before = state_root(vector)
    vector.view(np.uint32)[at] ^= np.uint32(1 << bit)
    assert state_root(vector) != before
