"""Real daemons, programs that serve methods, and those who call them: Python, CLI, plain HTTP."""

import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import shoal
from shoal.async_rpc import AsyncRpcCall
from shoal.rpc import RpcCall
from tests.daemon.processes import SHOAL, Daemon, clean_environment, daemons, run

PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    """Ada and bob, who know each other's names."""
    with daemons(tmp_path_factory.mktemp("rpc"), "ada", "bob") as (ada, bob):
        ada.start()
        bob.start("--join", ada.client.ticket())
        ada.client.wait(peers=1, timeout_s=PATIENCE_S)
        for each in (ada, bob):
            until(lambda each=each: sum(m.alive for m in each.client.members()) == 2)
        yield [ada, bob]


def until(condition: Any) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def names(daemon: Daemon, peer: str = "") -> list[str]:
    return [each.method for each in daemon.client.rpc_methods(peer)]


@contextmanager
def program(*command: str, home: Path | None = None) -> Iterator["subprocess.Popen[str]"]:
    """Run a program that says on its standard error when it serves; leave it not running."""
    environment = clean_environment(**({"SHOAL_HOME": str(home)} if home else {}))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            assert "serving" in process.stderr.readline()
            yield process
        finally:
            process.kill()


def fail(value: Any) -> None:
    raise shoal.RpcError("no_such_fish", f"{value} is not in the sea")


def total(call: RpcCall) -> None:
    call.send(sum(call))


def echo(call: RpcCall) -> None:
    for value in call:
        call.send(value)


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


FUNCTIONS = {
    "double": lambda value: value * 2,
    "count": lambda value: (number for number in range(value)),
    "fail": fail,
    "bug": lambda value: 1 // value,
    "odd": lambda value: object(),
    "deep": nested,
}
STREAMS = {"total": total, "echo": echo}


def test_values_of_every_kind_there_and_back(swarm: list[Daemon]) -> None:
    ada, bob = swarm
    with bob.client.serve(FUNCTIONS, streams=STREAMS):
        call = ada.client.rpc
        assert call("bob", "double", 21) == 42
        assert call("bob", "double", "ab") == "abab"
        assert call("bob", "double", b"\x00\xff") == b"\x00\xff\x00\xff"
        assert call("bob", "double", [None, 1.5, {"a": [True]}]) == [None, 1.5, {"a": [True]}] * 2
        with ada.client.rpc_stream("bob", "count", [5]) as answers:
            assert list(answers) == [0, 1, 2, 3, 4]
        with ada.client.rpc_stream("bob", "total") as opened:
            for number in range(100):
                opened.send(number)
            opened.finish()
            assert list(opened) == [4950]
        with ada.client.rpc_stream("bob", "echo") as opened:
            for number in range(50):
                opened.send(number)
                assert opened.receive() == number
        big = b"x" * (2_000_000)
        assert call("bob", "double", big) == big + big
        assert names(ada, "bob") == names(bob) == sorted([*FUNCTIONS, *STREAMS])


def test_errors_arrive_typed_and_the_program_goes_on(swarm: list[Daemon]) -> None:
    ada, bob = swarm
    with bob.client.serve(FUNCTIONS, places=1):
        for method, value, code, says in [
            ("fail", "eel", "no_such_fish", "eel is not in the sea"),
            ("bug", 0, "program_error", "ZeroDivisionError"),
            ("odd", 0, "program_error", "cannot be sent"),
            ("count", 3, "is_stream", "answers with a stream"),
            ("deep", 99, "bad_answer", "32 levels"),
            ("nothing", 0, "unknown_method", "no program here serves nothing"),
            ("double", 2**64, "failed", "cannot be sent"),
        ]:
            with pytest.raises(shoal.ClientError, match=says) as caught:
                ada.client.rpc("bob", method, value)
            assert caught.value.code == code
        assert ada.client.rpc("bob", "double", 1) == 2


def test_a_slow_function_times_out_and_blocks_nobody_else(swarm: list[Daemon]) -> None:
    ada, bob = swarm
    release = threading.Event()

    def slow(value: Any) -> str:
        release.wait(PATIENCE_S)
        return "late"

    with bob.client.serve({"slow": slow}, places=2), bob.client.serve(FUNCTIONS):
        began = time.monotonic()
        with pytest.raises(shoal.ClientError) as caught:
            ada.client.rpc("bob", "slow", timeout_s=0.3)
        assert (caught.value.code, caught.value.exit_code) == ("deadline", 4)
        assert time.monotonic() - began < 2.0
        assert ada.client.rpc("bob", "double", 1) == 2
        release.set()
        until(lambda: ada.client.rpc("bob", "slow") == "late")


