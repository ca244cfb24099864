"""A sweep as a job of a cluster: Ray jobs, KubeRay and Slurm.

Text only: nothing is submitted here. Every kind runs the same command, which starts a sweep or
continues it, so a preempted job is simply submitted again.
"""

import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml

from core.config.base import ConfigError
from sweep.config.sweep import ResourcesConfig
from sweep.templates import render_text

TEMPLATES = Path(__file__).parent / "templates"

Kind = Literal["ray-job", "kuberay", "slurm"]

INTERRUPTED = 75
"""Exit code of the program when it can be run again."""
WARNING_SECONDS = 120
"""Seconds from Slurm's warning to its kill; a sweep ends in order within half a minute."""
SPACE_FOLDER = "/etc/conformer-sweep"
"""Folder in the container for a search space that is a file here."""
HEAD_CPUS = 2
"""CPUs of KubeRay's head, on which the driver runs, and no trial."""
LONGEST_NAME = 40
"""Letters in the name of a RayJob: KubeRay allows 47 and appends some itself."""

ONE_LINE = r"[^\x00-\x1f\x7f]+"
RULES = {
    "space": ONE_LINE,
    "folder": ONE_LINE,
    "working_dir": ONE_LINE,
    "venv": ONE_LINE,
    "partition": r"\w[\w.,-]*",
    "image": r"\w[\w.:/@-]*",
    "claim": r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?",
}
"""Patterns of the texts of a job, which are safe for a shell, Slurm and Kubernetes."""
OPTIONS = {"folder": "dir"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A sweep and the machines that it asks for; invalid values are refused at once."""

    name: str
    """Name of the sweep, in the letters that all three schedulers allow."""
    space: str
    """An absolute path of a search space, or the name of a built-in one."""
    folder: Path
    """Absolute path of the sweep's directory, on storage that all machines share."""
    nodes: int
    """Number of machines that run trials."""
    cpus: int
    """CPUs of each machine."""
    gpus: int
    memory_gib: int
    """Memory of each machine in GiB."""
    time: str | None = None
    """Time limit of one submission: `[DAYS-]HOURS:MINUTES:SECONDS`."""
    retries: int = 20
    """Number of automatic restarts."""
    working_dir: Path | None = None
    """Folder in which the command starts."""
    venv: Path | None = None
    """Virtual environment with the program, on all machines, for Slurm."""
    partition: str | None = None
    """Partition, for Slurm."""
    image: str | None = None
    """Container image with the program, for KubeRay."""
    claim: str | None = None
    """PersistentVolumeClaim that holds the directory, for KubeRay."""
    space_text: str | None = None
    """Text of the search space, if it is a file."""

    def __post_init__(self) -> None:
        if self.time is not None:
            seconds_of(self.time)
        for name, rule in RULES.items():
            value = getattr(self, name)
            if value is not None and not re.fullmatch(rule, str(value), re.ASCII):
                option = OPTIONS.get(name, name.replace("_", "-"))
                raise ConfigError(f"`--{option}` must match {rule}, but is {str(value)!r} instead.")

    def command(self, space: str) -> list[str]:
        """Returns the words of the command that starts or continues the sweep."""
        options = ["--dir", str(self.folder), "--address", "auto"]
        return ["conformer-sweep", "run", space, *options]


def render(job: Job, kind: Kind) -> str:
    """Renders the job as the text that its scheduler takes.

    Raises:
        ConfigError: if the job lacks something that the scheduler needs.
    """
    return RENDERERS[kind](job)


def node_size(resources: ResourcesConfig, nodes: int) -> tuple[int, int]:
    """Returns CPUs and GPUs of each machine, enough for its share of the concurrent trials."""
    # 6 concurrent trials on 2 machines are 3 each: with 4 CPUs and half a GPU a trial, 12 CPUs and
    # 2 GPUs (1.5 rounded up, as schedulers give whole ones). `concurrent = 0` is one trial a
    # machine.
    trials = max(1, math.ceil(resources.concurrent / nodes))
    return resources.cpus * trials, math.ceil(resources.gpus * trials)


def plain_name(name: str) -> str:
    """Returns the name in the letters that Kubernetes, Slurm and Ray all allow."""
    # "Half the size (v2)" -> "half-the-size-v2"; "2nd try" -> "sweep-2nd-try", as Kubernetes wants
    # a letter first. Stripped twice, because the cut may end at a hyphen.
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:LONGEST_NAME].strip("-")
    return plain if plain[:1].isalpha() else f"sweep-{plain}".strip("-")


def seconds_of(time: str) -> int:
    """Returns the seconds of `[DAYS-]HOURS:MINUTES:SECONDS`.

    Raises:
        ConfigError: if the text has another form.
    """
    # "1-02:03:04" is 93784 s. The search refuses a limit of zero, which Slurm reads as none at all.
    match = re.fullmatch(r"(?:(\d+)-)?(\d{1,3}):([0-5]\d):([0-5]\d)", time, re.ASCII)
    if match is None or not re.search(r"[1-9]", time):
        raise ConfigError(
            "`--time` must be [DAYS-]HOURS:MINUTES:SECONDS as in 24:00:00,"
            f" but is {time!r} instead."
        )
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((24 * days + hours) * 60 + minutes) * 60 + seconds


# ---- a Ray job ----


