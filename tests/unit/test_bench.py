"""The pure part of the bench: statistics, the check of ratios, the report, the picture."""

import copy
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from bench import check
from bench.peers import given_peers
from bench.plot import drawn
from bench.publish import DOCUMENTS, PICTURE, filled, names
from bench.ratios import every_ratio
from bench.record import (
    FLOOR,
    PASSED,
    TRANSLATED,
    FirstTokens,
    Held,
    Peer,
    Reading,
    Run,
    Soaked,
    Streamed,
    Swapped,
    read,
    write,
)
from bench.report import BLOCKS, NOT_MEASURED, whole
from bench.spread import quantile, ratios, spread
from bench.through import are_peers_in

COSTS = {FLOOR: 10.0, PASSED: 20.0, TRANSLATED: 25.0, "llama-server's router": 40.0}


def _run(**factors: float) -> Run:
    """Return a run; ``factors`` make a route of ours dearer, or swaps quicker."""
    run = Run(machine={"processor": "one"}, load_build="b11434")
    for n in (16, 256):
        for route, us in COSTS.items():
            cost = us * factors.get({PASSED: "passed", TRANSLATED: "translated"}.get(route, ""), 1)
            readings = [
                Reading(round(cost * noise, 3), 0.5, 3200.0, 0.03)
                for noise in (1, 1.02, 0.98, 1, 1)
            ]
            run.streams.append(Streamed(route, n, 3200 / n, readings))
            run.first_tokens.append(FirstTokens(route, n, [0.2] * 9, [round(0.2 + us / 50, 3)] * 9))
    run.peers = [
        Peer("llama-server's router", "b11434"),
        Peer("llama-swap", absent="not found on this machine"),
    ]
    run.load_s = {"by hand, ready": [0.1], "by hand": [0.2], "through kvsup": [0.203]}
    kept_s = [0.1 / factors.get("swap", 1)] * 5
    run.swaps = [Swapped("f16:f16", 2600, 63_000_000, [20.0], kept_s, {"save": [40.0]})]
    run.soak = Soaked(45.0, 20, 80, 0, 4.2)
    run.held = [Held("/api/chat", 1000, [55.0, 55.1, 55.2, 55.2])]
    run.start = {"kvsup --help, ms": [54.0, 56.0]}
    run.took_s = {"streams": 90.0}
    return run


def test_quantile_lies_between_readings() -> None:
    """The 99th percentile of few readings is near the greatest, not beyond it."""
    assert quantile([4, 1, 3, 2], 0.5) == 2.5
    assert quantile(range(101), 0.99) == 99
    assert quantile([7], 0.99) == 7


def test_spread_has_median_and_quartiles() -> None:
    """One reading far off does not move them."""
    found = spread([1, 2, 3, 4, 1000])

    assert (found.low, found.median, found.high) == (2, 3, 4)
    assert found.width == pytest.approx(2 / 3)


def test_ratios_are_taken_round_by_round() -> None:
    """A peer that was measured in the first rounds only is compared with those."""
    assert ratios([2, 6], [1, 2, 5]) == [2, 3]


