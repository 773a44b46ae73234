"""``kvsup estimate``: what each KV pair of a model takes, and how much context fits."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import msgspec
import typer

from kvsup.kvchoice import slowness
from kvsup.kvrules import violation
from kvsup.kvtypes import STOCK_TYPES, KVPair, KVType, parse_kv_pair
from kvsup.memory import Estimate, as_table, weights_of
from kvsup.plan import ALLOWANCE_BYTES, Plan
from kvsup.units import format_bytes

_INCLUDED = f"weights and {format_bytes(ALLOWANCE_BYTES)} for the process included"
_USUAL = ("f16:f16", "q8_0:q8_0", "q8_0:q5_1", "q8_0:q4_0", "q5_1:q5_1", "q4_0:q4_0")


@dataclass(frozen=True, slots=True)
class _Row:
    """One pair of a model."""

    pair: KVPair
    estimate: Estimate
    largest: int | None
    """Tokens of one request that fit the budget; None without one, or where nothing fits."""
    refused: str
    slow: str

    @property
    def note(self) -> str:
        """Return the worst that there is to say."""
        unknown = "" if self.estimate.is_exact else "a guess: measured only after load"
        return self.refused or self.slow or unknown


def with_wishes(plan: Plan, *, num_ctx: int | None, num_parallel: int | None) -> Plan:
    """Return the plan with another context or number of slots, where one is wished for."""
    changed = plan.configured
    if num_ctx is not None:
        changed = msgspec.structs.replace(changed, num_ctx=num_ctx, num_ctx_is_auto=False)
    if num_parallel is not None:
        changed = msgspec.structs.replace(changed, num_parallel=num_parallel)
    return plan if changed is plan.configured else plan.configured_as(changed)


def chosen_pairs(text: str | None, plan: Plan) -> list[KVPair]:
    """Return the pairs that ``--pairs`` names: a list, ``all``, or the usual ones and the model's.

    Raises:
        ValueError: a type is none of the binary's.
    """
    allowed = plan.binary.kv_types
    if text == "all":
        known = [t for t in STOCK_TYPES if t in allowed]
        types = [*known, *(t for t in allowed if t not in known)]
        return [KVPair(KVType(k), KVType(v)) for k, v in product(types, repeat=2)]
    if text:
        return [parse_kv_pair(each, allowed=allowed) for each in text.split(",")]
    usual = [parse_kv_pair(each) for each in _USUAL]
    return list(dict.fromkeys([plan.model.kv_cache_type, *usual]))


def show(
    plan: Plan,
    *,
    pairs: Sequence[KVPair],
    budget_bytes: int | None,
    as_json: bool,
) -> None:
    """Print what each of ``pairs`` takes; one alone as one JSON object, several as a list."""
    rows = [_row(plan, pair, budget_bytes) for pair in pairs]
    if as_json:
        tables = [_as_json(plan, row, budget_bytes) for row in rows]
        typer.echo(json.dumps(tables[0] if len(tables) == 1 else {"pairs": tables}))
        return
    from kvsup.cli.tables import new_table, plain_console  # noqa: PLC0415 - JSON needs no rich

    for line in _head(plan, rows[0].estimate, budget_bytes):
        typer.echo(line)
    columns = ["PAIR", "K", "V", "STATE", "COMPUTE", "IN ALL"]
    table = new_table(*columns, *(["LARGEST CONTEXT"] if budget_bytes else []), "")
    for row in rows:
        e = row.estimate
        graph_bytes = e.compute_bytes + e.scratch_bytes + e.output_bytes
        bytes_of = (e.k_bytes, e.v_bytes, e.recurrent_bytes, graph_bytes, e.total_bytes)
        sizes = ["-" if row.refused else format_bytes(each) for each in bytes_of]
        largest = [str(row.largest or "none fits")] if budget_bytes and not row.refused else ["-"]
        table.add_row(str(row.pair), *sizes, *(largest if budget_bytes else []), row.note)
    plain_console().print(table)


def _row(plan: Plan, pair: KVPair, budget_bytes: int | None) -> _Row:
    model, shape = plan.model, plan.file.shape
    broken = violation(pair, model.flash_attention, shape)
    largest = None
    if budget_bytes is not None and broken is None:
        largest = plan.largest_num_ctx(budget_bytes, pair=pair)
    slow = None if broken else slowness(pair, model, shape, plan.machine)
    return _Row(pair, plan.estimate_of(pair), largest, broken.message if broken else "", slow or "")


def _head(plan: Plan, of_first: Estimate, budget_bytes: int | None) -> Iterator[str]:
    shape, model = plan.file.shape, plan.model
    trained = shape.n_ctx_train_tokens or "an unknown number of"
    yield (
        f"{plan.name}: {shape.architecture}, {len(shape.layers)} layers,"
        f" trained for {trained} tokens, weights {format_bytes(plan.file.size_bytes)}"
    )
    yield f"{model.num_parallel} x {model.num_ctx} tokens, by {plan.binary.label}"
    yield from plan.notes
    beside = [f"prompt cache up to {format_bytes(of_first.prompt_cache_bytes)}"]
    if of_first.checkpoint_bytes:
        each, most = format_bytes(of_first.checkpoint_bytes), of_first.max_checkpoints
        beside.append(f"up to {most} context checkpoints of {each}")
    yield f"beside it, in RAM, as it is used: {', '.join(beside)}"
    if budget_bytes is not None:
        yield f"budget {format_bytes(budget_bytes)}, {_INCLUDED}"


def _as_json(plan: Plan, row: _Row, budget_bytes: int | None) -> dict[str, object]:
    fits = {"largest_num_ctx": row.largest} if budget_bytes is not None else {}
    return {
        "model": plan.name,
        "pair": str(row.pair),
        "num_ctx": plan.model.num_ctx,
        "num_parallel": plan.model.num_parallel,
        **as_table(row.estimate),
        "weights_by_device": plan.placed(weights_of(row.estimate)),
        "by_device": plan.placed(row.estimate),
        **fits,
        "is_exact": row.estimate.is_exact,
        "refused": row.refused or None,
        "slow": row.slow or None,
    }
