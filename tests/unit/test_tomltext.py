"""TOML texts that are changed as a person would change them."""

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsup.tomltext import rewrite

PLAIN = '''\
# top

# about a
a = 1  # one
# about b
b = """
# no comment
"""

# about t
[t]
# about t.x
x = 1

# about u
[u]
y = 2
'''

CHANGED = '''\
# top
a = 2
c = ["x"]
# about b
b = """
# no comment
"""

# about u
[u]
y = 2

[v]
z = 3
'''

ARTFUL = '''\
# top
model = "x"  # here
extra_args = [
  # a comment in an array
  "--a",
]
variants.dotted.num_ctx = 4
system = """
[variants.agent]
# no comment
aliases = ["y"]
"""
"quoted key" = 1

[variants."v1.5"]
num_ctx = 5

[ variants . agent ] # spaced
options = { top_k = 1 }

[variants.agent.restart]
policy = "never"
[[odd]]
x = 1
'''


def test_rewrite_keeps_comments_with_what_they_stand_above() -> None:
    """What is changed or gone takes its own along; new keys come first, new tables last."""
    wanted = {"a": 2, "b": "# no comment\n", "c": ["x"], "u": {"y": 2}, "v": {"z": 3}}

    assert rewrite(PLAIN, wanted) == CHANGED


def test_rewrite_puts_new_lists_of_tables_last() -> None:
    """Each of their tables has a header, behind which no key of the top can stand."""
    wanted = {**tomli.loads(PLAIN), "messages": [{"role": "user"}, {"role": "system"}]}

    assert rewrite(PLAIN, wanted) == (
        f'{PLAIN}\n[[messages]]\nrole = "user"\n\n[[messages]]\nrole = "system"\n'
    )


@pytest.mark.parametrize("removed", [*tomli.loads(ARTFUL), None])
def test_rewrite_of_an_artful_text_holds_what_is_wanted(removed: str | None) -> None:
    """However a text is written, what comes out says what was asked for."""
    wanted = {key: value for key, value in tomli.loads(ARTFUL).items() if key != removed}
    wanted["name"] = "new"

    assert tomli.loads(rewrite(ARTFUL, wanted)) == wanted


@pytest.mark.parametrize("variant", ["dotted", "v1.5", "agent"])
def test_rewrite_without_one_variant_of_an_artful_text_keeps_the_others(variant: str) -> None:
    """As above, for the tables within the one table that is taken apart."""
    table = tomli.loads(ARTFUL)
    variants = {name: value for name, value in table["variants"].items() if name != variant}
    wanted = {**table, "variants": variants}

    assert tomli.loads(rewrite(ARTFUL, wanted)) == wanted


def test_rewrite_to_what_is_there_already_changes_nothing() -> None:
    """Not a blank."""
    assert rewrite(PLAIN, tomli.loads(PLAIN)) == PLAIN


KEYS = st.sampled_from(["name", "options", "variants", "a b", "x.y", "ä"])
VALUES = st.recursive(
    st.integers(-9, 9) | st.booleans() | st.text(max_size=5) | st.lists(st.text(max_size=3)),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=6,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=4)


@settings(deadline=None)
@given(old=TABLES, new=TABLES)
def test_rewrite_of_any_table_to_any_other_holds_the_other(
    old: dict[str, object], new: dict[str, object]
) -> None:
    """Whatever is taken out, put in or changed."""
    text = rewrite("", old)

    assert tomli.loads(text) == old
    assert tomli.loads(rewrite(f"# top\n{text}", new)) == new
