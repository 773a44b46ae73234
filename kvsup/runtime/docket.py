"""Which request a llama-server died of: the requests of one instance, and the deaths under them.

A death that a request may have brought about counts against every request that ran. Those are
suspects. Suspects that want to run do so one after the other, in the order in which they came, each
until its answer has come further than it was; one that does not want to, since its client is slow,
holds nobody up. Coming further ends the suspicion, and with it the deaths that others may be to
blame for; what died while a request ran alone stays. Convicted is who has two deaths and was alone
at the last, or three. It is told, and not run again; the others come through.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

from kvsup.errors import Poisoned
from kvsup.restart import Exit
from kvsup.runtime.upstream import Upstream

MAX_COMPANY_DEATHS = 3
"""Deaths after which a request is convicted although others ran each time: it never came further,
and some of them did."""

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
    """Returns how much of the answer its client has."""
    deaths: list[Exit] = field(default_factory=list)
    """Those that count against it."""
    alone: list[Exit] = field(default_factory=list)
    """Those at which it ran alone."""
    is_waiting: bool = False
    """It is a suspect and wants to run."""
    verdict: Poisoned | None = None
    """Set once it is convicted."""


class Docket:
    """The cases of one instance."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._cases: list[Case] = []
        self._running: dict[Upstream, list[Case]] = {}
        self._suspects: list[Case] = []
        self._on_trial: Case | None = None
        """The suspect that runs."""
        self._convicted: dict[str, tuple[float, str]] = {}
        self.struck: list[Case] = []
        """Those that ran on the last process that died."""
        self._news = anyio.Event()

    def open(
        self, fingerprint: str, *, route: str = "", n_tokens: Callable[[], int] = lambda: 0
    ) -> Case:
        """Take up a request, which is to be closed.

        Args:
            fingerprint: by which it is known again.
            route: path of its endpoint.
            n_tokens: returns how much of the answer its client has, for evidence.

        Raises:
            Poisoned: one like it was convicted lately.
        """
        at_s, text = self._convicted.get(fingerprint, (-REMEMBERED_S, ""))
        if time.monotonic() - at_s < REMEMBERED_S:
            raise Poisoned(text)
        case = Case(fingerprint, route, n_tokens)
        self._cases.append(case)
        return case

    def close(self, case: Case) -> None:
        """Be done with a request."""
        self._cases.remove(case)
        for upstream in list(self._running):
            self.ends(case, upstream)
        self.clear(case)

    async def turn(self, case: Case) -> None:
        """Wait until ``case`` may run: a suspect waits for others, those that came first first."""
        case.is_waiting = True
        try:
            while case in self._suspects and self._next() is not case:
                await self._news.wait()
        finally:
            case.is_waiting = False
        if case in self._suspects:
            self._on_trial = case

    def _next(self) -> Case | None:
        """Return the suspect that may run now; None if none wants to."""
        return self._on_trial or next((c for c in self._suspects if c.is_waiting), None)

    def starts(self, case: Case, upstream: Upstream) -> None:
        """Note that it runs on ``upstream``."""
        cases = self._running.setdefault(upstream, [])
        if case not in cases:
            cases.append(case)

    def ends(self, case: Case, upstream: Upstream) -> None:
        """Note that it does not run there any more, and did not die with it."""
        if case in (cases := self._running.get(upstream, [])):
            cases.remove(case)
            if not cases:
                del self._running[upstream]

    def clear(self, case: Case) -> None:
        """End the suspicion: it has come further than it was when its process died, or is done."""
        if case in self._suspects:
            self._suspects.remove(case)
            case.deaths = list(case.alone)
            if self._on_trial is case:
                self._on_trial = None
            self._wake()

    def forget(self) -> None:
        """Let convicted requests be tried again."""
        self._convicted.clear()

    def died(self, upstream: Upstream, end: Exit, *, is_answered: bool = False) -> list[Exit]:
        """Judge those that ran on a process that ended; return deaths that are not the model's.

        One that is answered by loading the model smaller counts against no request.
        """
        cases = [case for case in self._running.pop(upstream, []) if case in self._cases]
        self.struck = cases
        if is_answered or not end.cause.may_be_a_requests:
            return []
        forgiven: list[Exit] = []
        is_alone = len(cases) == 1
        for case in cases:
            case.deaths.append(end)
            case.alone += [end] if is_alone else []
            if len(case.deaths) >= (2 if is_alone else MAX_COMPANY_DEATHS):
                self._convict(case)
                forgiven += case.deaths
        struck = {*self._suspects, *cases}
        self._suspects = [c for c in self._cases if c in struck and not c.verdict]
        self._on_trial = None
        self._wake()
        return forgiven

    def running(self, upstream: Upstream) -> list[str]:
        """Return the fingerprints of what runs on ``upstream``."""
        return [case.fingerprint for case in self._running.get(upstream, [])]

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

    def _wake(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()