def test_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every reading is kept, at five digits."""
    run = _run()
    run.took_s["streams"] = 90.000000001

    write(run, tmp_path / "run.json")
    write(read(tmp_path / "run.json"), tmp_path / "again.json")

    kept = read(tmp_path / "run.json")
    assert kept.took_s == {"streams": 90.0}
    assert kept == _run()
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "run.json").read_bytes()


def test_check_same_run_passes() -> None:
    """Nothing got worse than itself."""
    assert check.worse(_run(), _run()) == []
    assert check.report(_run(), _run()) == 0


def test_check_slower_machine_passes() -> None:
    """Where all takes three times as long, no ratio is another one."""
    slow = _run()
    slow.streams = [
        msgspec.structs.replace(
            s,
            readings=[
                msgspec.structs.replace(r, us_per_token=3 * r.us_per_token) for r in s.readings
            ],
        )
        for s in slow.streams
    ]
    slow.load_s = {name: [3 * s for s in found] for name, found in slow.load_s.items()}

    assert check.worse(_run(), slow) == []


def test_check_dearer_token_fails_and_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    """A third more for a translated token is told for each ratio that has it."""
    found = check.worse(_run(), _run(translated=1.34))

    assert len(found) == 4, found  # over the byte copy and over /v1, at both numbers of streams
    assert all(text.startswith("CPU per token, kvsup `/api` over") for text in found)
    assert "2.50 before, 3.35 now, worse by 34%" in found[0]
    assert check.report(_run(), _run(translated=1.34)) == 1
    assert found[0] in capsys.readouterr().out


def test_check_difference_within_the_spread_passes() -> None:
    """A seventh more is nothing where the readings lie further apart."""
    wide = _run(translated=1.14)
    for streamed in wide.streams:
        if streamed.route == TRANSLATED:
            for place, noise in enumerate((0.8, 0.9, 1.0, 1.1, 1.2)):
                us = streamed.readings[2].us_per_token / 0.98 * noise
                streamed.readings[place] = Reading(us, 0.5, 3200.0, 0.03)

    assert check.worse(_run(), wide) == []
    assert check.worse(_run(), _run(translated=1.14))


def test_check_slower_swap_fails_and_quicker_passes() -> None:
    """Of a swap the greater ratio is the better one."""
    assert check.worse(_run(), _run(swap=2)) == []
    (told,) = check.worse(_run(), _run(swap=0.5))
    assert "swap of f16:f16" in told


def test_check_lost_request_or_failed_part_fails() -> None:
    """It needs no comparison, and the report says it, too."""
    run = _run()
    run.soak = Soaked(45.0, 20, 79, 1, 4.2)
    run.failed = {"swap": "it was not taken up"}

    assert check.worse(_run(), run) == [
        "swap: it was not taken up",
        "soak: 1 requests were lost",
    ]
    assert "FAILED: swap: it was not taken up" in whole(run)


def test_check_nothing_in_common_is_no_success() -> None:
    """A run without any ratio cannot pass."""
    assert check.report(_run(), Run()) == 2


def test_ratios_leave_peers_out() -> None:
    """What another program costs is no regression of this one."""
    assert not [name for name in every_ratio(_run()) if "router" in name]


def test_report_names_peers_that_are_not_there() -> None:
    """Their row has the reason in place of a figure."""
    summary = BLOCKS["summary"](_run())

    (row,) = [line for line in summary.splitlines() if "llama-swap" in line]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "llama-swap",
        "not found on this machine",
        *[""] * 3,
    ]
    assert "0.40 / 0.40 ms" in summary
    assert "20.0 µs" in summary


def test_report_says_which_aims_are_met() -> None:
    """The median decides."""
    dear = BLOCKS["aims"](_run(passed=1.2, translated=0.7))

    verdicts = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in dear.split("\n")}
    assert verdicts["CPU per token of kvsup `/v1` within 1.5 times the byte copy"] == "no"
    assert verdicts["CPU per token of kvsup `/api` within 2.0 times the byte copy"] == "yes"
    aim = "CPU per token of kvsup `/v1` at 256 streams within 1.1 times that at 16"
    assert verdicts[aim] == "yes"


def test_report_of_nothing_says_so() -> None:
    """A part that was not measured has no empty table."""
    assert {block(Run()) for block in BLOCKS.values()} == {NOT_MEASURED}


def test_report_holds_every_part() -> None:
    """Nothing that was measured is left out."""
    report = whole(_run())

    assert NOT_MEASURED not in report
    for text in ("2,600", "200", "80", "55.0", "203.0", "3.0", "It took 1.5 minutes"):
        assert text in report


def test_plot_draws_each_route_in_both_diagrams() -> None:
    """It is XML, and the same for the same run."""
    picture = drawn(_run())

    root = ET.fromstring(picture)
    lines = [path for path in root.iter() if path.get("fill") == "none"]
    assert len(lines) == 2 * len(COSTS)
    assert drawn(copy.deepcopy(_run())) == picture


def test_plot_has_no_place_for_what_is_not_above_zero() -> None:
    """A difference of times can be negative; the axis is logarithmic."""
    run = _run()
    run.first_tokens = [FirstTokens(PASSED, n, [0.3], [0.2]) for n in (16, 256)]

    assert "not measured" in drawn(run)


def test_publish_fills_blocks_and_keeps_the_rest() -> None:
    """Filling again changes nothing."""
    text = "a\n<!-- bench: soak -->\nold\n<!-- /bench -->\nb <!-- bench: aims -->\n<!-- /bench -->"

    once = filled(text, _run())

    assert once.startswith("a\n<!-- bench: soak -->\n| soak of 45 seconds")
    assert "\nold\n" not in once
    assert filled(once, _run()) == once
    assert names(once) == ["soak", "aims"]


def test_publish_unknown_block_is_an_error() -> None:
    """A marker that nothing fills would keep old figures."""
    with pytest.raises(KeyError):
        filled("<!-- bench: nothing -->\n<!-- /bench -->", _run())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_document_holds_what_the_stored_run_says(document: Path) -> None:
    """bench/publish was run after the last change of either."""
    text = document.read_text("utf-8")

    assert names(text)
    assert filled(text, read(check.BASELINE)) == text


def test_picture_shows_the_stored_run() -> None:
    """As the documents do."""
    assert PICTURE.read_text("utf-8") == drawn(read(check.BASELINE))


def test_every_block_of_the_report_is_in_a_document() -> None:
    """What is measured is published."""
    published = {name for path in DOCUMENTS for name in names(path.read_text("utf-8"))}

    assert published == set(BLOCKS)


def test_round_without_peers_follows_where_there_is_time_for_no_more() -> None:
    """The first round is whole; slow peers leave the time that is left to kvsup."""
    assert are_peers_in(0, -1.0, 0.0, 0.0) is True
    assert are_peers_in(1, 200.0, 40.0, 150.0) is True
    assert are_peers_in(1, 100.0, 40.0, 150.0) is False
    assert are_peers_in(2, 1000.0, 40.0, 150.0) is False
    assert are_peers_in(2, 30.0, 40.0, 0.0) is None


def test_peers_are_named_with_their_path(tmp_path: Path) -> None:
    """A peer that there is not, or a path without a file, is refused."""
    program = tmp_path / "ollama"
    program.touch()

    assert given_peers([f"ollama={program}"]) == {"ollama": program}
    for text in (f"other={program}", "ollama=/no/such/file", "ollama"):
        with pytest.raises(ValueError, match="--peer"):
            given_peers([text])
