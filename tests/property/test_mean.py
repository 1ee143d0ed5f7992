import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.aggregate.mean import Mean
from fedkd.aggregate.rule import Central
from fedkd.config import Aggregate
from fedkd.privacy.noise import NoiseSource
from fedkd.wire import quantise

CENTRAL, FEATURES = Central((), NoiseSource(bytes(32)), 1), np.zeros((7, 2), np.float32)


@given(st.integers(1, 30), st.integers(0, 2**32 - 1), st.sampled_from(["float16", "float32"]))
@settings(max_examples=60, deadline=None)
def test_the_mean_has_the_same_bytes_in_every_order_of_arrival(clients: int, seed: int, codec: str) -> None:
    random = np.random.default_rng(seed)
    answers = [quantise(random.dirichlet(np.ones(4), size=7), codec) for _ in range(clients)]
    results = []
    for order in (range(clients), reversed(range(clients)), random.permutation(clients)):
        mean = Mean(Aggregate())
        acc = mean.start(7, 4, ())
        for index in order:
            acc = mean.fold(acc, "", answers[index])
        results.append(mean.finish(acc, CENTRAL, FEATURES).rows.tobytes())
    assert len(set(results)) == 1


@given(st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_mean_is_the_mean_and_its_rows_sum_to_one(clients: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    answers = [quantise(random.dirichlet(np.ones(4), size=7), "float32") for _ in range(clients)]
    mean, acc = Mean(Aggregate()), Mean(Aggregate()).start(7, 4, ())
    for rows in answers:
        acc = mean.fold(acc, "", rows)
    found = mean.finish(acc, CENTRAL, FEATURES).rows
    assert np.allclose(found, np.mean(answers, axis=0), atol=1e-6)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-6)