def test_a_program_that_dies_fails_its_call_and_may_come_back(swarm: list[Daemon]) -> None:
    ada, bob = swarm
    script = textwrap.dedent(
        f"""
        import os, shoal, sys
        def die(value):
            os.kill(os.getpid(), 9)
        with shoal.connect({str(bob.home)!r}).serve({{"die": die, "live": str}}) as serving:
            print("serving", file=sys.stderr)
            serving.wait()
        """
    )
    with program(sys.executable, "-c", script) as process:
        began = time.monotonic()
        with pytest.raises(shoal.ClientError, match="went away") as caught:
            ada.client.rpc("bob", "die", timeout_s=60)
        assert caught.value.code == "unavailable"
        process.wait()
    with pytest.raises(shoal.ClientError, match="is gone") as caught:
        ada.client.rpc("bob", "live", timeout_s=60)
    assert caught.value.code == "unavailable"
    assert time.monotonic() - began < 10
    with program(sys.executable, "-c", script):
        assert ada.client.rpc("bob", "live", 5) == "5"


def test_the_command_line_serves_calls_and_lists(swarm: list[Daemon]) -> None:
    ada, bob = swarm
    serve = [*SHOAL, "rpc", "serve", "upper", "--places", "2", "--", "tr", "a-z", "A-Z"]
    with program(*serve, home=bob.home) as process:
        done = run(ada.home, "rpc", "call", "bob", "upper", '"hello"')
        assert (done.returncode, done.stdout) == (0, '"HELLO"\n'), done.stderr
        listed = run(ada.home, "rpc", "methods", "bob", "--json")
        peer = bob.client.id().peer
        assert json.loads(listed.stdout) == [
            {"peer": peer, "method": "upper", "places": 2, "busy": 0, "waiting": 0}
        ]
        assert "upper" in run(bob.home, "rpc", "methods").stdout
        process.terminate()
        assert process.wait(PATIENCE_S) == 130
    done = run(ada.home, "rpc", "call", "bob", "upper", '"hello"')
    assert done.returncode == 1
    assert "error: the program that served upper here is gone" in done.stderr
    assert "try: start the program again" in done.stderr


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (("bob", "double", "hello"), 2, "text wants quotes"),
        (("nobody", "double", "1"), 1, "no member is called"),
        (("ada", "double", "1"), 2, "this node itself"),
        (("bob", "no/name", "1"), 2, "no method's name"),
        (("bob", "slow", "1", "--timeout", "200ms"), 4, "slow: no answer within 0.2 s"),
        (("bob", "double", "1", "--timeout", "48h"), 2, "up to 24 h"),
        (("bob", "fail", "1"), 1, "not in the sea"),
    ],
)
def test_what_goes_wrong_is_said_with_an_exit_status(
    swarm: list[Daemon], args: tuple[str, ...], status: int, says: str
) -> None:
    ada, bob = swarm
    slow = threading.Event()
    with bob.client.serve({**FUNCTIONS, "slow": lambda _: slow.wait(PATIENCE_S)}):
        done = run(ada.home, "rpc", "call", *args)
        slow.set()
    assert done.returncode == status, done.stderr
    assert says in done.stderr


def test_streams_on_the_command_line_and_bytes_in_json(swarm: list[Daemon]) -> None:
    ada, bob = swarm
    with bob.client.serve({**FUNCTIONS, "raw": bytes.fromhex}, streams=STREAMS):
        done = subprocess.run(
            [*SHOAL, "rpc", "call", "bob", "echo", "-", "--stream"],
            input='1\n\n"two"\n{"$base64": "AP8="}\n',
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=clean_environment(SHOAL_HOME=str(ada.home)),
        )
        assert done.stdout == '1\n"two"\n{"$base64":"AP8="}\n', done.stderr
        assert run(ada.home, "rpc", "call", "bob", "raw", '"00ff"').stdout == (
            '{"$base64":"AP8="}\n'
        )
        body = shoal.rpc_api.RpcRequest("bob", "double", {"$base64": "AP8="})
        answer = ada.client.call("POST", "/v1/rpc/call", body, reply=shoal.rpc_api.RpcAnswer)
        assert answer.value == {"$base64": "AP8A/w=="}


