"""A sweep as a job for somebody else's machines: Ray jobs, KubeRay and Slurm.

Text only: nothing is submitted here. Each kind runs one and the same command, which begins a sweep
or goes on with it, so that a job that was preempted is simply submitted again.
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

Kind = Literal["ray-job", "kuberay", "slurm"]

INTERRUPTED = 75
"""What the program ends with when it shall be run again."""
WARNING_SECONDS = 120
"""So long before its end Slurm says so; a sweep ends in order within half a minute."""
SPACE_FOLDER = "/etc/conformer-sweep"
"""Where a container finds a search space that is a file here."""
HEAD_CPUS = 2
"""Of KubeRay's head, on which the driver runs, and no trial."""
LONGEST_NAME = 40
"""Of a RayJob: KubeRay takes 47 letters, and appends to them itself."""

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
"""What a job's texts must be, whoever reads them in the end."""
OPTIONS = {"folder": "dir"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A sweep, and the machines it asks for; right from birth."""

    name: str
    """The sweep's, in the letters that all three allow."""
    space: str
    """A file, absolute, or a name in search_spaces."""
    folder: Path
    """The sweep's directory, absolute, which all machines see."""
    nodes: int
    """Machines that run trials."""
    cpus: int
    """Of each machine."""
    gpus: int
    memory_gib: int
    """Of each machine, too."""
    time: str | None = None
    """Longest run of one submission: `[DAYS-]HOURS:MINUTES:SECONDS`."""
    retries: int = 20
    """So often the job is begun again by itself."""
    working_dir: Path | None = None
    """From where the command is started."""
    venv: Path | None = None
    """Virtual environment with the program, on all machines of Slurm."""
    partition: str | None = None
    """Of Slurm."""
    image: str | None = None
    """Container with the program, for KubeRay."""
    claim: str | None = None
    """PersistentVolumeClaim that holds the directory, for KubeRay."""
    space_text: str | None = None
    """What the space's file says, if it is a file."""

    def __post_init__(self) -> None:
        if self.time is not None:
            seconds_of(self.time)
        for name, rule in RULES.items():
            value = getattr(self, name)
            if value is not None and not re.fullmatch(rule, str(value), re.ASCII):
                option = OPTIONS.get(name, name.replace("_", "-"))
                raise ConfigError(f"`--{option}` must match {rule}, but is {str(value)!r} instead.")

    def command(self, space: str) -> list[str]:
        """Begins the sweep, or goes on with it, where its space is found so."""
        place = ["--dir", str(self.folder), "--address", "auto"]
        return ["conformer-sweep", "run", space, *place]


def render(job: Job, kind: Kind) -> str:
    """The job as the text that its scheduler takes.

    Raises:
        ConfigError: if something it needs is not given.
    """
    return RENDERERS[kind](job)


def node_size(resources: ResourcesConfig, nodes: int) -> tuple[int, int]:
    """CPUs and GPUs of each machine: for the trials side by side on it, or for one."""
    trials = max(1, math.ceil(resources.concurrent / nodes))
    return resources.cpus * trials, math.ceil(resources.gpus * trials)


def plain_name(name: str) -> str:
    """The name in the letters that Kubernetes, Slurm and Ray all allow."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:LONGEST_NAME].strip("-")
    return plain if plain[:1].isalpha() else f"sweep-{plain}".strip("-")


def seconds_of(time: str) -> int:
    """Seconds of `[DAYS-]HOURS:MINUTES:SECONDS`.

    Raises:
        ConfigError: if it is none.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d{1,3}):([0-5]\d):([0-5]\d)", time, re.ASCII)
    if found is None or not re.search(r"[1-9]", time):
        raise ConfigError(
            "`--time` must be [DAYS-]HOURS:MINUTES:SECONDS as in 24:00:00,"
            f" but is {time!r} instead."
        )
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((24 * days + hours) * 60 + minutes) * 60 + seconds


# ---- a Ray job ----

RAY_JOB = """\
#!/usr/bin/env bash
# The sweep `{name}` as a Ray job: run this where the cluster's dashboard can be reached.
# Run it again to go on, whatever ended it; a second one beside a live one is refused.
# Where Ray asks for a token: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token.
set -euo pipefail

export RAY_ADDRESS="${{RAY_ADDRESS:-http://127.0.0.1:8265}}"
exec ray job submit --metadata-json {metadata} -- \\
  {command}
"""


