"""The table of routes, the requests' parsing, and the OpenAPI document."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.control import openapi
from node.control.api import Api, MethodNotAllowed, Raw, Request, error_reply, status_of
from wire.errors import DeadlineExceeded, NotFound, UsageError


class Round(msgspec.Struct):
    """A body with a bound."""

    step: int
    tags: list[str] = []


class Done(msgspec.Struct):
    """A reply; `more` is whatever JSON."""

    ok: bool
    more: object = None


async def nothing(_: Request) -> None:
    return None


def table() -> Api:
    api = Api()
    api.add("GET", "/v1/runs/{run}", nothing, summary="one", reply=Done)
    api.add("POST", "/v1/runs/{run}/round", nothing, summary="round", body=Round, reply=Done)
    api.add("GET", "/v1/runs/all", nothing, summary="all", reply=list[Done])
    api.add("GET", "/v1/feed", nothing, summary="feed", reply=Done, events=True)
    api.add("GET", "/metrics", nothing, summary="figures", reply=Raw)
    return api


def test_parameters_come_from_the_path_decoded() -> None:
    route, params = table().find("POST", "/v1/runs/my%20run%2F1/round")
    assert route.summary == "round"
    assert params == {"run": "my run/1"}


def test_a_literal_wins_over_a_parameter() -> None:
    assert table().find("GET", "/v1/runs/all")[0].summary == "all"
    assert table().find("GET", "/v1/runs/other")[0].summary == "one"


def test_an_unknown_path_and_a_wrong_method_are_told_apart() -> None:
    with pytest.raises(NotFound):
        table().find("GET", "/v1/nothing")
    with pytest.raises(MethodNotAllowed, match="POST is"):
        table().find("GET", "/v1/runs/a/round")


def test_a_wrong_body_names_the_path_of_the_fault() -> None:
    with pytest.raises(UsageError, match=r"`\$\.step`"):
        Request("POST", "/", body=b'{"step": "x"}').read(Round)
    with pytest.raises(UsageError, match="missing required field `step`"):
        Request("POST", "/").read(Round)


@given(st.binary(max_size=200))
def test_any_bytes_as_a_body(body: bytes) -> None:
    try:
        Request("POST", "/", body=body).read(Round)
    except UsageError:
        return


@pytest.mark.parametrize("text", ["x", "nan", "-1", "11", ""])
def test_a_query_number_out_of_bounds_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Request("GET", "/", query={"n": text}).number("n", 5.0, most=10.0)


def test_errors_have_one_shape_and_a_status() -> None:
    error = UsageError("no", hint="do")
    assert json.loads(msgspec.json.encode(error_reply(error))) == {
        "error": {"code": "usage", "message": "no", "hint": "do"}
    }
    assert status_of(error.code) == 400
    assert status_of(DeadlineExceeded.code) == 504
    assert status_of("anything else") == 500


def test_the_document_describes_every_route() -> None:
    document = json.loads(openapi.document(table()))
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {
        "/v1/runs/{run}",
        "/v1/runs/{run}/round",
        "/v1/runs/all",
        "/v1/feed",
        "/metrics",
    }
    post = document["paths"]["/v1/runs/{run}/round"]["post"]
    assert post["parameters"][0]["name"] == "run"
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Round"}
    assert "Round" in document["components"]["schemas"]
    feed = document["paths"]["/v1/feed"]["get"]["responses"]["200"]["content"]
    assert list(feed) == ["text/event-stream"]
