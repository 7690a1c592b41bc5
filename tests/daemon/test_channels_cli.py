"""Channels between real daemons, through the command line and the Python clients."""

import json
import subprocess
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

import pytest

from shoal import ApiError
from shoal.channels import Message
from tests.daemon.processes import SHOAL, Daemon, clean_environment, daemons, run

COUNT = 200
PATIENCE_S = 20.0


@contextmanager
def listening(daemon: Daemon, *args: str) -> Generator["subprocess.Popen[str]"]:
    """Run `shoal sub` until the block is left; it listens when the block begins."""
    before = {channel.topic: channel.readers for channel in daemon.client.channels()}
    process = subprocess.Popen(
        [*SHOAL, "sub", *args],
        env=clean_environment(SHOAL_HOME=str(daemon.home)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(1000):
            now = {channel.topic: channel.readers for channel in daemon.client.channels()}
            if now.get(args[0], 0) > before.get(args[0], 0):
                break
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    """Three daemons that know each other."""
    with daemons(tmp_path_factory.mktemp("channels"), "ann", "bob", "eve") as made:
        made[0].start()
        ticket = made[0].client.ticket()
        for daemon in made[1:]:
            daemon.start("--join", ticket)
        for daemon in made:
            daemon.client.wait(peers=2, timeout_s=PATIENCE_S)
        yield made


def await_subscribers(daemon: Daemon, topic: str, count: int) -> None:
    """Wait until a daemon has heard of so many subscribed peers."""
    for _ in range(2000):
        for channel in daemon.client.channels():
            if channel.topic == topic and channel.peers >= count:
                return
    raise AssertionError(daemon.client.channels())


def test_what_is_published_on_one_machine_is_printed_on_the_others(three: list[Daemon]) -> None:
    ann, bob, eve = three
    with (
        listening(bob, "news", "--count", "2") as text,
        listening(eve, "news", "--count", "2", "--json") as documents,
        listening(ann, "news"),
    ):
        await_subscribers(ann, "news", 2)
        assert run(ann.home, "pub", "news", "hello, world").returncode == 0
        piped = subprocess.run(
            [*SHOAL, "pub", "news", "-", "--json"],
            input=b"\x00\xff binary",
            env=clean_environment(SHOAL_HOME=str(ann.home)),
            capture_output=True,
            check=True,
        )
        assert json.loads(piped.stdout)["peers"] == 2
        said, _ = text.communicate(timeout=PATIENCE_S)
        assert said == "ann: hello, world\nann: <9 bytes, binary; --json shows them>\n"
        lines = documents.communicate(timeout=PATIENCE_S)[0].splitlines()
        assert [json.loads(line)["data"] for line in lines] == [
            "aGVsbG8sIHdvcmxk",
            "AP8gYmluYXJ5",
        ]


def test_who_comes_late_gets_the_past_and_then_what_is_new(three: list[Daemon]) -> None:
    ann, bob, eve = three
    with listening(bob, "log"):
        for number in range(5):
            ann.client.publish("log", b"%d" % number)
        with listening(eve, "log", "--last", "3", "--count", "4") as late:
            await_subscribers(bob, "log", 1)
            ann.client.publish("log", b"now")
            said, _ = late.communicate(timeout=PATIENCE_S)
    assert said == "ann: 2\nann: 3\nann: 4\nann: now\n"


def test_what_is_too_big_for_a_message_arrives_as_a_blob(three: list[Daemon]) -> None:
    ann, bob, _ = three
    data = bytes(range(256)) * 4096
    found = list[Message]()

    def read() -> None:
        with closing(bob.client.subscribe("bulk")) as messages:
            found.append(next(messages))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(2000):
        if any(channel.topic == "bulk" for channel in bob.client.channels()):
            break
    published = ann.client.publish("bulk", data)
    reader.join(PATIENCE_S)
    assert (found[0].data == data, found[0].cid) == (True, published.cid)


def test_a_burst_arrives_whole(three: list[Daemon]) -> None:
    ann, bob, _ = three
    words = list[bytes]()

    def read() -> None:
        with closing(bob.client.subscribe("burst")) as messages:
            for message in messages:
                words.append(message.data)
                if len(words) == COUNT:
                    return

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(2000):
        if any(channel.topic == "burst" for channel in bob.client.channels()):
            break
    for number in range(COUNT):
        ann.client.publish("burst", b"%d" % number)
    reader.join(PATIENCE_S)
    assert sorted(words) == sorted(b"%d" % number for number in range(COUNT))


def test_topics_that_are_not_ours_are_refused_with_a_hint(three: list[Daemon]) -> None:
    ann, bob, _ = three
    done = run(ann.home, "pub", "shoal/crdt", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "belong to the daemon" in done.stderr
    assert "choose another name" in done.stderr
    with pytest.raises(ApiError, match="not a topic"):
        ann.client.publish("two words", b"")
    with pytest.raises(ApiError, match="only 12D3"):
        ann.client.publish(f"own/{bob.client.id().peer}/diary", b"")
    bob.client.publish(f"own/{bob.client.id().peer}/diary", b"mine")


def test_channels_and_metrics_show_what_goes_on(three: list[Daemon]) -> None:
    ann, bob, _ = three
    with listening(ann, "seen"), listening(bob, "seen"):
        await_subscribers(ann, "seen", 1)
        bob.client.publish("seen", b"x")
        table = run(ann.home, "channels").stdout.splitlines()
        assert table[0].split()[:3] == ["TOPIC", "READERS", "PEERS"]
        assert [line.split()[0] for line in table[1:]] == ["seen", "shoal/crdt"]
    pages = run(ann.home, "status", "--json")
    assert json.loads(pages.stdout)["peers"] == 2
