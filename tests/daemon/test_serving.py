"""Real daemons serve a model: the command line, OpenAI's own client, and daemons that die."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import openai
import pytest
import torch

from protocols.sharding.reference import continue_greedily
from shoal import hosting, models
from shoal.models import ServeProgress
from tests.daemon.processes import SHOAL, Daemon, clean_environment, daemons, run
from tests.unit.sharding_models import LAYERS, save_model
from tests.unit.sharding_tokenizer import save_tokenizer

PATIENCE_S = 120.0  # seconds; processes that import torch share the cores with other tests
HANGUP_S = 11.0  # a session ends within a second of its reader; leases tell it every 10 s
PROMPT = "to be or not"
HALF = LAYERS // 2  # blocks of each of the two daemons


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def workers_of(home: Path, kind: str = "") -> list[int]:
    """Find a daemon's worker processes: their folder is in its home."""
    module = f"protocols.sharding.{kind}".encode()
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if module in command and f"={home}/".encode() in command:
            found.append(int(folder.name))
    return found


def host_halves(both: list[Daemon]) -> None:
    for daemon, start in zip(both, (0, HALF), strict=True):
        wait_until(partial(knows, daemon, "tiny"))
        hosting.host(daemon.client, "tiny", start=start, end=start + HALF, memory_bytes=1 << 30)


def knows(daemon: Daemon, name: str) -> bool:
    return any(model.name == name for model in models.models(daemon.client))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def unsharded(folder: Path) -> tuple[str, list[float]]:
    """Save a model; return what it says by itself, and the first log-probabilities."""
    model = save_model(folder / "hf", vocab_size=256)
    tokenizer = save_tokenizer(folder / "hf", template=True)
    ids = tokenizer(PROMPT)["input_ids"]
    said = continue_greedily(model, ids, 64)
    with torch.inference_mode():
        logits = model(torch.tensor([ids + said[:8]])).logits[0, len(ids) - 1 : -1]
    picked = logits.float().log_softmax(-1).gather(1, torch.tensor([said[:8]]).T)
    return str(tokenizer.decode(said)), picked.flatten().tolist()


@pytest.fixture(scope="module")
def expected(unsharded: tuple[str, list[float]]) -> str:
    return unsharded[0]


@pytest.fixture(scope="module")
def logprobs(unsharded: tuple[str, list[float]]) -> list[float]:
    return unsharded[1]


@pytest.fixture(scope="module")
def swarm(folder: Path, expected: str) -> Iterator[list[Daemon]]:
    """Two daemons that serve the model; the first has OpenAI's endpoint."""
    with daemons(folder, "one", "two") as both:
        one, two = both
        for daemon in both:
            # float32: where other work slows the links down, "auto" would take float16
            daemon.environment = {"SHOAL_SERVE__OFFER": "false", "SHOAL_SERVE__CODEC": "float32"}
        one.start("--http", "127.0.0.1:0")
        two.start("--join", one.client.ticket())
        wait_until(lambda: len(one.client.members()) == 2)
        last, asked = ServeProgress("", ""), False
        for last in models.serve(one.client, str(folder / "hf"), name="tiny"):
            if last.model is not None and not last.model.stages and not asked:
                asked = True
                host_halves(both)
        assert last.state == "ready"
        yield both


def address_of(daemon: Daemon) -> tuple[str, str]:
    """Return OpenAI's base URL of a daemon, and its token."""
    log = (daemon.home / "daemon.log").read_text().split("\n")
    said = next(line for line in log if "event=http" in line)
    address = said.split("listen=")[1].split()[0]
    token = (daemon.home / "http.token").read_text().strip()
    return f"http://{address}/v1", token


def client_of(daemon: Daemon) -> openai.OpenAI:
    url, key = address_of(daemon)
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def test_the_command_line_generates_what_the_unsharded_model_says(
    swarm: list[Daemon], expected: str
) -> None:
    done = run(swarm[1].home, "generate", PROMPT, "-v", timeout_s=PATIENCE_S)
    assert (done.stdout, done.returncode) == (expected + "\n", 0)
    assert done.stderr.splitlines()[0].split() == [
        *("HOP", "BLOCKS", "NODE", "LINK", "COMPUTE", "GIVES")
    ]
    assert "tokens/s" in done.stderr
    whole = run(swarm[0].home, "generate", PROMPT, "--json", timeout_s=PATIENCE_S)
    answer = json.loads(whole.stdout)
    assert answer["text"] == expected
    assert [hop["start"] for hop in answer["trace"]["route"]] == [0, HALF]
    assert min(hop["compute_ms"] for hop in answer["trace"]["route"]) > 0, answer


def test_guesses_change_the_speed_only(swarm: list[Daemon], expected: str) -> None:
    done = run(swarm[0].home, "generate", PROMPT, "--no-speculate", timeout_s=PATIENCE_S)
    assert done.stdout == expected + "\n"


def test_who_asks_may_choose_the_codec(swarm: list[Daemon]) -> None:
    args = ("generate", PROMPT, "--codec", "int8", "--json")
    done = run(swarm[0].home, *args, timeout_s=PATIENCE_S)
    route = json.loads(done.stdout)["trace"]["route"]
    assert [hop["codec"] for hop in route] == ["int8", "picks"]


