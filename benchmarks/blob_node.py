"""Blobs of one node as a child that answers orders: a provider with a capped upload, or a fetcher.

`python -m benchmarks.blob_node FOLDER UPLOAD_MB_S`; 0 is no cap. The services are those of the
daemon, wired in the same way.
"""

import hashlib
import os
import sys
import time
from functools import partial
from pathlib import Path

import trio

from benchmarks.orders import Answer, say
from benchmarks.trio_orders import obey
from node.host.service import LibP2pHost
from protocols.blobs.files import BlobFile
from protocols.blobs.service import BlobService
from protocols.blobs.store import BlobStore
from protocols.rpc.service import RpcService

LISTEN = "/ip4/127.0.0.1/tcp/0"
MB = 1e6
FETCH_S = 600.0


class Node:
    """The orders, a method each."""

    def __init__(self, folder: Path, upload_mb_s: float) -> None:
        self.host = LibP2pHost(os.urandom(32), None, [LISTEN])
        self.blobs = BlobService(
            RpcService(self.host),
            BlobStore(folder),
            peers=self.host.connected,
            upload_bytes_per_s=upload_mb_s * MB,
        )

    async def add(self, path: str) -> Answer:
        """Store a file as a blob."""
        return {"cid": await self.blobs.put_file(Path(path))}

    async def connect(self, address: str) -> Answer:
        """Connect to a provider."""
        return {"peer": await self.host.connect(address)}

    async def lie(self) -> Answer:
        """Give from now on chunks of which one bit is wrong.

        What is wrong on our disk would not do: a provider looks at what it gives.
        """
        honest = BlobFile.chunk

        def chunk(file: BlobFile, index: int) -> bytes:
            data = bytearray(honest(file, index))
            data[len(data) // 2] ^= 1
            return bytes(data)

        BlobFile.chunk = chunk  # type: ignore[method-assign]
        return {}

    async def fetch(self, cid: str, providers: list[str], sha256: str) -> Answer:
        """Fetch a blob from these, check it, and throw it away again."""
        wrong = self.blobs.counters.corrupt_chunks
        dropped = self.blobs.counters.providers_dropped
        began = time.perf_counter()
        with trio.fail_after(FETCH_S):
            row = await self.blobs.fetch(cid, providers)
        took_s = time.perf_counter() - began
        with await self.blobs.open(cid) as file:
            found = await trio.to_thread.run_sync(partial(hashlib.file_digest, file, "sha256"))
        await self.blobs.remove(cid)
        return {
            "mb_s": row.size_bytes / MB / took_s,
            "is_right": found.hexdigest() == sha256,
            "wrong": self.blobs.counters.corrupt_chunks - wrong,
            "dropped": self.blobs.counters.providers_dropped - dropped,
        }


async def main(folder: str, upload_mb_s: float) -> None:
    """Serve and obey until the input ends."""
    node = Node(Path(folder), upload_mb_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.host.run)
        await nursery.start(node.blobs.run)
        say({"address": node.host.addresses()[0], "peer": node.host.peer})
        await obey(node)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], float(sys.argv[2]))
