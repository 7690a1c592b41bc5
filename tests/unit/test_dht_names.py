"""What people type for a key of the DHT, and what they are shown."""

import pytest

from dht.values import head_name, multi_name
from node.control.dht_names import key_named, own_named, shown, target_named, value_named
from protocols.blobs.wire import raw_cid
from wire.errors import NotFound, UsageError
from wire.ids import PeerId, peer_id_of

OWN, BOB = peer_id_of(bytes(32)), peer_id_of(bytes([1]) * 32)
CID = raw_cid(bytes(32))


def resolve(name: str) -> PeerId:
    if name == "bob":
        return BOB
    raise NotFound(f"no member is called {name!r}")


def test_a_key_is_a_cid_or_begins_with_a_slash() -> None:
    assert key_named(CID) == CID.encode()
    assert key_named("/fleet/gpu") == b"/fleet/gpu"


@pytest.mark.parametrize("text", ["fleet", CID[:-1], CID.upper(), "", "/" + "x" * 256, "/a\x1b[2J"])
def test_a_mistyped_cid_is_never_a_name(text: str) -> None:
    with pytest.raises(UsageError):
        key_named(text)


def test_a_target_is_a_peer_before_it_is_a_cid() -> None:
    assert target_named("bob", resolve) == BOB
    assert target_named(CID, resolve) == CID.encode()
    assert target_named("/a", resolve) == b"/a"
    with pytest.raises(UsageError, match="no member, peer ID or CID"):
        target_named("carol", resolve)


def test_values_are_read_under_the_name_or_id_of_who_wrote_them() -> None:
    assert value_named("/shoal/head/bob/a/b", OWN, resolve) == head_name(BOB, "a/b")
    assert value_named(f"/shoal/head/{BOB}/a", OWN, resolve) == head_name(BOB, "a")
    assert value_named("/shoal/head/a", OWN, resolve) == head_name(OWN, "a")
    assert value_named("/shoal/multi/a/b", OWN, resolve) == multi_name("a/b")
    assert shown(value_named(f"/pk/{BOB}", OWN, resolve)) == f"/pk/{BOB}"
    with pytest.raises(NotFound):
        value_named("/shoal/head/carol/a", OWN, resolve)


@pytest.mark.parametrize(
    "text",
    ["/fleet/gpu", "/shoal/", "/shoal/head/", "/shoal/multi/", "/pk/", "/pk/l0O", "/pk/abc", "x",
     "/shoal/multi/\x07", "/shoal/multi/" + "x" * 256],
)  # fmt: skip
def test_what_is_in_no_namespace_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        value_named(text, OWN, resolve)
    assert "/shoal/head/PEER/NAME" in caught.value.hint


def test_only_our_own_values_are_put() -> None:
    assert own_named("/shoal/head/a/b", OWN) == (True, "a/b", head_name(OWN, "a/b"))
    assert own_named(f"/shoal/head/{OWN}/a", OWN) == (True, "a", head_name(OWN, "a"))
    assert own_named("/shoal/multi/a", OWN) == (False, "a", multi_name("a"))
    with pytest.raises(UsageError, match="only 12D3KooW"):
        own_named(f"/shoal/head/{BOB}/a", OWN)
    for text in ("/pk/a", "a", "/shoal/head/", "/shoal/multi/", "/shoal/multi/\x1b"):
        with pytest.raises(UsageError):
            own_named(text, OWN)


def test_names_that_are_no_text_are_shown_as_digits() -> None:
    assert shown(b"/a") == "/a"
    assert shown(b"\xff\x00") == "0xff00"
    assert shown(b"a\x1b[2J") == "0x611b5b324a"
