"""The plot of a study, as a file and in the terminal."""

from pathlib import Path

import pytest

from kvsup.cli import plot
from kvsup.errors import ConfigError, KvsupError
from kvsup.measures import PairMeasurement
from tests.unit.studies import result_of


@pytest.mark.parametrize(("name", "begin"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")])
def test_plot_saved_is_of_the_format_that_its_name_says(
    tmp_path: Path, name: str, begin: bytes
) -> None:
    """PNG and SVG, in either case."""
    path = tmp_path / name
    plot.check(path)

    plot.save(result_of(), path)

    assert path.read_bytes().startswith(begin)


def test_plot_drawn_has_each_measured_pair_and_the_front() -> None:
    """What was only predicted is not drawn."""
    guessed = PairMeasurement(pair="q5_0:q5_0", k_bytes=1, v_bytes=1, predicted_kld_nats=0.01)

    (axes, _) = plot.drawn(result_of(guessed)).axes

    names = {text.get_text() for text in axes.texts}
    assert names == {"f16:f16", "q8_0:q8_0", "q8_0:q4_0", "q4_0:q8_0", "q4_0:q4_0"}
    assert axes.get_yscale() == "log"
    assert len(axes.lines[0].get_xdata()) == 4  # type: ignore[arg-type]


def test_plot_heights_of_no_loss_are_below_all_others_and_near_them() -> None:
    """A logarithmic axis would otherwise be empty in between."""
    heights = plot.heights(plot.points(result_of()))

    assert min(heights) == pytest.approx(0.3 * 0.0041)


def test_plot_in_the_terminal_names_the_pairs() -> None:
    """Plain text, without escapes."""
    text = plot.show(result_of())

    assert "q8_0:q4_0" in text
    assert "\x1b" not in text


def test_plot_of_another_format_is_refused_before_anything_is_measured() -> None:
    """With what to write."""
    with pytest.raises(ConfigError, match=r"\.png or \.svg"):
        plot.check(Path("a.pdf"))


def test_plot_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """The folder is not made."""
    with pytest.raises(KvsupError, match="cannot be written"):
        plot.save(result_of(), tmp_path / "gone" / "a.png")
