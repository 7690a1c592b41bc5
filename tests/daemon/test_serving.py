"""Real daemons serve a model: the command line, OpenAI's own client, and daemons that die."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from protocols.sharding.reference import continue_greedily
from shoal import models
from tests.daemon.processes import Daemon, daemons, run
from tests.unit.sharding_models import save_model
from tests.unit.sharding_tokenizer import save_tokenizer

PATIENCE_S = 120.0  # seconds; processes that import torch share the cores with other tests
PROMPT = "to be or not"


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def expected(folder: Path) -> str:
    """Save a model; return what it says, unsharded."""
    model = save_model(folder / "hf", vocab_size=256)
    tokenizer = save_tokenizer(folder / "hf", template=True)
    ids = tokenizer(PROMPT)["input_ids"]
    return str(tokenizer.decode(continue_greedily(model, ids, 64)))


@pytest.fixture(scope="module")
def swarm(folder: Path, expected: str) -> Iterator[list[Daemon]]:
    """Two daemons that serve the model; the first has OpenAI's endpoint."""
    with daemons(folder, "one", "two") as both:
        one, two = both
        for daemon in both:
            daemon.environment = {"SHOAL_SERVE__MEMORY_GIB": "1"}
        one.start("--http", "127.0.0.1:0")
        two.start("--join", one.client.ticket())
        wait_until(lambda: len(one.client.members()) == 2)
        steps = list(models.serve(one.client, str(folder / "hf"), name="tiny"))
        assert [step.state for step in steps[:3]] == ["splitting", "storing", "placing"]
        assert steps[-1].state == "ready"
        yield both


def client_of(daemon: Daemon) -> openai.OpenAI:
    log = (daemon.home / "daemon.log").read_text().split("\n")
    said = next(line for line in log if "event=http" in line)
    address = said.split("listen=")[1].split()[0]
    token = (daemon.home / "http.token").read_text().strip()
    return openai.OpenAI(base_url=f"http://{address}/v1", api_key=token, max_retries=0)


def test_the_command_line_generates_what_the_unsharded_model_says(
    swarm: list[Daemon], expected: str
) -> None:
    done = run(swarm[1].home, "generate", PROMPT, timeout_s=PATIENCE_S)
    assert (done.stdout, done.returncode) == (expected + "\n", 0)
    assert "tokens/s" in done.stderr
    whole = run(swarm[0].home, "generate", PROMPT, "--json", timeout_s=PATIENCE_S)
    answer = json.loads(whole.stdout)
    assert answer["text"] == expected
    assert [hop["start"] for hop in answer["trace"]["route"]] == [0, 2]


def test_the_models_are_listed_on_every_node(swarm: list[Daemon]) -> None:
    for daemon in swarm:
        [model] = json.loads(run(daemon.home, "models", "--json").stdout)
        assert (model["name"], model["layers"], model["ready"]) == ("tiny", 4, True)
        assert "ready" in run(daemon.home, "models").stdout


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
        assert chunks[-1].usage == whole.usage
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


def test_a_killed_worker_comes_back_and_a_killed_daemon_takes_its_workers_along(
    swarm: list[Daemon], expected: str
) -> None:
    one, two = swarm
    before = workers_of(two.home)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    done = run(one.home, "generate", PROMPT)
    assert done.returncode == 1
    # Which of the two depends on whether its lease or its silence is seen first.
    assert "are lost" in done.stderr or "no ready node goes on" in done.stderr
    wait_until(lambda: bool(set(workers_of(two.home)) - set(before)))
    wait_until(lambda: models.models(one.client)[0].ready)
    done = run(one.home, "generate", PROMPT, timeout_s=PATIENCE_S)
    assert done.stdout == expected + "\n"
    two.kill()
    wait_until(lambda: not workers_of(two.home))
    assert one.client.status().state == "ready"


def test_a_model_out_of_service_leaves_no_process(swarm: list[Daemon]) -> None:
    one = swarm[0]
    assert run(one.home, "unserve", "tiny").returncode == 0
    wait_until(lambda: not workers_of(one.home))  # tokenizers neither
    assert run(one.home, "models").stdout == ""
    missing = run(one.home, "unserve", "tiny")
    assert (missing.returncode, "`shoal models` lists them" in missing.stderr) == (1, True)
