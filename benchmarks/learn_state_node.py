"""A member of a run that gives or loads a state, as a child that answers orders.

`python -m benchmarks.learn_state_node NUMBER`: libp2p host, encrypted TCP on loopback, RPC, and
what modelsync has for states. Member NUMBER's identity follows from its number.
"""

import sys
import time

import msgspec
import numpy as np
import trio

from benchmarks.orders import Answer, say
from benchmarks.trio_orders import obey
from node.host.service import LibP2pHost
from protocols.modelsync.codecs import Vector
from protocols.modelsync.donor import Donor
from protocols.modelsync.joining import Aim, Joining
from protocols.modelsync.state import State, state_root
from protocols.modelsync.wire import CERTIFICATE_TAG, Certificate
from protocols.modelsync.work import in_threads
from protocols.rpc.service import RpcService
from wire.ids import PeerId, Signer

RUN, LANE, ROUND = "bench", 0, 5


def _signer(number: int) -> Signer:
    return Signer(bytes([number + 1]) * 32)


def _certificate(members: int) -> Certificate:
    signers = [_signer(number) for number in range(members)]
    who = [signer.peer for signer in signers]
    unsigned = Certificate(
        RUN, ROUND - 1, 0, who[0], who, who, [1.0] * members, "int8", bytes(32), bytes(32)
    )
    signatures = tuple(s.sign(CERTIFICATE_TAG, unsigned.body()) for s in signers)
    return msgspec.structs.replace(unsigned, signatures=signatures)


def _state(elements: int) -> Vector:
    return np.random.default_rng(1).standard_normal(elements, dtype=np.float32)


class Node:
    """The orders, a method each."""

    def __init__(self, number: int) -> None:
        self.host = LibP2pHost(bytes([number + 1]) * 32, None, ["/ip4/127.0.0.1/tcp/0"])
        self.rpc = RpcService(self.host)
        self.donor = Donor(self.rpc, in_threads(), is_busy=lambda: False)
        self.joining = Joining(self.rpc, in_threads())
        self.donors: list[PeerId] = []

    async def hold(self, elements: int, members: int) -> Answer:
        """Hold the state that all members have."""
        vector = _state(elements)
        state = State(ROUND, state_root(vector), vector, _certificate(members))
        self.donor.announce(RUN, LANE, state)
        return {"root": state.root.hex()}

    async def spoil(self) -> Answer:
        """Give wrong bytes from now on."""
        for lane in self.donor._lanes.values():
            for copy in lane.copies.values():
                copy.vector[:] += 1
        return {}

    async def connect(self, addresses: list[str]) -> Answer:
        """Connect to those that states are loaded from."""
        self.donors = [await self.host.connect(address) for address in addresses]
        return {}

    async def load(self, elements: int, donors: int, root: str) -> Answer:
        """Load the state with this root from the first so many of them into an empty buffer."""
        target, some = np.zeros(elements, np.float32), self.donors[:donors]
        began = time.perf_counter()
        wanted = bytes.fromhex(root)
        aim = Aim(RUN, LANE, ROUND, lambda: some, lambda members: True, wanted)
        loaded = await self.joining.load(aim, target)
        assert loaded is not None, "must exist"
        return {
            "seconds": time.perf_counter() - began,
            "root": state_root(target).hex(),
            "donors": len(loaded.donors),
            "corrupt": loaded.corrupt,
            "bytes": loaded.bytes_in,
        }


async def main(number: int) -> None:
    """Obey until the input ends."""
    node = Node(number)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.host.run)
        say({"address": node.host.addresses()[0], "peer": node.host.peer})
        await obey(node)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
