"""Which request a llama-server died of: the requests of one instance, and the deaths under them.

- A death that a request may have brought about counts against every request that ran on that
  process and whose answer was not whole. Each of these is a *suspect* until its answer has come
  further than it was; then it is *cleared*, and runs as any other.
- Suspects take *turns*: one runs until it is cleared, dies or is over. Whose turn it is, is decided
  when a process is up, among those that wait for it: theirs who had the most deaths since they last
  came further, and of these the first that came. One that does not wait, since its client is slow,
  holds nobody up. Nobody but suspects waits.
- One that had two such deaths is tried *apart*: not while another runs that has had a death and was
  cleared. As it is the first to run, it waits for these only if it comes late, being slow itself;
  other suspects go before it meanwhile.
- *Company* is every other request on the process, and one that left before its answer was whole, if
  the process has said nothing since: what it left behind may be what the process died of.
- A death *alone*, without company, convicts one that had another alone, or another since it last
  came further; a death in company is the third of the latter to do so.
- A convicted request is told, not run again, and refused for a while. Its deaths are explained:
  they count against neither the model nor the others any more.

So one that kills before its answer comes further is convicted at its third death at the latest, and
those that ran beside it are not. One that kills each time after it came further is not found while
it has company at each death; it ends with its answer, or with the model's ``restart.max_deaths``.
Several that kill, each new, may have one convicted that runs beside three of them with nothing new
between: those that are new do not wait for it.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from kvsup.errors import Poisoned
from kvsup.restart import Exit
from kvsup.runtime.news import News
from kvsup.runtime.upstream import Upstream

MAX_COMPANY_DEATHS = 3
"""Deaths in company, with nothing new between, after which a request is convicted."""

_TRIED_APART = MAX_COMPANY_DEATHS - 1
"""Such deaths after which it does not run beside another that has had a death."""

REMEMBERED_S = 600.0
"""How long a convicted request is refused without being run."""

_MAX_REMEMBERED = 256


@dataclass(eq=False, slots=True)
class Case:
    """One request of an instance, as far as deaths concern it."""

    fingerprint: str
    route: str = ""
    """Path of its endpoint."""
    n_tokens: Callable[[], int] = lambda: 0
    """Returns how much of the answer its client has, for evidence."""
    is_whole: Callable[[], bool] = lambda: False
    """Says whether the answer is there to its end, though its client may not have it yet."""
    deaths: list[Exit] = field(default_factory=list)
    """Those that count against it."""
    fruitless: list[Exit] = field(default_factory=list)
    """Those of them since which it has not come further."""
    alone: list[Exit] = field(default_factory=list)
    """Those of them at which it ran alone."""
    verdict: Poisoned | None = None
    """Set once it is convicted."""

    @property
    def is_suspect(self) -> bool:
        """Say whether it may have to wait for its turn."""
        return bool(self.fruitless) and self.verdict is None


class Docket:
    """The cases of one instance."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._cases: list[Case] = []
        self._running: dict[Upstream, list[Case]] = {}
        self._waiting: list[Case] = []
        self._on_trial: Case | None = None
        """The suspect whose turn it is, from its start until it is cleared, dies or is closed."""
        self._left: WeakKeyDictionary[Upstream, int] = WeakKeyDictionary()
        """What each process had said when the last of those left that had no whole answer."""
        self._convicted: dict[str, tuple[float, str]] = {}
        self.struck: list[Case] = []
        """Those that ran on the last process that died."""
        self._news = News()

    def open(
        self,
        fingerprint: str,
        *,
        route: str = "",
        n_tokens: Callable[[], int] = lambda: 0,
        is_whole: Callable[[], bool] = lambda: False,
    ) -> Case:
        """Take up a request, which is to be closed; arguments as the members of ``Case``.

        Raises:
            Poisoned: one like it was convicted lately.
        """
        at_s, text = self._convicted.get(fingerprint, (-REMEMBERED_S, ""))
        if time.monotonic() - at_s < REMEMBERED_S:
            raise Poisoned(text)
        case = Case(fingerprint, route, n_tokens, is_whole)
        self._cases.append(case)
        return case

    def close(self, case: Case) -> None:
        """Be done with a request; where it still runs, it leaves."""
        self._cases.remove(case)
        for upstream, cases in list(self._running.items()):
            if case in cases and not case.is_whole():
                self._left[upstream] = upstream.n_reads
            self.ends(case, upstream)
        self.clear(case)

    async def turn(self, case: Case, ready: Callable[[], Awaitable[Upstream]]) -> Upstream:
        """Return what ``ready`` does once ``case`` may run there; it is to start in the same step.

        Raises:
            Poisoned: it is convicted.
        """
        self._waiting.append(case)
        try:
            while True:
                upstream = await ready()  # a verdict, or a suspicion, may come meanwhile
                if case.verdict is not None:
                    raise case.verdict
                if not case.is_suspect or case in (self._on_trial, self._next()):
                    return upstream
                await self._news.wait()
        finally:
            self._waiting.remove(case)

    def starts(self, case: Case, upstream: Upstream) -> bool:
        """Note that it runs on ``upstream``; return False if it was held to do so already.

        If it is a suspect, this is its turn.
        """
        if case.is_suspect:
            self._on_trial = case
        cases = self._running.setdefault(upstream, [])
        is_new = case not in cases
        if is_new:
            cases.append(case)
        return is_new

    def ends(self, case: Case, upstream: Upstream) -> None:
        """Note that it does not run there any more, and did not die with it."""
        if case in (cases := self._running.get(upstream, [])):
            cases.remove(case)
            if not cases:
                del self._running[upstream]
            self._news.tell()

    def clear(self, case: Case) -> None:
        """End the suspicion: it has come further than it was when its process died."""
        case.fruitless.clear()
        if self._on_trial is case:
            self._on_trial = None
        self._news.tell()

    def forget(self) -> None:
        """Let convicted requests be tried again."""
        self._convicted.clear()

    def died(self, upstream: Upstream, end: Exit, *, is_answered: bool = False) -> list[Exit]:
        """Judge those that ran on a process that ended; return deaths that are not the model's.

        One that is answered by loading the model smaller counts against no request.
        """
        ran = [case for case in self._running.pop(upstream, []) if not case.is_whole()]
        is_alone = len(ran) == 1 and self._left.pop(upstream, None) != upstream.n_reads
        self.struck = ran
        self._on_trial = None
        forgiven: list[Exit] = []
        if not is_answered and end.cause.may_be_a_requests:
            for case in ran:
                case.deaths.append(end)
                case.fruitless.append(end)
                case.alone += [end] if is_alone else []
            for case in ran:
                if _is_guilty(case, is_alone=is_alone):
                    self._convict(case)
                    forgiven += case.deaths
        self._news.tell()
        return forgiven

    def running(self, upstream: Upstream) -> list[str]:
        """Return the fingerprints of what runs on ``upstream``."""
        return [case.fingerprint for case in self._running.get(upstream, [])]

    def _next(self) -> Case | None:
        """Return the suspect that is to have its turn, if one may be tried now."""
        if self._on_trial is not None:
            return None
        waiting = (case for case in self._cases if case in self._waiting and case.is_suspect)
        may = (case for case in waiting if self._may_be_tried(case))
        return max(may, key=lambda case: len(case.fruitless), default=None)  # the first of equals

    def _may_be_tried(self, case: Case) -> bool:
        if len(case.fruitless) < _TRIED_APART:
            return True
        return not any(other.deaths for cases in self._running.values() for other in cases)

    def _convict(self, case: Case) -> None:
        times = {2: "twice"}.get(n := len(case.deaths), f"{n} times")
        text = (
            f"llama-server ended {times} while it ran this request ({case.deaths[-1].describe()});"
            f" it is not run again for {REMEMBERED_S / 60:.0f} minutes, or until"
            f" kvsup reset {self._name}"
        )
        case.verdict = Poisoned(text)
        while len(self._convicted) >= _MAX_REMEMBERED:
            del self._convicted[next(iter(self._convicted))]
        self._convicted[case.fingerprint] = (time.monotonic(), text)
        for other in self._cases:
            if other is not case:
                other.deaths = [death for death in other.deaths if death not in case.deaths]
                other.fruitless = [death for death in other.fruitless if death not in case.deaths]
                other.alone = [death for death in other.alone if death not in case.deaths]


def _is_guilty(case: Case, *, is_alone: bool) -> bool:
    """Say whether the last death of ``case`` convicts it; ``is_alone`` is how that was."""
    if is_alone:
        return len({*case.alone, *case.fruitless}) > 1
    return len(case.fruitless) >= MAX_COMPANY_DEATHS
