"""What needs a swarm of real daemons, in one: an idle daemon, then bursts on a channel.

`python -m benchmarks.talk_swarm` prints one JSON object a line. QUICK=1 starts 7 daemons, not 30.
"""

from benchmarks import talk_gossip, talk_idle
from benchmarks.forge import daemons
from benchmarks.report import progress


def main() -> None:
    """Start it once; idle comes first, for the bursts leave something in memory."""
    progress(f"starting {talk_gossip.DAEMONS} daemons")
    with daemons(talk_gossip.DAEMONS, first_peers=talk_idle.PEERS) as members:
        talk_idle.measure(members[0])
        talk_gossip.measure(members)


if __name__ == "__main__":
    main()
