"""The machines of a Ray cluster: whether a trial fits on them, and whether they can run it.

A machine must see the sweep's directory and have the same program as the driver. Both are checked
on every machine before anything runs, and again where a trial starts.
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

MAX_NAMED_FILES = 5
"""Changed files that a message names."""
CHECK_SECONDS = 120.0
"""Time for a machine to start a process that imports little."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """One node that is alive."""

    id: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]

    def num_ranks(self, needs: ResourcesConfig) -> int:
        """Number of ranks that fit on the machine if nothing else runs there."""
        amounts = {"CPU": needs.cpus, "GPU": needs.gpus}
        # 16 cores and 4 GPUs for ranks of 2 cores and 1 GPU: min(16 // 2, 4 // 1) = 4 ranks. A
        # resource that is not needed limits nothing.
        counts = [self.resources.get(key, 0) // amount for key, amount in amounts.items() if amount]
        return int(min(counts)) if counts else 0

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether the machine's labels meet all rules."""
        return all(_is_met(self.labels.get(name), rule) for name, rule in labels.items())


def machines() -> list[Machine]:
    """All machines of the cluster that are alive."""
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


def label_selector(resources: ResourcesConfig) -> dict[str, str]:
    """The rules for labels, by Ray's names of them."""
    return {
        "ray.io/accelerator-type" if name == "accelerator_type" else name: rule
        for name, rule in resources.labels.items()
    }


def placement_request(resources: ResourcesConfig) -> tune.PlacementGroupFactory:
    """The resources of a trial: one bundle a rank, the first of which is Tune's own actor."""
    # PACK puts the ranks on as few machines as possible: they exchange gradients at every step.
    bundle = {"CPU": float(resources.cpus), "GPU": float(resources.gpus)}
    labels = label_selector(resources)
    others = {"bundle_label_selector": [labels] * resources.ranks} if labels else {}
    return tune.PlacementGroupFactory([bundle] * resources.ranks, "PACK", **others)


def resource_shortage(resources: ResourcesConfig) -> str | None:
    """Why a trial does not fit on the cluster, in one line; None if it fits."""
    rules = label_selector(resources)
    alive = machines()
    matching = [machine for machine in alive if machine.has(rules)]
    if not alive:
        return "a machine must be there, but there is none."
    if not matching:
        text = ", ".join(f'{name} = "{rule}"' for name, rule in rules.items())
        return (
            f"`resources.labels` must be those of a machine, but none of {len(alive)} has {text}."
        )
    for name, key, amount in (("cpus", "CPU", resources.cpus), ("gpus", "GPU", resources.gpus)):
        most = max(machine.resources.get(key, 0) for machine in matching)
        if amount > most:
            return (
                f"`resources.{name}` must be at most what one machine has, {most:g},"
                f" but is {amount:g} instead."
            )
    # A rank lies on one machine: with ranks of 3 cores, two machines of 5 hold 2, not 10 // 3 = 3.
    num_ranks = sum(machine.num_ranks(resources) for machine in matching)
    if resources.ranks > num_ranks:
        return (
            f"`resources.ranks` must be at most what all machines hold together, {num_ranks},"
            f" but is {resources.ranks} instead."
        )
    return None


def check_machines(folder: Path | None) -> None:
    """Check that every machine sees the sweep's directory and has the same program.

    Args:
        folder: the directory; None where an object store is used instead of a shared one.

    Raises:
        ClusterError: naming the machine and its fault.
    """
    token = uuid.uuid4().hex
    nonce = temporary_path(folder / f"seen-{token}") if folder else None
    try:
        if nonce:
            nonce.write_text(token, encoding="utf-8")
        calls = [(machine, _ask_machine(machine, nonce, token)) for machine in machines()]
        for machine, call in calls:
            fault = _machine_answer(call)
            if fault:
                raise ClusterError(f"On the machine {machine.address} {fault}")
    finally:
        if nonce:
            nonce.unlink(missing_ok=True)


def _ask_machine(machine: Machine, nonce: Path | None, token: str) -> Any:
    # A task and not its answer, so that all machines are asked at once.
    # Not soft, or Ray would ask another machine where this one is lost, and it would answer.
    here = NodeAffinitySchedulingStrategy(node_id=machine.id, soft=False)
    task = ray.remote(machine_fault).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
    return task.remote(str(nonce) if nonce else None, token, code_version())


def _machine_answer(call: Any) -> str | None:
    """A machine's fault in one line; one that has left the cluster meanwhile has none."""
    try:
        fault: str | None = ray.get(call, timeout=CHECK_SECONDS)
    except ray.exceptions.GetTimeoutError:
        return f"a worker must start, but none has in {CHECK_SECONDS:g} s."
    except ray.exceptions.RayTaskError as error:
        line = str(error).strip().splitlines()[-1]
        return f"this program must be installed, but: {line}"
    except ray.exceptions.RayError:
        return None
    return fault


def machine_fault(nonce: str | None, token: str, code: str) -> str | None:
    """Why this machine cannot run a trial, in one line, or None; called on the machine."""
    return (_sharing_fault(nonce, token) if nonce else None) or program_difference(code)


def _sharing_fault(nonce: str, token: str) -> str | None:
    # Its content tells a shared directory from one of the same path on each machine; a file of its
    # own, under another name than any machine's, shows that it can also be written.
    own = Path(f"{nonce}-{uuid.uuid4().hex}")
    try:
        is_seen = Path(nonce).read_text(encoding="utf-8") == token
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
        f" write, but a file that the driver wrote there cannot be read ({why})."
    )


def check_this_machine(shared: Path | None, code: str) -> None:
    """Refuse a trial on a machine that joined later and cannot run it.

    Raises:
        ClusterError: naming the machine and its fault; an `OtherProgramError` if its program is
            not the driver's.
    """
    here = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    if shared is not None and not shared.is_dir():
        raise ClusterError(
            f"On the machine {here} `{shared}` must be a directory that all machines share, but is"
            " not there."
        )
    if difference := program_difference(code):
        raise OtherProgramError(f"On the machine {here} {difference}")


def program_changed_error(changed: Sequence[str]) -> str:
    """The error if the program was changed while a sweep runs, with its repair.

    Args:
        changed: names of the driver's source files that differ from those at its start.
    """
    names = ", ".join(changed[:MAX_NAMED_FILES])
    more = f" and {len(changed) - MAX_NAMED_FILES} more" if len(changed) > MAX_NAMED_FILES else ""
    return (
        f"The program was changed while this sweep ran: {names}{more}."
        " A new worker would run another program than the driver does, so the sweep stops here;"
        " nothing is lost. Run `conformer-sweep resume` on its directory: it goes on with the"
        " program as it is now."
    )


def program_difference(code: str) -> str | None:
    """The difference of the program here from the driver's in one line, or None."""
    if code == code_version():
        return None
    return (
        f"the program must be the driver's, {code}, but is {code_version()} instead;"
        " install the same one."
    )


def _is_met(value: str | None, rule: str) -> bool:
    """Ray's rules for labels: a value, `in(a, b)`, or either with `!` before it."""
    # "in(A100, H100)" holds for A100; "!A100" holds for H100 and for a machine without the label.
    plain = rule.removeprefix("!")
    options = plain.removeprefix("in(").removesuffix(")") if plain.startswith("in(") else plain
    is_one = value in [option.strip() for option in options.split(",")]
    return is_one != rule.startswith("!")
