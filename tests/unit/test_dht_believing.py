"""What a reader believes when liars answer too: providers and values that many tell of."""

from dataclasses import replace

from dht.finding import PROVIDERS_MAX, VALUES_MAX, FindProviders, Start
from dht.messages import Contact, Providers, Values
from tests.unit.test_dht_finding import NOW, OWN, get, give, providers, provision, seeds, value


def networks(*numbers: int) -> list[Contact]:
    """Contacts at distances 1, 2, 3… of a key, each in the network of that number."""
    return [
        replace(one, addrs=(f"/ip4/20.0.{number}.{at}/tcp/1",))
        for at, (one, number) in enumerate(zip(seeds(99, b"cid"), numbers, strict=False))
    ]


def test_sybils_of_two_networks_do_not_agree_with_themselves_about_providers() -> None:
    near = networks(1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9)
    operation = FindProviders(b"cid", Start(OWN, near, NOW))
    wanted = operation.next_asks(NOW)
    liars = [Providers((provision("sybil"),), ())] * 6  # of three networks
    give(operation, wanted, *liars)
    wanted = [*wanted[6:], *operation.next_asks(NOW)]
    assert not operation.is_done
    give(operation, wanted, Providers((provision("honest"),), ()))
    assert {one.peer for one in operation.result} == {"sybil", "honest"}


def test_what_each_liar_alone_tells_does_not_push_out_what_many_tell() -> None:
    operation = providers()
    wanted = operation.next_asks(NOW)
    liars = [[provision(f"{liar} {n}") for n in range(64)] for liar in range(5)]
    give(operation, wanted, *[Providers(tuple(each), ()) for each in liars])
    honest = Providers((provision("honest"),), ())
    give(operation, [*wanted[5:], *operation.next_asks(NOW)], honest, honest)
    assert operation.result[0].peer == "honest"
    assert len(operation.result) == PROVIDERS_MAX


def test_authors_whom_each_liar_alone_tells_do_not_push_out_whom_many_tell() -> None:
    operation = get()
    honest = value(author="z")
    liars = [[value(author=f"{liar} {n}") for n in range(64)] for liar in range(17)]
    answers = [Values((honest,), ()), Values((honest,), ())]
    answers += [Values(tuple(each), ()) for each in liars]
    while answers:
        wanted = operation.next_asks(NOW)
        give(operation, wanted, *answers)
        del answers[: len(wanted)]
    assert honest in operation.result
    assert len(operation.result) == VALUES_MAX


def test_what_we_hold_ourselves_counts_as_told() -> None:
    held = provision("held")
    operation = FindProviders(b"cid", Start(OWN, seeds(5, b"cid"), NOW), held=[held])
    told = Providers((provision("other"), held), ())
    give(operation, operation.next_asks(NOW), told)
    assert [one.peer for one in operation.result] == ["held", "other"]
