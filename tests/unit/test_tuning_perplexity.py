"""The output of llama-perplexity, and where it is found."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from kvsup.llama.binary import Binary
from kvsup.tuning.perplexity import find, parse_divergence

OUTPUT = """
chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS            Same top p
   1      21.8519 ±    4.8303       0.00551 ±    0.00671       0.00400 ±    0.00031     2.110 ±  0.258 %    97.255 ±  1.025 %
   2      17.3215 ±    2.3601      -0.00101 ±    0.00488       0.00500 ±    0.00027     1.993 ±  0.161 %    96.078 ±  0.860 %

====== Perplexity statistics ======
Mean PPL(Q)                   :  17.321500 ±   2.360100
Mean PPL(base)                :  17.339000 ±   2.361000
Mean PPL(Q)/PPL(base)         :   0.998990 ±   0.004880
Mean PPL(Q)-PPL(base)         :  -0.017500 ±   0.084000

====== KL divergence statistics ======
Mean    KLD:   0.005000 ±   0.000270
Maximum KLD:   0.061000
99.9%   KLD:   0.058000
99.0%   KLD:   0.031000
Minimum KLD:  -0.000010

====== Token probability statistics ======
Same top p: 96.078 ± 0.860 %
"""  # noqa: E501 - as it is printed


def test_final_statistics_of_a_divergence_are_read_as_they_are() -> None:
    """They are told with more digits than the lines of the chunks."""
    found = parse_divergence(OUTPUT, n_ctx=512)

    assert found.n_tokens == 2 * 255
    assert found.mean_kld_nats == 0.005
    assert found.max_kld_nats == 0.061
    assert found.p999_kld_nats == 0.058
    assert found.same_top == pytest.approx(0.96078)
    assert found.perplexity_ratio == 0.99899


def test_interval_of_a_divergence_lies_between_the_means_of_its_chunks() -> None:
    """The second line's 0.005 over both is a mean of 0.006 in the second chunk."""
    found = parse_divergence(OUTPUT, n_ctx=512)

    assert 0.004 <= found.low_kld_nats < 0.005 < found.high_kld_nats <= 0.006


def test_interval_of_few_chunks_is_as_wide_as_they_differ() -> None:
    """A chunk's tokens are no more independent draws for having one mean: 4 chunks are 4."""
    found = parse_divergence(_output([0.004, 0.006, 0.008, 0.011], mean=0.011), n_ctx=512)

    assert found.n_tokens == 4 * 255
    assert found.low_kld_nats == pytest.approx(0.006)
    assert found.high_kld_nats == pytest.approx(0.017)


@pytest.mark.parametrize("so_far", [[0.005], [0.005, 0.005]])
def test_interval_of_chunks_that_do_not_differ_is_that_of_the_standard_error(
    so_far: list[float],
) -> None:
    """No mean is certain because there is but one chunk, or because all are equal."""
    found = parse_divergence(_output(so_far, mean=0.005), n_ctx=512)

    assert found.low_kld_nats == pytest.approx(0.005 - 1.96 * 0.00027)
    assert found.high_kld_nats == pytest.approx(0.005 + 1.96 * 0.00027)


@pytest.mark.parametrize("mean", [0.000004, -0.000002])
def test_interval_of_the_floor_holds_its_mean(mean: float) -> None:
    """Lines of chunks are rounded to nothing there, and a loss is never negative."""
    found = parse_divergence(_output([0.0, 0.0], mean=mean, error=0.0000001), n_ctx=512)

    assert 0.0 <= found.low_kld_nats <= found.mean_kld_nats <= found.high_kld_nats


@pytest.mark.parametrize(
    "missing", ["Mean    KLD", "99.9%   KLD", "Same top p", "PPL(Q)/PPL(base)"]
)
def test_output_without_a_statistic_is_an_error(missing: str) -> None:
    """Another release that words it otherwise is noticed."""
    with pytest.raises(ValueError, match="told no"):
        parse_divergence(OUTPUT.replace(missing, "Something else"), n_ctx=512)


def test_output_of_numbers_that_are_none_is_an_error() -> None:
    """A pair that computes NaN has no divergence."""
    with pytest.raises(ValueError, match="told no mean"):
        parse_divergence(OUTPUT.replace("KLD:   0.005000", "KLD:   nan"), n_ctx=512)


@pytest.mark.parametrize("place", ["llama-perplexity", "bin/llama-perplexity"])
def test_tool_is_found_beside_its_server_or_in_its_bin_folder(tmp_path: Path, place: str) -> None:
    """Only that of the same build will do, so no other place is searched."""
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.touch()

    assert find(_binary(tmp_path)) == path


def test_tool_that_is_not_there_is_none(tmp_path: Path) -> None:
    """Many packages have llama-server alone."""
    assert find(_binary(tmp_path)) is None


def _output(so_far: Sequence[float], *, mean: float, error: float = 0.00027) -> str:
    """Return the output for chunks whose lines tell these means so far."""
    title, first, _second, *rest = OUTPUT.strip("\n").splitlines()
    chunks = (first.replace("0.00400 ±", f"{value:.5f} ±") for value in so_far)
    told = f"KLD:   {mean:.6f} ±   {error:.7f}"
    return "\n".join((title, *chunks, *rest)).replace("KLD:   0.005000 ±   0.000270", told)


def _binary(folder: Path) -> Binary:
    return Binary(str(folder / "llama-server"), "1", 11434, ("f16",), frozenset(), ())