def _ray_job(job: Job) -> str:
    metadata = f'{{"sweep": "{job.name}"}}'
    entry = shlex.join(_plain_command(job, job.space))
    values = {"name": job.name, "metadata": shlex.quote(metadata), "command": entry}
    return render_text(TEMPLATES, "ray_job.sh.j2", values)


def _plain_command(job: Job, space: str) -> list[str]:
    """Returns the command, whose words need no quotes: Ray passes it through several shells.

    Raises:
        ConfigError: if a word would have to be quoted.
    """
    words = job.command(space)
    if job.working_dir is not None:
        words = ["env", f"--chdir={job.working_dir}", *words]
    for word in words:
        if shlex.quote(word) != word:
            raise ConfigError(
                "Words of a Ray job must be letters, digits and any of `@%+=:,./-_`, but one is"
                f" `{word}` instead: Ray passes it through several shells."
            )
    return words


# ---- KubeRay ----


def _kuberay(job: Job) -> str:
    if job.image is None:
        raise ConfigError(
            "`--image` must be given for kuberay: a container with conformer-sweep"
            f" and Ray {version('ray')} in it."
        )
    documents = [*_config_map(job), _ray_job_manifest(job)]
    head = (
        f"# The sweep `{job.name}` on KubeRay 1.5.1 or newer: kubectl apply -f this file.\n"
        "# Preempted, or deleted and applied again, it continues in a new cluster.\n"
    )
    return head + yaml.safe_dump_all(documents, sort_keys=False, width=1000)


def _config_map(job: Job) -> list[dict[str, Any]]:
    """Returns a ConfigMap of the search space if it is a file, which no container has."""
    if job.space_text is None:
        return []
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{job.name}-space"},
            "data": {f"{job.name}.toml": job.space_text},
        }
    ]


def _ray_job_manifest(job: Job) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "entrypoint": shlex.join(_plain_command(job, _space_in_container(job))),
        "submissionMode": "K8sJobMode",
        "backoffLimit": job.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
    }
    if job.time is not None:
        spec["activeDeadlineSeconds"] = seconds_of(job.time)
    spec["rayClusterSpec"] = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},  # trials run on workers
            "template": _pod(job, "ray-head", cpus=HEAD_CPUS, gpus=0),
        },
        "workerGroupSpecs": [
            {
                "groupName": "trials",
                # All three equal: a fixed number of machines, which no autoscaler changes.
                "replicas": job.nodes,
                "minReplicas": job.nodes,
                "maxReplicas": job.nodes,
                "rayStartParams": {},
                "template": _pod(job, "ray-worker", cpus=job.cpus, gpus=job.gpus),
            }
        ],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": job.name, "labels": {"app.kubernetes.io/name": "conformer-sweep"}},
        "spec": spec,
    }


def _space_in_container(job: Job) -> str:
    """Returns the path or the name of the search space in the container."""
    return job.space if job.space_text is None else f"{SPACE_FOLDER}/{job.name}.toml"


def _pod(job: Job, container: str, *, cpus: int, gpus: int) -> dict[str, Any]:
    size = {"cpu": str(cpus), "memory": f"{job.memory_gib}Gi"}
    if gpus:
        size["nvidia.com/gpu"] = str(gpus)
    mounts = [{"name": "sweep", "mountPath": str(job.folder)}]
    volumes: list[dict[str, Any]] = [
        {"name": "sweep", "persistentVolumeClaim": {"claimName": job.claim or job.name}}
    ]
    if job.space_text is not None:
        mounts.append({"name": "space", "mountPath": SPACE_FOLDER})
        volumes.append({"name": "space", "configMap": {"name": f"{job.name}-space"}})
    return {
        "spec": {
            "containers": [
                {
                    "name": container,
                    "image": job.image,
                    "resources": {"requests": dict(size), "limits": dict(size)},
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        }
    }


# ---- Slurm ----


def _slurm(job: Job) -> str:
    lines = []
    if job.working_dir is not None:
        lines.append(f"cd {shlex.quote(str(job.working_dir))} || exit 2")
    if job.venv is not None:
        activate = shlex.quote(str(job.venv / "bin" / "activate"))
        lines.append(f"# shellcheck disable=SC1091\n. {activate} || exit 2")
    values = {
        "name": job.name,
        "directives": _directives(job),
        "before": lines,
        "cpus": job.cpus,
        "gpus": job.gpus,
        "command": shlex.join(job.command(job.space)),
        "interrupted": INTERRUPTED,
        "retries": job.retries,
    }
    return render_text(TEMPLATES, "slurm.sh.j2", values)


def _directives(job: Job) -> list[str]:
    """Returns the options that sbatch reads; no value needs quotes."""
    options: Mapping[str, Any] = {
        "job-name": job.name,
        "partition": job.partition,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus,
        "gpus-per-node": job.gpus or None,
        "mem": f"{job.memory_gib}G",
        "time": job.time,
        "open-mode": "append",
        # "B:" sends the signal to the batch script alone, which passes it on to the driver; without
        # it Slurm would signal every step but the script.
        "signal": f"B:TERM@{WARNING_SECONDS}",
    }
    words = [f"{name}={value}" for name, value in options.items() if value is not None]
    return [*words, "requeue"]


RENDERERS: Mapping[Kind, Callable[[Job], str]] = {
    "ray-job": _ray_job,
    "kuberay": _kuberay,
    "slurm": _slurm,
}
