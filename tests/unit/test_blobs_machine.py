"""Which chunk is asked of whom."""

from hypothesis import given
from hypothesis import strategies as st

from protocols.blobs.machine import LACKS_MAX, Fetch
from wire.ids import PeerId

A, B = PeerId("A"), PeerId("B")


def chunk(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_chunks_are_shared_out_in_order_and_a_few_at_a_time() -> None:
    fetch = Fetch([chunk(n) for n in range(5)], [A, B], in_flight_max=2)
    assert [fetch.next_for(A) for _ in range(3)] == [chunk(0), chunk(1), None]
    assert [fetch.next_for(B) for _ in range(3)] == [chunk(2), chunk(3), None]
    fetch.arrived(A, chunk(0))
    assert [fetch.next_for(A), fetch.next_for(A)] == [chunk(4), None]
    assert not fetch.is_done
    for peer, number in ((A, 1), (B, 2), (B, 3), (A, 4)):
        fetch.arrived(peer, chunk(number))
    assert fetch.is_done
    assert not fetch.is_useful(A)


def test_what_one_lacks_the_other_is_asked_for() -> None:
    fetch = Fetch([chunk(0)], [A, B])
    assert fetch.next_for(A) == chunk(0)
    assert fetch.is_useful(B)  # A may fail yet
    assert not fetch.has_work_for(B)
    fetch.absent(A, chunk(0))
    assert fetch.next_for(A) is None
    assert not fetch.is_useful(A)
    assert fetch.next_for(B) == chunk(0)
    fetch.absent(B, chunk(0))
    assert not fetch.is_useful(B)
    assert not fetch.is_done


def test_a_lost_provider_gives_its_chunks_back_and_gets_no_more() -> None:
    fetch = Fetch([chunk(0), chunk(1)], [A, B])
    assert (fetch.next_for(A), fetch.next_for(A)) == (chunk(0), chunk(1))
    fetch.lost(A)
    assert fetch.next_for(A) is None
    assert not fetch.is_useful(A)
    assert {fetch.next_for(B), fetch.next_for(B)} == {chunk(0), chunk(1)}


def test_a_chunk_asked_for_twice_is_fetched_once() -> None:
    fetch = Fetch([chunk(0), chunk(0)], [A])
    assert (fetch.next_for(A), fetch.next_for(A)) == (chunk(0), None)
    fetch.arrived(A, chunk(0))
    assert fetch.is_done


def test_one_who_lacks_very_much_is_given_up() -> None:
    fetch = Fetch([chunk(n) for n in range(LACKS_MAX + 2)], [A])
    for _ in range(LACKS_MAX + 1):
        asked = fetch.next_for(A)
        assert asked is not None
        fetch.absent(A, asked)
    assert not fetch.is_useful(A)


@given(st.data())
def test_whatever_happens_each_chunk_is_with_one_provider_or_wanted(data: st.DataObject) -> None:
    chunks, peers = [chunk(n) for n in range(6)], [PeerId(name) for name in "ABC"]
    fetch = Fetch(chunks, peers, in_flight_max=2)
    asked: dict[bytes, PeerId] = {}
    arrived = set[bytes]()
    for _ in range(40):
        peer = data.draw(st.sampled_from(peers))
        given_chunk = fetch.next_for(peer)
        if given_chunk is not None:
            assert given_chunk not in asked
            assert given_chunk not in arrived
            asked[given_chunk] = peer
        if asked:
            done = data.draw(st.sampled_from(sorted(asked)))
            match data.draw(st.sampled_from(["arrived", "absent", "lost", "wait"])):
                case "arrived":
                    fetch.arrived(asked.pop(done), done)
                    arrived.add(done)
                case "absent":
                    fetch.absent(asked.pop(done), done)
                case "lost":
                    gone = asked[done]
                    fetch.lost(gone)
                    asked = {c: p for c, p in asked.items() if p != gone}
        assert fetch.is_done == (len(arrived) == len(chunks))