def _ray_job(job: Job) -> str:
    metadata = f'{{"sweep": "{job.name}"}}'
    entry = shlex.join(_unquoted(job, job.space))
    return RAY_JOB.format(name=job.name, metadata=shlex.quote(metadata), command=entry)


def _unquoted(job: Job, space: str) -> list[str]:
    """The command, if no shell reads it as anything else: Ray passes it through several.

    Raises:
        ConfigError: naming the word that would have to be quoted.
    """
    words = job.command(space)
    if job.working_dir is not None:
        words = ["env", f"--chdir={job.working_dir}", *words]
    for word in words:
        if shlex.quote(word) != word:
            raise ConfigError(
                "What a Ray job is started with must be letters, digits and any of"
                f" `@%+=:,./-_`, but one is `{word}` instead: Ray passes it through several shells."
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
        "# Preempted, it goes on in a new cluster; deleted and applied again, it goes on, too.\n"
    )
    return head + yaml.safe_dump_all(documents, sort_keys=False, width=1000)


def _config_map(job: Job) -> list[dict[str, Any]]:
    """The search space, if it is a file: a container has it not."""
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
        "entrypoint": shlex.join(_unquoted(job, _contained_space(job))),
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


def _contained_space(job: Job) -> str:
    """What the search space is called in the container."""
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

SLURM = """\
#!/usr/bin/env bash
# The sweep `{name}` on Slurm: sbatch this file.
# Preempted or out of time, it is queued again and goes on; so it does if you sbatch it again.
{directives}
set -uo pipefail
{place}
port=$((20000 + SLURM_JOB_ID % 20000))
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export RAY_ADDRESS="${{hosts[0]}}:$port"
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

start() {{ # HOST WORDS...: a Ray node that lives as long as this script
  srun --nodes=1 --ntasks=1 --overlap --nodelist="$1" ray start --block \\
    --num-cpus={cpus} --num-gpus={gpus} "${{@:2}}" &
}}
trap 'jobs -p | xargs -r kill 2>/dev/null' EXIT
start "${{hosts[0]}}" --head --port="$port" --include-dashboard=false \\
  --temp-dir="${{TMPDIR:-/tmp}}/ray-$SLURM_JOB_ID"
for _ in {{1..90}}; do
  ray status >/dev/null 2>&1 && break
  sleep 1
done
for host in "${{hosts[@]:1}}"; do
  start "$host" --address="$RAY_ADDRESS"
done

{command} &
sweep=$!
trap 'kill -TERM "$sweep" 2>/dev/null' TERM INT USR1
wait "$sweep"
code=$?
for _ in 1 2 3; do # a wait that a signal ends says nothing of the sweep
  ((code > 128)) || break
  wait "$sweep"
  code=$?
done

if ((code == {interrupted} && ${{SLURM_RESTART_COUNT:-0}} < {retries})); then
  scontrol requeue "$SLURM_JOB_ID" || true
fi
exit "$code"
"""


def _slurm(job: Job) -> str:
    lines = []
    if job.working_dir is not None:
        lines.append(f"cd {shlex.quote(str(job.working_dir))} || exit 2")
    if job.venv is not None:
        activate = shlex.quote(str(job.venv / "bin" / "activate"))
        lines.append(f"# shellcheck disable=SC1091\n. {activate} || exit 2")
    return SLURM.format(
        name=job.name,
        directives="\n".join(f"#SBATCH --{word}" for word in _directives(job)),
        place="".join(f"\n{line}" for line in lines),
        cpus=job.cpus,
        gpus=job.gpus,
        command=shlex.join(job.command(job.space)),
        interrupted=INTERRUPTED,
        retries=job.retries,
    )


def _directives(job: Job) -> list[str]:
    """What sbatch reads; nothing in it needs quotes."""
    wanted: Mapping[str, Any] = {
        "job-name": job.name,
        "partition": job.partition,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus,
        "gpus-per-node": job.gpus or None,
        "mem": f"{job.memory_gib}G",
        "time": job.time,
        "open-mode": "append",
        "signal": f"B:TERM@{WARNING_SECONDS}",
    }
    given = [f"{name}={value}" for name, value in wanted.items() if value is not None]
    return [*given, "requeue"]


RENDERERS: Mapping[Kind, Callable[[Job], str]] = {
    "ray-job": _ray_job,
    "kuberay": _kuberay,
    "slurm": _slurm,
}
