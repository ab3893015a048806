"""One interface to whatever runs models: describe it, prepare models, run them in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from trp_onnx.errors import ModelError, RunnerError, UsageError
from trp_onnx.graph.model import has_external_data, located, open_model
from trp_onnx.runners.providers import check_provider, setting_for
from trp_onnx.runners.transport import Transport


@dataclass(frozen=True)
class Description:
    """What runs there.

    Attributes:
        machine: The processor.
        runtime: The runtime's version; with its name where it is not onnxruntime for Python.
        host: What the runtime is embedded in.
        providers: The execution providers it holds.
        profiles: Whether it can tell the time of every node.
    """

    machine: str
    runtime: str
    host: str
    providers: tuple[str, ...]
    profiles: bool

    def __str__(self) -> str:
        runtime = self.runtime if " " in self.runtime else f"onnxruntime {self.runtime}"
        return f"{runtime} in {self.host}"


@dataclass(frozen=True)
class NodeTime:
    """One node of a session, after the runtime's own optimisation.

    Attributes:
        name: Its name there; `<output tensor>_nchwc` for a convolution in blocked layout.
        op: Its operator there.
        provider: What ran it.
        seconds: Median time of a run.
    """

    name: str
    op: str
    provider: str
    seconds: float


@dataclass(frozen=True)
class Rounds:
    """Models that took turns.

    Attributes:
        seconds: Of one call, (rounds, models).
        disturbed: Which rounds another process took the core in: they count by processor time. Always False on several
            threads, in Node and in a browser, where it cannot be known.
        others: Part of the machine that other processes kept busy meanwhile; None where it cannot be known.
    """

    seconds: list[list[float]]
    disturbed: list[bool]
    others: float | None = None


@dataclass(frozen=True)
class Profile:
    """Plain and profiled runs in turns.

    Attributes:
        plain: Seconds of a plain run, (rounds, models).
        nodes: Nodes of each model, in running order.
        seconds: Time of each model's nodes, (rounds, nodes).
        lost: Seconds of each profiled run in which another process had the core, (rounds, models).
    """

    plain: np.ndarray
    nodes: tuple[tuple[NodeTime, ...], ...]
    seconds: tuple[np.ndarray, ...]
    lost: np.ndarray


class Runner:
    """Models on one runtime; a context manager. No process of it outlives it."""

    def __init__(self, spec: str, transport: Transport) -> None:
        """Over a transport that reaches its worker; `spec` is its name in messages."""
        self.spec = spec
        self._transport = transport
        self._description: Description | None = None

    def describe(self) -> Description:
        """The machine and the runtime.

        Raises:
            RunnerError: It does not answer, or has no onnxruntime.
        """
        if self._description is None:
            found = self._transport.ask("describe")
            try:
                self._description = Description(**{**found, "providers": tuple(found["providers"])})
            except (TypeError, KeyError) as error:
                raise RunnerError(f"{self.spec} is no worker of ours: it answers {str(found)[:100]}") from error
        return self._description

    def prepare(
        self, models: Sequence[Path | bytes], feeds: Mapping[str, np.ndarray], provider: str = "cpu", threads: int = 1
    ) -> None:
        """Open models, in place of those before.

        Args:
            models: Files, `.onnx` or `.ort`, or what is in them.
            feeds: An array for each input.
            provider: A name of `PROVIDERS`.
            threads: Threads of a run.

        Raises:
            UsageError: The provider is unknown or not in this runtime.
            ModelError: A model cannot be loaded or run. (Whether the provider took any of it only a profile tells.)
            RunnerError: The worker died or did not answer.
        """
        wanted, here = check_provider(provider).name, self.describe()
        if wanted not in here.providers:
            raise UsageError(
                f"the execution provider {provider} is not in this onnxruntime {here.runtime}, which has "
                f"{', '.join(here.providers)}: install a build that holds it"
            )
        for model in models:
            if isinstance(model, Path) and not model.is_file():
                raise ModelError(f"the model '{model}' does not exist")
        if self._transport.shares_files:
            sources: list[str | bytes] = [m if isinstance(m, bytes) else str(located(m)) for m in models]
        else:
            sources = [_whole(model) for model in models]
        self._transport.ask("prepare", models=sources, feeds=dict(feeds), setting=setting_for(provider, threads))

    def run(self, rounds: int, repeats: Sequence[int], warm: bool = True) -> Rounds:
        """Run the prepared models in turns, in an order that flips every round.

        Args:
            rounds: How many.
            repeats: Timed calls of each model in its turn.
            warm: Whether a call that is not timed goes before them.

        Raises:
            RunnerError: The worker died or did not answer.
        """
        found = self._transport.ask("run", rounds=rounds, repeats=list(repeats), warm=warm)
        return Rounds(found["seconds"], found["disturbed"], found.get("others"))

    def outputs(self) -> list[dict[str, np.ndarray]]:
        """Outputs of each prepared model, by name.

        Raises:
            RunnerError: The worker died or did not answer.
        """
        found: list[dict[str, np.ndarray]] = self._transport.ask("outputs")
        return found

    def profile(self, models: Sequence[int], rounds: int) -> Profile:
        """Run some of the prepared models plainly and profiled, in turns.

        Raises:
            UsageError: This runtime has no profile.
            RunnerError: The worker died or did not answer.
        """
        if not self.describe().profiles:
            raise UsageError(f"{self.describe().runtime} cannot tell the time of single nodes")
        found = self._transport.ask("profile", models=list(models), rounds=rounds)
        seconds = tuple(np.array(times) for times in found["seconds"])
        nodes = tuple(
            tuple(
                NodeTime(name, op, ran, float(s))
                for (name, op, ran), s in zip(entries, np.median(times, 0), strict=True)
            )
            for entries, times in zip(found["nodes"], seconds, strict=True)
        )
        return Profile(np.array(found["plain"]), nodes, seconds, np.array(found["lost"]))

    def close(self) -> None:
        """End the worker."""
        self._transport.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _whole(model: Path | bytes) -> bytes:
    if isinstance(model, bytes):
        return model
    if model.suffix.lower() != ".ort" and has_external_data(open_model(model)):
        raise ModelError(f"'{model}' keeps its weights in another file: only a model in one file can be sent elsewhere")
    return model.read_bytes()
