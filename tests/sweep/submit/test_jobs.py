"""Rendered jobs: manifests against schemas, scripts through bash, ShellCheck, stub schedulers."""

import os
import shlex
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from subprocess import Popen, run

import jsonschema
import kubernetes_validate
import pytest
import yaml

from core.config.base import ConfigError
from sweep.cli import app
from sweep.config.sweep import ResourcesConfig
from sweep.submit.jobs import Job, node_size, plain_name, render, seconds_of

JOB = Job(
    name="demo",
    space="demo",
    folder=Path("/data/demo"),
    nodes=3,
    cpus=4,
    gpus=1,
    memory_gib=24,
    image="registry.example/conformer-sweep:1",
)
COMMAND = "conformer-sweep run demo --dir /data/demo --address auto"
EVIL = '/data/it\'s $(touch evil) "`whoami`" \\ & ; | * {x}'

BASH = shutil.which("bash")
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
KUBERNETES = "1.37"


def closed(required, **properties):
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


COUNT = {"type": "integer", "minimum": 0}
POD = {"type": "object"}  # judged by Kubernetes' own schema
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
# No registry package carries KubeRay's own schema. These are the fields that we set, with types
# and required ones after the API reference of KubeRay 1.6; an unknown field is a fault.
RAY_JOB = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed(
        ["name"],
        name={"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"},
        labels=STRINGS,
    ),
    spec=closed(
        ["entrypoint", "rayClusterSpec"],
        entrypoint={"type": "string"},
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=closed(
            ["headGroupSpec", "rayVersion"],
            rayVersion={"type": "string"},
            authOptions=closed(["mode"], mode={"enum": ["token", "disabled"]}),
            headGroupSpec=closed(["template"], rayStartParams=STRINGS, template=POD),
            workerGroupSpecs={
                "type": "array",
                "items": closed(
                    ["groupName", "template", "minReplicas", "maxReplicas"],
                    groupName={"type": "string"},
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=STRINGS,
                    template=POD,
                ),
            },
        ),
    ),
)


def manifest(job):
    """The RayJob, and what else there is."""
    *others, ray_job = yaml.safe_load_all(render(job, "kuberay"))
    return ray_job, others


