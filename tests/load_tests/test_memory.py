"""Growth is told from noise, and memory is read from where the kernel counts it."""

import os
import random

import pytest

from load_tests.memory import memory_of, parse_rollup, trend

MINUTES_8 = [float(second) for second in range(0, 480, 2)]


def noise(sigma_mb: float) -> list[float]:
    dice = random.Random(1)
    return [dice.gauss(0, sigma_mb) for _ in MINUTES_8]


@pytest.mark.parametrize(
    ("mb_per_hour", "sigma_mb", "flat"),
    [
        pytest.param(0, 0, True, id="still"),
        pytest.param(0, 3, True, id="noisy and still"),
        pytest.param(10, 0.1, True, id="a megabyte in eight minutes"),
        pytest.param(60, 0.1, False, id="eight megabytes in eight minutes"),
        pytest.param(60, 1, False, id="eight megabytes under noise"),
        pytest.param(-60, 0.1, True, id="shrinking"),
    ],
)
def test_growth_beyond_noise_is_seen_and_noise_is_not_growth(mb_per_hour: float, sigma_mb: float, flat: bool) -> None:
    samples = [100 + mb_per_hour * at / 3600 + off for at, off in zip(MINUTES_8, noise(sigma_mb), strict=True)]

    line = trend(MINUTES_8, samples)

    assert line.flat is flat
    assert line.mb_per_hour == pytest.approx(mb_per_hour, abs=0.1 + 5 * sigma_mb)


def test_a_rollup_is_read_in_bytes() -> None:
    text = "55d0-7ffe ---p 00000000 00:00 0    [rollup]\nRss:     1000 kB\nPss:      600 kB\nPss_Dirty:   1 kB\n"

    assert parse_rollup(text) == {"Rss": 1_024_000, "Pss": 614_400, "Pss_Dirty": 1024}


def test_a_process_that_is_gone_counts_nothing() -> None:
    here = memory_of([os.getpid(), 2**22 + 1])

    assert 0 < here.pss_mb <= here.rss_mb
