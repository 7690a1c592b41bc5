"""`shoal demo`: four daemons meet, train, lose one and regain it, and serve; all checked."""

import signal
from pathlib import Path
from types import FrameType

from node.demo.narrator import Narrator, check
from node.demo.serving import serve, smollm2
from node.demo.swarm import DemoSwarm, demo_swarm
from node.demo.training import RUN, peers_of, train

NAMES = ["ash", "birch", "cedar", "dune"]
PROMPTS = {"shakespeare": "ROMEO:", "smollm2": "The capital of France is"}


def tell(folder: Path, model: str) -> None:
    """Run the demo in `folder`. Raises DemoFailed at the first fact that is not so."""
    signal.signal(signal.SIGTERM, _interrupt)
    narrator = Narrator()
    with demo_swarm(folder) as swarm:
        _meet(swarm, narrator)
        peers_of(swarm, narrator)
        training = train(swarm, narrator, NAMES[-1])
        picture = _plot(swarm, narrator)
        served = training.directory if model == "shakespeare" else smollm2()
        serve(swarm, narrator, served, PROMPTS[model])
        narrator.say(f"curves: {picture}")
    narrator.head(f"all of this was checked; nothing is left running; logs and homes: {folder}")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _meet(swarm: DemoSwarm, narrator: Narrator) -> None:
    narrator.head("four daemons start; one makes a swarm, three join with its ticket")
    swarm.start(NAMES)
    peers: set[str] = set()
    for node in swarm.nodes:
        status = node.client.status()
        peers.add(status.peer)
        narrator.say(f"  {node.name:<6} {status.peer}  pid {status.pid}")
    check(len(peers) == len(NAMES), "four identities")


def _plot(swarm: DemoSwarm, narrator: Narrator) -> Path:
    """Draw all nodes' curves as a PNG, and the first node's in the terminal."""
    picture = swarm.folder / "curves.png"
    files = [str(node.home / "runs" / RUN / "metrics.jsonl") for node in swarm.nodes]
    swarm.nodes[0].shoal("run", "curves", *files, "--out", str(picture))
    check(picture.read_bytes()[:4] == b"\x89PNG", "the curves are a PNG")
    picture_of_one = str(swarm.folder / "ash.png")
    drawn = swarm.nodes[0].shoal("run", "curves", RUN, "--terminal", "--out", picture_of_one)
    narrator.say("\n".join(drawn.splitlines()[:-1]))  # the last line names the file
    return picture
