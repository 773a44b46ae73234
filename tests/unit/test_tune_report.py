"""What a study says, and how it is written into a model's file."""

from pathlib import Path

import msgspec
import pytest
import tomli

from kvsup.cli.tune import lines_of, parting, table_of, tool_cases
from kvsup.cli.writing import with_pair, write_pair
from kvsup.errors import ConfigError
from kvsup.measures import PairMeasurement, TokenScores, Trajectory
from kvsup.tuning.report import COMMENT, StudyResult, comment, toml_line, tuned
from tests.unit.studies import result_of

FILE = """#:schema model.schema.json
# The demo model.
model = "x.gguf"

# K and V apart.
kv_cache_type = "q8_0:q5_1" # mine
num_ctx = 4096

# For agents.
[variants.agent]
# exact
kv_cache_type = "f16:f16"

[variants.agent.options]
temperature = 0.2
"""
LINE = f"{COMMENT} 2026-11-24, b11434: goal balanced"


def written(text: str, *, variant: str | None = None, line: str = LINE) -> str:
    """Return a text with a pair written into it."""
    return with_pair(text, "q8_0:q4_0", line, mark=COMMENT, variant=variant)


def spread_scores(kld: float) -> TokenScores:
    """Return scores of tokens that differ a hundredfold among them."""
    klds = tuple(kld * 10 ** (i % 3) for i in range(90))
    return TokenScores(
        kld_nats=klds,
        is_same_top=(True,) * 90,
        logprob=(-1.0,) * 90,
        reference_logprob=(-1.0,) * 90,
        blocks=(9,) * 10,
    )


def test_result_of_a_study_has_pick_front_ties_and_floor() -> None:
    """Pairs whose intervals overlap are equal where single tokens are not known."""
    result = result_of()

    assert result.pick == "q8_0:q4_0"
    assert result.picks == {
        "accurate": "q8_0:q8_0",
        "balanced": "q8_0:q4_0",
        "small": "q4_0:q4_0",
        "fast": "f16:f16",
    }
    assert result.front == ("q4_0:q4_0", "q8_0:q4_0", "q8_0:q8_0", "f16:f16")
    assert result.ties == (("q4_0:q8_0", "q4_0:q4_0"),)
    assert result.at_floor == ()
    assert [m.pair for m in result.pairs[:2]] == ["f16:f16", "q8_0:q8_0"]
    assert result.sentence.startswith("K matters")


def test_result_as_json_comes_back_as_it_was() -> None:
    """A script reads what a person sees."""
    result = result_of()

    assert msgspec.json.decode(msgspec.json.encode(result), type=StudyResult) == result


def test_tuned_of_a_result_has_a_pair_for_each_goal() -> None:
    """That is what ``auto`` reads."""
    kept = tuned(result_of())

    assert kept.picks["small"] == "q4_0:q4_0"
    assert (kept.model, kept.binary) == ("demo", "b11434")


def test_comment_of_a_pick_says_what_was_measured_and_when() -> None:
    """In one line, with loss, bytes, speed, build and day."""
    assert comment(result_of()) == (
        "# kvsup tune 2026-11-24, b11434: goal balanced, loses 0.011 nats against f16:f16 "
        "(1000 tokens), same top token 95.0%, 41% of its bytes, "
        "85% of its speed behind 2048 tokens"
    )
    assert toml_line(result_of()) == 'kv_cache_type = "q8_0:q4_0"'


def test_lines_below_the_table_name_what_failed_and_what_was_left_out() -> None:
    """Nothing is passed over in silence."""
    failed = PairMeasurement(pair="q5_0:q5_0", k_bytes=1, v_bytes=1, failure="it died")

    lines = list(lines_of(result_of(failed, is_complete=False)))

    assert lines[0] == "q5_0:q5_0: it died"
    assert any("time was up" in line for line in lines)
    assert lines[-1] == 'kv_cache_type = "q8_0:q4_0"'


def test_lines_say_how_a_study_with_fresh_goes_on() -> None:
    """The same command would measure everything anew."""
    result = result_of(is_complete=False)

    assert any(line.endswith("again goes on") for line in lines_of(result))
    assert any(
        line.endswith("with --resume instead of --fresh goes on")
        for line in lines_of(result, is_fresh=True)
    )


def test_lines_begin_with_what_went_otherwise_than_was_asked() -> None:
    """So that nobody takes the numbers for others."""
    note = "num_ctx 32768 is more than it was trained for; 8192 is used"

    assert next(lines_of(result_of(notes=(note,)))) == note


def test_table_has_the_greatest_loss_and_the_ratio_of_perplexities() -> None:
    """Means hide single tokens that are quite another."""
    table = table_of(result_of())

    rows = {str(column.header): list(column.cells) for column in table.columns}
    assert rows["MAX"][1] == "0.082"
    assert rows["PPL RATIO"][1] == "1.0100"


def test_finding_of_a_study_is_by_the_same_test_as_its_ties() -> None:
    """Where single tokens tell twins apart though their intervals overlap, both say so."""
    k_rich = spread_scores(0.01)
    v_rich = spread_scores(0.011)

    both = {"q8_0:q4_0": k_rich, "q4_0:q8_0": k_rich}
    equal = result_of(scores=both)
    apart = result_of(scores={**both, "q4_0:q8_0": v_rich})

    assert equal.sentence.startswith("K and V cannot be told apart")
    assert apart.sentence.startswith("K matters")
    assert ("q8_0:q4_0", "q4_0:q8_0") in equal.ties
    assert ("q8_0:q4_0", "q4_0:q8_0") not in apart.ties