@pytest.fixture
def cluster(tmp_path):
    """Stub programs of Slurm and Ray on a PATH of their own; each notes how it was called."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    programs = {
        "scontrol": 'if [ "$1" = show ]; then printf "a1\\na2\\na3\\n"; else note "$@"; fi',
        "srun": 'note "$@"; exec sleep 30',
        "ray": "exit 0",
        "conformer-sweep": 'note "$@"; . "$NOTES/sweep"',
    }
    for name, body in programs.items():
        head = '#!/usr/bin/env bash\nnote() { printf "%s\\0" "$@" END >> "$NOTES/' + name + '"; }\n'
        (stubs / name).write_text(f"{head}{body}\n")
        (stubs / name).chmod(0o755)
    return stubs


@pytest.fixture
def start(cluster, tmp_path):
    """Begin the Slurm script as Slurm would, with a sweep that does this; give the process."""

    def started(job, sweep, **environment):
        (tmp_path / "sweep").write_text(sweep)
        script = tmp_path / "job.sh"
        script.write_text(render(job, "slurm"))
        known = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "a[1-3]", "NOTES": str(tmp_path)}
        path = {"PATH": f"{cluster}:{os.environ['PATH']}"}
        environment = os.environ | known | path | environment
        return Popen([BASH, script], env=environment, cwd=tmp_path)  # noqa: S603  # ours

    return started


def noted(folder, program):
    """How a stub was called, call by call."""
    path = folder / program
    calls = path.read_text().split("END\0")[:-1] if path.exists() else []
    return [call.split("\0")[:-1] for call in calls]


@pytest.mark.parametrize("kind", ["ray-job", "kuberay", "slurm"])
def test_every_kind_runs_one_and_the_same_command(kind):
    assert COMMAND in render(JOB, kind)


def test_the_command_renders_a_space_that_is_a_file_and_submits_nothing(
    tiny_space, tmp_path, monkeypatch, capsys
):
    words = ["submit", tiny_space, "--to", "slurm", "--dir", tmp_path / "sweep"]
    monkeypatch.setattr(sys, "argv", ["conformer-sweep", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        app.main()

    assert not ended.value.code
    told = capsys.readouterr().out
    assert f"conformer-sweep run {tiny_space} --dir {tmp_path / 'sweep'} --address auto &" in told
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("gpus", [0, 2])
@pytest.mark.parametrize("time", [None, "24:00:00"])
@pytest.mark.parametrize("space_text", [None, "[sweep]\ntrials = 3 # é: |\n"])
def test_the_kuberay_manifest_fits_its_schemas(gpus, time, space_text):
    space = "demo" if space_text is None else "/here only/a b.toml"

    ray_job, others = manifest(
        replace(JOB, gpus=gpus, time=time, space=space, space_text=space_text)
    )

    jsonschema.validate(ray_job, RAY_JOB)
    cluster = ray_job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    for other in others:
        kubernetes_validate.validate(other, KUBERNETES, strict=True)
    assert len(others) == (space_text is not None)


def test_a_space_that_is_a_file_travels_with_the_manifest():
    text = '[sweep]\ntrials = 3\n\n[trial.corpus]\nname = "/x: y" # é\n'

    ray_job, (config_map,) = manifest(replace(JOB, space="/here/b.toml", space_text=text))

    assert config_map["data"] == {"demo.toml": text}
    assert " run /etc/conformer-sweep/demo.toml --dir " in ray_job["spec"]["entrypoint"]
    pod = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = [v for v in pod["volumes"] if "configMap" in v]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]


def test_kuberay_begins_again_where_it_was_on_workers_as_large_as_their_trials():
    spec = manifest(JOB)[0]["spec"]
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]

    assert spec["backoffLimit"] == 20
    assert spec["shutdownAfterJobFinishes"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert workers["replicas"] == 3
    limits = {"cpu": "4", "memory": "24Gi", "nvidia.com/gpu": "1"}
    assert container["resources"] == {"requests": limits, "limits": limits}
    assert container["volumeMounts"] == [{"name": "sweep", "mountPath": "/data/demo"}]


@pytest.mark.parametrize(
    ("kind", "folder"), [("ray-job", "/data/demo"), ("slurm", "/data/demo"), ("slurm", EVIL)]
)
def test_the_scripts_are_sound_shell(kind, folder, tmp_path):
    script = tmp_path / "job.sh"
    job = replace(JOB, folder=Path(folder), time="24:00:00", venv=Path("/opt/a b"))
    script.write_text(render(job, kind))

    run([BASH, "-n", script], check=True)  # noqa: S603  # our own commands
    run([SHELLCHECK, "--severity=warning", script], check=True)  # noqa: S603


def test_slurm_reads_directives_before_any_command():
    lines = render(replace(JOB, time="1-02:00:00", partition="gpu"), "slurm").splitlines()
    directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    first_command = next(i for i, line in enumerate(lines) if line and line[0] != "#")

    assert {"--requeue", "--signal=B:TERM@120", "--nodes=3", "--gpus-per-node=1"} <= set(directives)
    assert {"--time=1-02:00:00", "--partition=gpu", "--mem=24G"} <= set(directives)
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])


def test_slurm_starts_a_head_and_its_workers_and_then_the_sweep(start, tmp_path):
    code = start(JOB, "sleep 0.3; exit 0").wait(timeout=20)

    assert code == 0
    hosts = [word for call in noted(tmp_path, "srun") for word in call if "nodelist" in word]
    assert sorted(hosts) == ["--nodelist=a1", "--nodelist=a2", "--nodelist=a3"]
    heads = [call for call in noted(tmp_path, "srun") if "--head" in call]
    assert [("--nodelist=a1" in head, "--port=20077" in head) for head in heads] == [(True, True)]
    assert noted(tmp_path, "conformer-sweep") == [shlex.split(COMMAND)[1:]]
    assert noted(tmp_path, "scontrol") == []


def test_no_letter_of_a_path_is_read_by_the_shell(start, tmp_path):
    place = tmp_path / "it's $(touch evil) & here"
    place.mkdir()

    start(replace(JOB, folder=Path(EVIL), working_dir=place), "exit 0").wait(timeout=20)

    assert noted(tmp_path, "conformer-sweep")[0][3] == EVIL
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("code", [0, 2, 3, 75])
def test_only_what_was_interrupted_is_queued_again(start, tmp_path, code):
    assert start(JOB, f"exit {code}").wait(timeout=20) == code

    assert noted(tmp_path, "scontrol") == ([["requeue", "77"]] if code == 75 else [])


def test_what_is_interrupted_again_and_again_is_left_alone(start, tmp_path):
    assert start(JOB, "exit 75", SLURM_RESTART_COUNT="20").wait(timeout=20) == 75

    assert noted(tmp_path, "scontrol") == []


def test_slurm_s_warning_reaches_the_sweep_which_is_queued_again(start, tmp_path):
    job = start(JOB, 'trap "sleep 0.5; exit 75" TERM; touch "$NOTES/runs"; sleep 20 & wait')
    while not (tmp_path / "runs").exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)

    assert job.wait(timeout=20) == 75
    assert noted(tmp_path, "scontrol") == [["requeue", "77"]]


def test_a_sweep_that_was_killed_is_not_waited_for_for_ever(start):
    assert start(JOB, "kill -KILL $$").wait(timeout=20) == 137


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"folder": Path("/a b")}, "ray-job", "one is `/a b` instead"),
        ({"folder": Path("/a$b")}, "kuberay", r"one is `/a\$b` instead"),
        ({"image": None}, "kuberay", "`--image` must be given for kuberay"),
    ],
)
def test_what_a_kind_cannot_carry_is_refused(change, kind, message):
    with pytest.raises(ConfigError, match=message):
        render(replace(JOB, **change), kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": Path("/a\nb")}, "`--dir` must match"),
        ({"partition": "a b"}, "`--partition` must match"),
        ({"image": "a b"}, "`--image` must match"),
        ({"claim": "A_b"}, "`--claim` must match"),
        ({"time": "a day"}, "`--time` must be .*but is 'a day' instead"),
        ({"time": "0:00:00"}, "`--time` must be"),
    ],
)
def test_a_job_is_right_from_birth(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(JOB, **change)


@pytest.mark.parametrize(
    ("time", "seconds"), [("0:00:10", 10), ("24:00:00", 86_400), ("1-02:03:04", 93_784)]
)
def test_times_are_slurms(time, seconds):
    assert seconds_of(time) == seconds


@pytest.mark.parametrize(
    ("concurrent", "nodes", "size"), [(0, 2, (4, 1)), (4, 2, (8, 1)), (5, 2, (12, 2))]
)
def test_a_machine_holds_the_trials_side_by_side_on_it(concurrent, nodes, size):
    resources = ResourcesConfig(cpus=4, gpus=0.5, concurrent=concurrent)

    assert node_size(resources, nodes) == size


@pytest.mark.parametrize(
    ("name", "plain"),
    [("Demo_2 sweep", "demo-2-sweep"), ("7", "sweep-7"), ("é", "sweep"), ("", "sweep")],
)
def test_a_name_is_made_fit_for_all(name, plain):
    assert plain_name(name) == plain
