"""Noise's transport phase, sans-IO: plaintext in, records out, and back.

libp2p does the handshake; from then on `noiseprotocol` would cost more per record than the cipher.
The format stays: a length in 2 bytes, big-endian, then the ciphertext with its tag. Source: Noise
specification, section 5.1; libp2p/specs, noise.
"""

from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from wire.errors import BadMessage

TAG_BYTES = 16
PLAIN_MAX = 65535 - TAG_BYTES  # plaintext of the largest record
RECORDS_PER_TURN = 256  # opened at once, 1 ms; a flood of tiny ones must not hold the loop
_LENGTH_BYTES = 2

Buffer = bytes | bytearray | memoryview


class _Cipher(Protocol):
    def encrypt(self, nonce: bytes, data: Buffer, associated_data: None) -> bytes: ...

    def decrypt(self, nonce: bytes, data: Buffer, associated_data: None) -> bytes: ...


class Sealer:
    """Makes records, in order. The count of records is the nonce; at 2^64 it raises OverflowError,
    which ends the connection before a nonce is used twice.
    """

    def __init__(self, cipher: _Cipher, first: int) -> None:
        self._encrypt = cipher.encrypt
        self._next = first
        self._order = _byte_order(cipher)

    def seal(self, plain: Buffer) -> tuple[bytes, bytes]:
        """Return the two parts of one record: its length and its ciphertext."""
        nonce = bytes(4) + self._next.to_bytes(8, self._order)
        self._next += 1
        sealed = self._encrypt(nonce, plain, None)
        return len(sealed).to_bytes(_LENGTH_BYTES, "big"), sealed


class Opener:
    """Opens records, each exactly once and in order."""

    def __init__(self, cipher: _Cipher, first: int) -> None:
        self._decrypt = cipher.decrypt
        self._next = first
        self._order = _byte_order(cipher)

    def open(self, data: memoryview) -> tuple[list[bytes], int]:
        """Return the plaintext of the whole records in `data`, and how many bytes those were.

        At most RECORDS_PER_TURN: if there are so many, there may be more.
        Raises BadMessage for a record that is forged, lost, repeated or out of order.
        """
        records: list[bytes] = []
        position, end = 0, len(data)
        while end - position >= _LENGTH_BYTES and len(records) < RECORDS_PER_TURN:
            after = position + _LENGTH_BYTES + (data[position] << 8 | data[position + 1])
            if after > end:
                break
            nonce = bytes(4) + self._next.to_bytes(8, self._order)
            try:
                plain = self._decrypt(nonce, data[position + _LENGTH_BYTES : after], None)
            except (InvalidTag, ValueError):  # the latter: shorter than a tag
                raise BadMessage(f"record {self._next} is not authentic") from None
            self._next += 1
            records.append(plain)
            position = after
        return records, position


def after_handshake(noise_state: Any) -> tuple[Sealer, Opener]:
    """Take over both directions from a finished `noise.connection.NoiseConnection`."""
    protocol = noise_state.noise_protocol
    out, into = protocol.cipher_state_encrypt, protocol.cipher_state_decrypt
    return Sealer(out.cipher.cipher, out.n), Opener(into.cipher.cipher, into.n)


def _byte_order(cipher: object) -> Any:  # "big" | "little": Noise, sections 12.3 and 12.4
    return "big" if isinstance(cipher, AESGCM) else "little"
