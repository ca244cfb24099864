"""The machines of a Ray cluster: whether a trial fits on them, and whether they can run it at all.

A trial needs a machine that sees the sweep's directory and has the very program that the driver
has: both are found out before anything runs, on every machine, and again where a trial begins.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core.files import temporary_path
from sweep.config.sweep import ResourcesConfig
from sweep.run.ray_cluster import ClusterError, OtherProgramError
from sweep.tracking.provenance import code_version

MOST_NAMED = 5
"""Changed files that are told by name."""
EXAMINATION_SECONDS = 120.0
"""Time for a machine to start a process that imports little."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """One node that is alive."""

    id: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]

    def room(self, wanted: ResourcesConfig) -> int:
        """How many ranks it could hold if nothing else ran there."""
        needs = {"CPU": wanted.cpus, "GPU": wanted.gpus}
        rooms = [self.resources.get(name, 0) // need for name, need in needs.items() if need]
        return int(min(rooms)) if rooms else 0

    def has(self, labels: Mapping[str, str]) -> bool:
        return all(_is_met(self.labels.get(name), rule) for name, rule in labels.items())


def machines() -> list[Machine]:
    """All that are alive."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        Machine(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            resources=node["Resources"],
            labels=node.get("Labels") or {},
        )
        for node in nodes
        if node["Alive"]
    ]


def selector(resources: ResourcesConfig) -> dict[str, str]:
    """Labels by the names that Ray gives them."""
    return {
        "ray.io/accelerator-type" if name == "accelerator_type" else name: rule
        for name, rule in resources.labels.items()
    }


def request(resources: ResourcesConfig) -> tune.PlacementGroupFactory:
    """What a trial occupies: a bundle a rank, the first of which is Tune's own actor."""
    bundle = {"CPU": float(resources.cpus), "GPU": float(resources.gpus)}
    labels = selector(resources)
    others = {"bundle_label_selector": [labels] * resources.ranks} if labels else {}
    return tune.PlacementGroupFactory([bundle] * resources.ranks, "PACK", **others)


def lack(resources: ResourcesConfig) -> str | None:
    """What no machine, or not all together, can hold of a trial; None if it fits.

    Pure but for asking Ray what there is.
    """
    labels = selector(resources)
    there = machines()
    fitting = [machine for machine in there if machine.has(labels)]
    if not there:
        return "a machine must be there, but there is none."
    if not fitting:
        said = ", ".join(f'{name} = "{rule}"' for name, rule in labels.items())
        return (
            f"`resources.labels` must be those of a machine, but none of {len(there)} has {said}."
        )
    for name, key, wanted in (("cpus", "CPU", resources.cpus), ("gpus", "GPU", resources.gpus)):
        most = max(machine.resources.get(key, 0) for machine in fitting)
        if wanted > most:
            return (
                f"`resources.{name}` must be at most what one machine has, {most:g},"
                f" but is {wanted:g} instead."
            )
    room = sum(machine.room(resources) for machine in fitting)
    if resources.ranks > room:
        return (
            f"`resources.ranks` must be at most what all machines hold together, {room},"
            f" but is {resources.ranks} instead."
        )
    return None


def examine(folder: Path | None) -> None:
    """See that every machine sees the sweep's directory and has this very program.

    Args:
        folder: the directory; None where an object store stands in for a shared one.

    Raises:
        ClusterError: naming the machine, and what it lacks.
    """
    word = uuid.uuid4().hex
    nonce = temporary_path(folder / f"seen-{word}") if folder else None
    try:
        if nonce:
            nonce.write_text(word, encoding="utf-8")
        asked = [(machine, _asked(machine, nonce, word)) for machine in machines()]
        for machine, call in asked:
            said = _answer(call)
            if said:
                raise ClusterError(f"On the machine {machine.address} {said}")
    finally:
        if nonce:
            nonce.unlink(missing_ok=True)


def _asked(machine: Machine, nonce: Path | None, word: str) -> Any:
    here = NodeAffinitySchedulingStrategy(node_id=machine.id, soft=False)
    task = ray.remote(fault).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
    return task.remote(str(nonce) if nonce else None, word, code_version())


def _answer(call: Any) -> str | None:
    """A machine's fault in words; one that went away meanwhile has none."""
    try:
        found: str | None = ray.get(call, timeout=EXAMINATION_SECONDS)
    except ray.exceptions.GetTimeoutError:
        return f"a worker must start, but none has in {EXAMINATION_SECONDS:g} s."
    except ray.exceptions.RayTaskError as error:
        line = str(error).strip().splitlines()[-1]
        return f"this program must be installed, but: {line}"
    except ray.exceptions.RayError:
        return None
    return found


def fault(nonce: str | None, word: str, code: str) -> str | None:
    """What this machine lacks to run a trial, or None; runs on it."""
    return (_not_shared(nonce, word) if nonce else None) or unlike(code)


def _not_shared(nonce: str, word: str) -> str | None:
    own = Path(f"{nonce}-{uuid.uuid4().hex}")
    try:
        is_seen = Path(nonce).read_text(encoding="utf-8") == word
        own.touch()
        own.unlink()
    except OSError as error:
        is_seen, why = False, str(error)
    else:
        why = "it holds another file"
    if is_seen:
        return None
    return (
        f"`{Path(nonce).parent}` must be a directory that all machines share, to read and to"
        f" write, but what the driver wrote there is not to be had ({why})."
    )


def check_here(shared: Path | None, code: str) -> None:
    """Refuse a trial on a machine that joined later and cannot run it.

    Raises:
        ClusterError: naming the machine, and what it lacks; an `OtherProgramError` if that is the
            driver's program.
    """
    here = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    if shared is not None and not shared.is_dir():
        raise ClusterError(
            f"On the machine {here} `{shared}` must be a directory that all machines share, but is"
            " not there."
        )
    if said := unlike(code):
        raise OtherProgramError(f"On the machine {here} {said}")


def changed_program_line(changed: Sequence[str]) -> str:
    """What to tell where a worker found other sources than the driver, whose own were changed.

    Args:
        changed: names of the driver's source files that are not as they were when it started.
    """
    more = f" and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
    return (
        f"The program was changed while this sweep ran: {', '.join(changed[:MOST_NAMED])}{more}."
        " A new worker would run another program than the driver does, so the sweep stops here;"
        " nothing is lost. Run `conformer-sweep resume` on its directory: it goes on with the"
        " program as it is now."
    )


def unlike(code: str) -> str | None:
    """How the program here differs from the driver's, or None."""
    if code == code_version():
        return None
    return (
        f"the program must be the driver's, {code}, but is {code_version()} instead;"
        " install the same one."
    )


def _is_met(value: str | None, rule: str) -> bool:
    """Ray's rules for labels: a value, `in(a, b)`, or either with `!` before it."""
    plain = rule.removeprefix("!")
    options = plain.removeprefix("in(").removesuffix(")") if plain.startswith("in(") else plain
    is_one = value in [option.strip() for option in options.split(",")]
    return is_one != rule.startswith("!")
