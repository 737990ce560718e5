"""What `farm bench sign` times is the real way: the signer's process, claims from the records, files read back."""

from __future__ import annotations

from benchmarks.sign import measure


def test_the_bench_signs_what_it_counts() -> None:
    figures = measure(64, 0.3, 1, formats=("jpeg",), crews=(1,))["jpeg"]["workers_1"]
    assert min(figures.values()) > 0
    assert abs(figures["ratio_to_bare"] - figures["sign_per_s"] / figures["bare_per_s"]) < 0.1