def test_the_map_is_the_same_on_every_node(swarm: list[Daemon]) -> None:
    for daemon in swarm:
        [drawn] = json.loads(run(daemon.home, "map", "--json").stdout)
        model = drawn["model"]
        assert (model["name"], model["layers"], model["ready"]) == ("tiny", LAYERS, True)
        assert sorted(stage["start"] for stage in model["stages"]) == [0, HALF]
        assert drawn["answers"]  # the command line has asked both
    picture = run(swarm[0].home, "map", "tiny").stdout
    assert "replicas" in picture
    assert "answer: " in picture


def test_a_conversation_goes_on_where_it_was(swarm: list[Daemon]) -> None:
    asked = "this is a first turn\nhi\n/route\n"
    with subprocess.Popen(
        [*SHOAL, "--home", str(swarm[0].home), "chat", "tiny", "--max-tokens", "8"],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        said, told = process.communicate(asked, timeout=PATIENCE_S)
    assert process.returncode == 0, told
    assert said.count("\n") >= 2
    assert "of them reused" in told  # the second turn began with the first one's cache


def test_openais_client_streams_a_conversation(swarm: list[Daemon]) -> None:
    with client_of(swarm[0]) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").object == "model"
        whole = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=20,
            temperature=0,
        )
        assert whole.choices[0].finish_reason == "length"
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == len("<user>hi</user><assistant>")
        chunks = list(
            client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
                max_tokens=20,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 20
        assert chunks[0].choices[0].delta.role == "assistant"


def test_openais_client_completes_a_text_and_stops(swarm: list[Daemon], expected: str) -> None:
    with client_of(swarm[0]) as client:
        text = client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=64, temperature=0
        ).choices[0]
        assert (text.text, text.finish_reason) == (expected, "length")
        stop = expected[10:13]
        short = client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=64, temperature=0, stop=[stop]
        ).choices[0]
        assert (short.text, short.finish_reason) == (expected[: expected.index(stop)], "stop")
        drawn = [
            client.completions.create(model="tiny", prompt=PROMPT, seed=seed, max_tokens=16)
            for seed in (1, 1, 2)
        ]
        assert drawn[0].choices[0].text == drawn[1].choices[0].text != drawn[2].choices[0].text


def test_logprobs_are_those_of_the_unsharded_model(
    swarm: list[Daemon], logprobs: list[float]
) -> None:
    with client_of(swarm[0]) as client:
        answer = client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=8, temperature=0, logprobs=3
        )
        told = answer.choices[0].logprobs
        assert told is not None
        assert told.token_logprobs == pytest.approx(logprobs, abs=1e-3)
        assert [max(top.values()) for top in told.top_logprobs or []] == told.token_logprobs
        several = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], n=3, max_tokens=6, seed=1
        )
        assert len({choice.message.content for choice in several.choices}) == 3


def test_the_asynchronous_client_asks_four_at_once(swarm: list[Daemon], expected: str) -> None:
    async def ask() -> list[str]:
        url, key = address_of(swarm[0])
        async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:

            async def one() -> str:
                stream = await client.completions.create(
                    model="tiny", prompt=PROMPT, max_tokens=64, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(one() for _ in range(4)))

    assert asyncio.run(ask()) == [expected] * 4


def test_what_cannot_be_answered_is_an_error_that_openais_client_understands(
    swarm: list[Daemon],
) -> None:
    with client_of(swarm[0]) as client:
        with pytest.raises(openai.BadRequestError, match="context is 128 tokens"):
            client.completions.create(model="tiny", prompt="hi", max_tokens=500)
        with pytest.raises(openai.NotFoundError, match="no model 'nope'"):
            client.completions.create(model="nope", prompt="hi")
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="tiny", prompt="hi", temperature=-1)
        assert caught.value.type == "invalid_request_error"
        assert caught.value.code == "usage"


def test_a_reader_who_hangs_up_frees_every_session(swarm: list[Daemon]) -> None:
    with client_of(swarm[0]) as client:
        for _ in range(40):  # more than the stages have room for
            stream = client.completions.create(
                model="tiny", prompt=PROMPT, max_tokens=100, stream=True
            )
            next(iter(stream))
            stream.close()
        assert client.completions.create(model="tiny", prompt=PROMPT, max_tokens=2).choices
    end = time.monotonic() + HANGUP_S
    while any(stage.sessions for stage in models.models(swarm[0].client)[0].stages):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_killed_worker_comes_back_and_a_killed_daemon_takes_its_workers_along(
    swarm: list[Daemon], expected: str
) -> None:
    one, two = swarm
    before = workers_of(two.home, "worker")
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    done = run(one.home, "generate", PROMPT, timeout_s=PATIENCE_S)  # waits for the new one
    wait_until(lambda: bool(set(workers_of(two.home, "worker")) - set(before)))
    if done.returncode:  # Which of the two depends on what is seen first, loss or lease.
        assert "lost" in done.stderr or "no ready node" in done.stderr
    wait_until(lambda: models.models(one.client)[0].ready)
    done = run(one.home, "generate", PROMPT, timeout_s=PATIENCE_S)
    assert done.stdout == expected + "\n"
    two.kill()
    wait_until(lambda: not workers_of(two.home))
    assert one.client.status().state == "ready"


def test_a_model_out_of_service_leaves_no_process(swarm: list[Daemon]) -> None:
    one = swarm[0]
    hosting.unhost(one.client, "tiny")  # what the swarm wants is one thing, this node another
    assert run(one.home, "unserve", "tiny").returncode == 0
    wait_until(lambda: not workers_of(one.home))  # tokenizers neither
    missing = run(one.home, "generate", PROMPT)
    assert (missing.returncode, "no model is served" in missing.stderr) == (1, True)
