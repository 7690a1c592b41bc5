"""How tokens are picked, and which picks of another are allowed."""

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocols.sharding.sampling import allows, pick
from protocols.sharding.wire import Pick, Sampling

GREEDY = Sampling()


def test_sampling_is_greedy_at_zero_and_repeatable_by_seed() -> None:
    logits = torch.tensor([0.0, 2.0, 1.9, -5.0])
    assert pick(logits, GREEDY, 7) == Pick(1)
    warm = Sampling(temperature=1.0, seed=3)
    drawn = [pick(logits, warm, position).token for position in range(400)]
    assert drawn == [pick(logits, warm, position).token for position in range(400)]
    other = Sampling(1.0, 1.0, 4)
    assert drawn != [pick(logits, other, position).token for position in range(400)]
    share = drawn.count(1) / 400
    assert 0.4 < share < 0.57  # softmax says 0.484


def test_top_p_leaves_out_the_unlikely() -> None:
    logits = torch.tensor([0.0, 2.0, 1.9, -5.0])
    drawn = {pick(logits, Sampling(1.0, 0.9, 3), position).token for position in range(200)}
    assert drawn == {1, 2}
    assert {pick(logits, Sampling(1.0, 1e-6, 3), place).token for place in range(20)} == {1}


def test_the_least_temperature_is_greedy() -> None:
    logits = torch.tensor([0.0, 2.0, 1.9, -5.0])
    for temperature in (1e-3, 1e-308, 5e-324):
        sampling = Sampling(temperature, 0.9, 3)
        assert {pick(logits, sampling, place).token for place in range(20)} == {1}
        assert allows(logits, sampling, 5, 1, "float32")


def test_logprobs_are_those_of_the_model_whatever_the_temperature() -> None:
    logits = torch.tensor([0.0, 2.0, 1.9, -5.0])
    said = pick(logits, Sampling(temperature=3.0, seed=1, logprobs=2), 4)
    logs = logits.log_softmax(0).tolist()
    assert said.logprob == logs[said.token]
    assert said.top == [(1, logs[1]), (2, logs[2])]
    assert pick(logits, Sampling(logprobs=0), 4) == Pick(1, logs[1], [])


@settings(deadline=None, max_examples=30)  # of 60 tokens each; the machine may be busy
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.7, 1.0, 2.0]), st.sampled_from([0.3, 1.0]))
@example(15014, 0.7, 1.0)
def test_honest_picks_are_allowed_by_logits_that_differ_a_little(
    seed: int, temperature: float, top_p: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(60, generator=draw)
    noise = 3e-5 * torch.randn(60, generator=draw)
    sampling = Sampling(temperature, top_p, seed)
    token = pick(logits + noise, sampling, 9).token
    assert allows(logits, sampling, 9, token, "float32")
    shares = (logits / (temperature or 1.0)).softmax(0).tolist()
    likely = [other for other in range(60) if shares[other] > 0.01]
    others = [other for other in likely if allows(logits, sampling, 9, other, "float32")]
    assert len(others) <= 4  # those beside it in the draw; of unlikely ones, many may be there
    assert not allows(logits, sampling, 9, 60, "float32")