def test_lines_where_no_pair_will_do_say_why() -> None:
    """And write no line for the file."""
    lines = list(lines_of(result_of(cache_bytes=1)))

    assert lines[-1].startswith("no pair for balanced: no pair fits")


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ((3, None, 9, 5), "5, 1 of 4 same"),
        ((None, None), "2 of 2 same"),
        (None, "-"),
    ],
)
def test_parting_of_greedy_answers_is_their_median(
    places: tuple[int | None, ...] | None, expected: str
) -> None:
    """Over those that part at all."""
    trajectory = places and Trajectory(first_difference=places, lengths=(24,) * len(places))
    measurement = PairMeasurement(
        pair="q8_0:q8_0", k_bytes=1, v_bytes=1, trajectory=trajectory or None
    )

    assert parting(measurement) == expected


def test_pair_written_into_a_file_leaves_everything_else_as_it_stands() -> None:
    """Only the value changes, and one comment comes above it."""
    assert written(FILE) == FILE.replace(
        'kv_cache_type = "q8_0:q5_1" # mine', f'{LINE}\nkv_cache_type = "q8_0:q4_0" # mine'
    )


def test_pair_written_into_a_variant_leaves_its_model_alone() -> None:
    """Its own comments stay above ours."""
    assert written(FILE, variant="agent") == FILE.replace(
        'kv_cache_type = "f16:f16"', f'{LINE}\nkv_cache_type = "q8_0:q4_0"'
    )


def test_pair_written_again_replaces_its_comment() -> None:
    """There is never more than one."""
    later = f"{COMMENT} 2027-01-01, b12000: goal small"

    again = written(written(FILE), line=later)

    assert again.count(COMMENT) == 1
    assert later in again


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('model = "x"', 'model = "x"\n{new}'),
        (
            'model = "x"\n\n# c\n[options]\nseed = 1\n',
            'model = "x"\n{new}\n# c\n[options]\nseed = 1\n',
        ),
    ],
)
def test_pair_missing_in_a_file_is_put_before_any_table(text: str, expected: str) -> None:
    """A table's comments stay above it."""
    assert written(text) == expected.format(new=f'{LINE}\nkv_cache_type = "q8_0:q4_0"\n')


@pytest.mark.parametrize(
    "text",
    [
        'model = "x"\nvariants = {agent = {num_ctx = 1}}\n',
        'model = "x"\nvariants.agent.num_ctx = 1\n',
        'model = "x"\n[variants.agent]\n[variants.agent.options]\nseed = 1\n',
        'model = "x"\n[variants.agent.options]\nseed = 1\n[variants.b]\nnum_ctx = 1\n',
    ],
)
def test_pair_missing_in_a_variant_is_put_into_it(text: str) -> None:
    """However the variant is written down."""
    table = tomli.loads(text)
    table["variants"]["agent"]["kv_cache_type"] = "q8_0:q4_0"

    assert tomli.loads(written(text, variant="agent")) == table
    assert COMMENT in written(text, variant="agent")


def test_pair_for_a_model_that_the_file_no_longer_has_is_refused(tmp_path: Path) -> None:
    """It was renamed while it was measured; the file stays as it is."""
    path = tmp_path / "demo.toml"
    path.write_text(FILE)

    with pytest.raises(ConfigError, match="no longer holds 'other'"):
        write_pair(path, "other", "q8_0:q4_0", LINE, mark=COMMENT)

    assert path.read_text() == FILE


def test_pair_written_through_a_link_keeps_link_and_mode(tmp_path: Path) -> None:
    """The file behind it is replaced as a whole."""
    real, link = tmp_path / "real.toml", tmp_path / "demo.toml"
    real.write_text(FILE)
    real.chmod(0o640)
    link.symlink_to(real)

    write_pair(link, "demo:agent", "q8_0:q4_0", LINE, mark=COMMENT)

    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert real.read_text() == written(FILE, variant="agent")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.toml", "real.toml"]


@pytest.mark.parametrize("begin", ["", "\ufeff"])
@pytest.mark.parametrize("text", [FILE, FILE.replace('kv_cache_type = "q8_0:q5_1" # mine\n', "")])
def test_pair_written_into_a_file_of_windows_keeps_its_line_ends(
    tmp_path: Path, begin: str, text: str
) -> None:
    """And the byte order mark, where it has one."""
    path = tmp_path / "demo.toml"
    path.write_bytes((begin + text.replace("\n", "\r\n")).encode())

    write_pair(path, "demo", "q8_0:q4_0", LINE, mark=COMMENT)

    assert path.read_bytes().decode() == begin + written(text).replace("\n", "\r\n")


@pytest.mark.parametrize("text", ["{", "{}", '[{"messages": []}]', '[{"messages": [{}]}]'])
def test_tool_cases_that_are_none_are_refused(text: str) -> None:
    """Before minutes of measuring."""
    with pytest.raises(ValueError, match=r"write a JSON array|must have messages and tools"):
        tool_cases(text)