def test_values_that_cannot_be_sent_end_the_stream_with_the_reason(swarm: list[Daemon]) -> None:
    ada, bob = swarm

    def values() -> Iterator[object]:
        yield 1
        raise ZeroDivisionError("in the caller's own generator")

    with bob.client.serve(streams=STREAMS):
        done = subprocess.run(
            [*SHOAL, "rpc", "call", "bob", "echo", "-", "--stream"],
            input="1\nx\n",
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=clean_environment(SHOAL_HOME=str(ada.home)),
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: 'x' is no JSON")
        for broken, error in ((values(), ZeroDivisionError), ([object()], shoal.ClientError)):
            with (
                ada.client.rpc_stream("bob", "echo", broken) as answers,
                pytest.raises(error, match=r"own generator|cannot be sent"),
            ):
                list(answers)


def test_an_error_of_a_program_is_told_whatever_its_words(swarm: list[Daemon]) -> None:
    ada, bob = swarm

    def fail(_: object) -> None:
        raise shoal.RpcError("odd", "\ud800" + "x" * 5_000_000)

    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    def mute(_: object) -> None:
        raise Mute

    with bob.client.serve({"fail": fail, "mute": mute}, places=1):
        with pytest.raises(shoal.ClientError, match=r"Mute: .*cannot be had"):
            ada.client.rpc("bob", "mute")
        for _ in range(2):
            with pytest.raises(shoal.ClientError, match=r"^\?xxx") as caught:
                ada.client.rpc("bob", "fail")
            assert caught.value.code == "odd"


def test_a_function_that_exits_keeps_nobody_waiting(swarm: list[Daemon]) -> None:
    ada, bob = swarm
    script = """
        import sys, time, shoal
        with shoal.connect(sys.argv[1]).serve({"leave": lambda _: sys.exit()}, places=1):
            print("serving", file=sys.stderr, flush=True)
            time.sleep(60)
    """
    python = (sys.executable, "-c", textwrap.dedent(script), str(bob.home))
    with program(*python), pytest.raises(shoal.ClientError) as caught:
        ada.client.rpc("bob", "leave", timeout_s=PATIENCE_S)
    assert caught.value.code == "unavailable"


def test_a_command_that_fails_or_is_cancelled(swarm: list[Daemon], tmp_path: Path) -> None:
    ada, bob = swarm
    mark = tmp_path / "pid"
    script = (
        f'read x; case "$x" in 1) echo no fish >&2; exit 3;; esac; echo $$ > {mark}; exec sleep 99'
    )
    serve = [*SHOAL, "rpc", "serve", "job", "--", "sh", "-c", script]
    with program(*serve, home=bob.home):
        with pytest.raises(shoal.ClientError, match="exit status 3: no fish") as caught:
            ada.client.rpc("bob", "job", 1)
        assert caught.value.code == "command_failed"
        with pytest.raises(shoal.ClientError) as caught:
            ada.client.rpc("bob", "job", 2, timeout_s=1.0)
        assert caught.value.exit_code == 4
        pid = mark.read_text().strip()
        until(lambda: not Path(f"/proc/{pid}").exists())


def test_trio_programs_serve_and_call_and_cancel(swarm: list[Daemon]) -> None:
    ada, bob = swarm
    cancelled = list[str]()

    async def sleep(value: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(value)

    async def count(value: Any) -> Any:
        for number in range(value):
            yield number

    async def swap(call: AsyncRpcCall) -> None:
        async for left, right in call:
            await call.send([right, left])

    async def main() -> None:
        here, there = shoal.connect_async(ada.home), shoal.connect_async(bob.home)
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[None]) -> None:
                await there.serve(
                    {"sleep": sleep, "count": count, "double": lambda value: value * 2},
                    streams={"swap": swap},
                    task_status=task_status,
                )

            await nursery.start(serve)
            assert await here.rpc("bob", "double", 4) == 8
            async with here.rpc_stream("bob", "count") as opened:
                await opened.send(300)
                assert [number async for number in opened] == list(range(300))
            async with here.rpc_stream("bob", "swap") as opened:
                await opened.send([1, 2])
                assert await opened.receive() == [2, 1]
                await opened.finish()
            with trio.move_on_after(0.2):
                await here.rpc("bob", "sleep", "by the caller")
            with pytest.raises(shoal.ClientError):
                await here.rpc("bob", "sleep", "by the deadline", timeout_s=0.2)
            with trio.fail_after(PATIENCE_S):
                while len(cancelled) < 2:  # noqa: ASYNC110 - another process cancels it
                    await trio.sleep(0.01)
            assert sorted(cancelled) == ["by the caller", "by the deadline"]
            assert await here.rpc("bob", "double", 4) == 8
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_figures_count_the_calls(swarm: list[Daemon]) -> None:
    ada, _ = swarm
    with ada.client.serve({"double": lambda value: value * 2}):
        page = b"".join(read_metrics(ada))
    assert b"shoal_app_methods 1.0" in page
    assert b"shoal_app_calls_out_total" in page


def read_metrics(daemon: Daemon) -> Iterator[bytes]:
    from shoal.client import connect_unix

    link = connect_unix(daemon.home / "control.sock", timeout_s=5)
    link.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    while data := link.recv(65536):
        yield data
    link.close()
