"""Plans of models as one reading of a configuration decides them, or what is wrong with each."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvsup.checks import Finding, kv_setup, model_findings, refusals
from kvsup.config import ModelConfig
from kvsup.kvchoice import choose
from kvsup.llama.binary import Binary
from kvsup.plan import Plan, make_plan
from kvsup.runtime import paths
from kvsup.runtime.binaries import default_binary, probe
from kvsup.runtime.knowledge import machine_of
from kvsup.runtime.learning import learnt_types
from kvsup.runtime.modelfile import read_model_file
from kvsup.runtime.prompts import prompts_of
from kvsup.runtime.remembered import Remembered
from kvsup.stores.rewritten import MEND, suspicion, why_not_stock
from kvsup.stores.stored import Stored


@dataclass(frozen=True, slots=True)
class Planned:
    """One model, decided or not."""

    plan: Plan | None
    findings: tuple[Finding, ...] = ()
    """Why there is no plan."""
    evidence: Mapping[str, str] = field(default_factory=dict)
    """What is expected, and where that is known from, by the message of a finding."""


@dataclass(slots=True)
class Planning:
    """What all plans of one reading have in common."""

    state: Path
    run: Path
    environ: Mapping[str, str]
    _binaries: dict[str, Binary | str] = field(default_factory=dict)
    """What each path is, or why it cannot be used."""

    def plan(self, model: ModelConfig, stored: Stored | None = None) -> Planned:
        """Return the plan of ``model``, whose weights may be of a store, or its problems."""
        binary = self.binary(model)
        model, words, unwritten = prompts_of(model, stored, self.state)
        file, findings = read_model_file(model)
        findings += unwritten
        if isinstance(binary, str):
            findings.append(("llama_server", binary))
        known = None if isinstance(binary, str) else binary
        notes, machine = [*stored.notes, words] if stored else [], None
        if file is not None and stored is not None:
            names = [tensor.name for tensor in file.tensors]
            if why := stored.is_ollamas and why_not_stock(file.shape.architecture, names):
                notes.append(f"a stock llama-server does not load it: {why}; {MEND}")
            cause = suspicion(file.shape.architecture) if stored.is_ollamas else ""
            file = replace(
                file,
                licenses=stored.licenses,
                digest=stored.digest,
                suspicion=f"{why or cause}; {MEND}" if why or cause else "",
            )
        if file is not None and known is not None:
            machine = machine_of(Remembered(self.state), known, file, model)
            model, note = choose(model, file.shape, machine)
            notes.append(note)
        shape = file.shape if file else None
        draft_shape = file.draft.shape if file and file.draft else None
        findings += model_findings(model, binary=known, shape=shape, draft_shape=draft_shape)
        if findings or file is None or known is None:
            setup = kv_setup(model, binary=known, shape=shape, draft_shape=draft_shape)
            evidence = {
                found.message: f"expected: {found.expected}; known from: {found.evidence}"
                for found in refusals(setup)
            }
            return Planned(None, tuple(findings), evidence)
        plan = make_plan(
            model,
            known,
            file,
            inherited=self.environ,
            run_dir=str(self.run),
            kv_dir=str(paths.kv_dir(self.state)),
            learnt=learnt_types(Remembered(self.state), known),
            note="; ".join(filter(None, notes)),
            machine=machine,
        )
        return Planned(plan)

    def binary(self, model: ModelConfig) -> Binary | str:
        """Return the llama-server of a model, asked once in this reading, or what is wrong."""
        path = model.llama_server or default_binary(paths.cache_dir())
        if path is None:
            return "none found; run kvsup setup"
        if path not in self._binaries:
            try:
                self._binaries[path] = probe(path, state=self.state, inherited=self.environ)
            except ValueError as error:
                self._binaries[path] = str(error)
        return self._binaries[path]
