"""OpenAI's own client against our routes: what it asks, what it understands of what we say."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trio
import trio.testing
from openai.types.chat import ChatCompletionContentPartTextParam, ChatCompletionMessageParam

from node.answering import READER_S, Options
from node.model_answers import Prompt
from protocols.sharding.parts import HopLost, NoRoom
from protocols.sharding.route import NoRoute
from tests.unit.fake_endpoint import TOKEN, Endpoint, answers_of, endpoint, patched
from tests.unit.sharding_tokenizer import save_tokenizer

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("front")
    save_tokenizer(made, template=True)
    return made


@pytest.fixture
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    with endpoint(folder, monkeypatch) as running:
        yield running


@pytest.fixture
def client(served: Endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url, api_key=TOKEN, max_retries=0) as made:
        yield made


def text_part(text: str) -> ChatCompletionContentPartTextParam:
    return {"type": "text", "text": text}


def test_models_are_listed_and_shown(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").created == 1
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


def test_a_whole_answer_says_how_it_came(served: Endpoint, client: openai.OpenAI) -> None:
    served.play.reused = 16
    answer = client.chat.completions.create(
        model="tiny", messages=HI, max_completion_tokens=5, temperature=0
    )
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "to be")
    assert (choice.finish_reason, choice.logprobs) == ("length", None)
    assert answer.system_fingerprint == "fp_abababababab"
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens == len("<user>hi</user><assistant>")
    assert (usage.completion_tokens, usage.total_tokens) == (5, usage.prompt_tokens + 5)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 16
    trace: Any = answer.model_dump()["shoal"]
    assert [(hop["peer"], hop["codec"]) for hop in trace["route"]] == [
        ("alice", "float32"),
        ("bob", "ids"),
    ]
    assert (trace["replaced_hops"], trace["drafted"], trace["accepted"]) == (1, 7, 5)
    assert 0 < trace["first_token_s"] < 10


def test_a_stream_is_the_same_in_pieces(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=HI,
            max_tokens=5,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "to be"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert len({chunk.id for chunk in chunks}) == 1
    assert (chunks[-1].choices, chunks[-1].usage and chunks[-1].usage.completion_tokens) == ([], 5)
    assert "shoal" in chunks[-2].model_dump()


@pytest.mark.parametrize("at_once", [1, 3, 16])
@pytest.mark.parametrize("stop", ["or n", ["xyz", " or", "not"]])
def test_a_stop_is_not_shown_wherever_the_pieces_end(
    served: Endpoint, client: openai.OpenAI, at_once: int, stop: str | list[str]
) -> None:
    served.play.at_once = at_once
    pieces = list(
        client.completions.create(
            model="tiny", prompt="x", max_tokens=30, temperature=0, stop=stop, stream=True
        )
    )
    expected = "to be " if isinstance(stop, str) else "to be"
    assert "".join(piece.choices[0].text for piece in pieces) == expected
    assert pieces[-1].choices[0].finish_reason == "stop"
    whole = client.completions.create(
        model="tiny", prompt="x", max_tokens=30, temperature=0, stop=stop
    )
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(
        "to be or n" if isinstance(stop, str) else "to be or"
    )


def test_the_model_ends_by_itself(served: Endpoint, client: openai.OpenAI) -> None:
    served.play.text, served.play.ends, served.play.at_once = "naïve €", True, 4
    answer = client.completions.create(model="tiny", prompt="x", max_tokens=90, temperature=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("naïve €", "stop")


def test_chats_tell_logprobs(served: Endpoint, client: openai.OpenAI) -> None:
    served.play.text = "a€b"
    answer = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].message.content == "a€b"
    assert logprobs is not None
    assert logprobs.content is not None
    assert b"".join(bytes(each.bytes or []) for each in logprobs.content) == "a€b".encode()
    first = logprobs.content[0]
    assert (first.token, first.logprob, first.bytes) == ("a", -0.5, [97])
    assert [top.logprob for top in first.top_logprobs] == [-0.5, -1.5, -9999.0]
    assert first.top_logprobs[0].token == "a"
    assert served.play.opened[0]["sampling"].logprobs == 3


def test_streams_tell_every_logprob_once(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=20, temperature=0, logprobs=True, stop="t t",
        stream=True,
    )  # fmt: skip
    said = [(c.choices[0].delta.content, c.choices[0].logprobs) for c in chunks]
    tokens = [each.token for _, found in said if found for each in found.content or []]
    assert "".join(tokens) == "".join(text or "" for text, _ in said) == "to be or no"


def test_completions_tell_logprobs_and_offsets(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt="x", max_tokens=4, temperature=0, logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["t", "o", " ", "b"]
    assert logprobs.text_offset == [0, 1, 2, 3]
    assert logprobs.token_logprobs == [-0.5] * 4
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0]["t"] == -0.5


def test_several_answers_have_seeds_of_their_own(served: Endpoint, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=4, seed=5, n=3, temperature=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert [opened["sampling"].seed for opened in served.play.opened] == [5, 6, 7]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=4, seed=5, n=3, temperature=1, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]


def test_the_prompt_is_echoed(client: openai.OpenAI) -> None:
    more: dict[str, Any] = {"model": "tiny", "max_tokens": 5, "temperature": 0, "echo": True}
    assert client.completions.create(prompt="Say: ", **more).choices[0].text == "Say: to be"
    ids = client.completions.create(prompt=[72, 73], **more).choices[0].text
    assert ids.endswith("to be")
    assert len(ids) == 7
    stream = client.completions.create(prompt=["Say: "], stream=True, **more)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Say: to be"


def test_conversations_go_through_the_models_template(
    served: Endpoint, client: openai.OpenAI
) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "short"},
            {"role": "user", "content": [text_part("a"), text_part("b")]},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        ],
        max_tokens=1,
        extra_body={"shoal": {"codec": "int8", "speculate": False}, "top_k": 4, "min_p": 0.1},
    )  # fmt: skip
    rendered = "<system>short</system><user>ab</user><assistant>c</assistant><user>d</user>"
    assert len(served.play.prompts[0]) == len(rendered + "<assistant>")
    assert (served.play.opened[0]["codec"], served.play.opened[0]["speculate"]) == ("int8", False)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"n": 5}, "n=5: at most 4"),
        ({"max_tokens": 500}, "context is 128 tokens"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools are not supported"),
        ({"response_format": {"type": "json_object"}}, "'json_object' is not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias is not supported"),
        ({"top_logprobs": 2}, "needs logprobs"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "y"}]}, "role 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text"),
        ({"stop": ["x"] * 17}, "length <= 16"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_reason(
    client: openai.OpenAI, more: dict[str, Any], reason: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=reason) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": HI, **more})
    assert caught.value.type == "invalid_request_error"


def test_completions_refuse_what_they_cannot(client: openai.OpenAI) -> None:
    more: list[dict[str, Any]] = [
        {"echo": True, "logprobs": 1},
        {"suffix": "x"},
        {"best_of": 2},
        {"prompt": ["a", "b"]},
        {"prompt": [999]},
        {"prompt": ""},
    ]
    for each in more:
        with pytest.raises(openai.BadRequestError):
            client.completions.create(**{"model": "tiny", "prompt": "x", **each})


def test_an_error_names_the_parameter(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="x", temperature=-1)
    assert (caught.value.param, caught.value.code) == ("temperature", "usage")


def test_full_stages_say_when_to_come_back(served: Endpoint, client: openai.OpenAI) -> None:
    served.play.refuse = NoRoom("stages are full", retry_after_s=4.2)
    with pytest.raises(openai.RateLimitError) as busy:
        client.completions.create(model="tiny", prompt="x")
    assert busy.value.response.headers["Retry-After"] == "5"
    assert busy.value.type == "rate_limit_error"
    served.play.refuse = NoRoute("no ready node has blocks 2-4")
    with pytest.raises(openai.InternalServerError) as missing:
        client.completions.create(model="tiny", prompt="x", stream=True)
    assert missing.value.status_code == 503
    assert missing.value.response.headers["Retry-After"] == "5"


def test_openais_client_retries_by_itself(served: Endpoint) -> None:
    served.play.refuse = NoRoom("full", retry_after_s=0.01)
    client = openai.OpenAI(base_url=served.url, api_key=TOKEN, max_retries=1)
    with client, pytest.raises(openai.RateLimitError):
        client.completions.create(model="tiny", prompt="x")
    assert len(served.play.opened) == 2


def test_an_answer_that_breaks_is_an_error(served: Endpoint, client: openai.OpenAI) -> None:
    served.play.text, served.play.error = "to be", HopLost("blocks 2-4 on bob are lost")
    with pytest.raises(openai.InternalServerError, match="are lost"):
        client.completions.create(model="tiny", prompt="x", max_tokens=120)
    said = list[str]()
    with pytest.raises(openai.APIError, match="are lost"):
        said.extend(
            chunk.choices[0].text
            for chunk in client.completions.create(
                model="tiny", prompt="x", max_tokens=120, temperature=0, stream=True
            )
        )
    assert "".join(said) == "to be"
    served.wait_closed(2)


def test_a_token_that_does_not_exist_is_a_peers_fault(
    served: Endpoint, client: openai.OpenAI
) -> None:
    served.play.rogue = True
    with pytest.raises(openai.InternalServerError, match="picked token 512 of 512") as caught:
        client.completions.create(model="tiny", prompt="x", max_tokens=9)
    assert (caught.value.status_code, caught.value.code) == (502, "bad_message")


def test_a_reader_who_hangs_up_ends_the_session(served: Endpoint, client: openai.OpenAI) -> None:
    served.play.hold = 3
    stream = client.completions.create(model="tiny", prompt="x", max_tokens=50, stream=True)
    next(iter(stream))
    stream.close()
    served.wait_closed(1)
    served.play.hold = 0  # in the middle of the prompt
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).completions.create(model="tiny", prompt="x", n=2)
    served.wait_closed(3)


def test_sixteen_at_a_time(served: Endpoint, client: openai.OpenAI) -> None:
    served.play.hold = 1
    streams = [
        client.completions.create(model="tiny", prompt="x", n=4, stream=True) for _ in range(4)
    ]
    with pytest.raises(openai.RateLimitError, match="16 answers at a time"):
        client.completions.create(model="tiny", prompt="x")
    for stream in streams:
        stream.close()
    served.wait_closed(16)
    served.play.hold = None
    assert client.completions.create(model="tiny", prompt="x", max_tokens=1).choices


def test_the_asynchronous_client_asks_several_at_once(served: Endpoint) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=served.url, api_key=TOKEN) as client:

            async def one() -> str:
                stream = await client.chat.completions.create(
                    model="tiny", messages=HI, max_tokens=8, temperature=0, stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*(one() for _ in range(8)))

    assert asyncio.run(ask()) == ["to be or"] * 8


def test_the_port_wants_its_token(served: Endpoint) -> None:
    client = openai.OpenAI(base_url=served.url, api_key="wrong", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError, match="token"):
        client.models.list()


def test_how_the_last_answers_came_is_remembered(served: Endpoint, client: openai.OpenAI) -> None:
    for tokens in (3, 4):
        client.completions.create(model="tiny", prompt="x", max_tokens=tokens)
    url = f"{served.url}/served/tiny/map"
    found = httpx.get(url, headers={"Authorization": f"Bearer {TOKEN}"})
    drawn = json.loads(found.text)
    assert [stage["peer"] for stage in drawn["model"]["stages"]] == ["alice", "bob"]
    assert [answer["replaced_hops"] for answer in drawn["answers"]] == [1, 1]


async def test_who_stands_still_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object, nursery: trio.Nursery
) -> None:
    play = patched(folder, monkeypatch)
    answers, models = answers_of(folder)
    await nursery.start(answers.run)
    answering = await models.answer("tiny", Prompt(text="x"), Options(max_tokens=100))
    began = trio.current_time()
    await trio.sleep(READER_S - 1)
    assert play.closed == 0  # it waits with what it has
    await trio.sleep(2)
    assert play.closed == 1
    assert trio.current_time() - began < READER_S + 2
    answering.close()
    late = await models.answer("tiny", Prompt(text="x"), Options(max_tokens=100))
    late.close()  # before anything was read
    await trio.testing.wait_all_tasks_blocked()
    assert play.closed == 2
    nursery.cancel_scope.cancel()
