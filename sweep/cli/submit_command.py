"""The command `submit`, which renders a sweep as a job of a scheduler."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sweep.cli.options import Space, out

Scheduler = Annotated[
    Literal["ray-job", "kuberay", "slurm"], typer.Option(help="Scheduler that runs the job.")
]
Folder = Annotated[
    Path,
    typer.Option("--dir", help="Directory of the sweep, on storage that all machines share."),
]
Nodes = Annotated[int, typer.Option(help="Number of machines that run trials.", min=1, max=10_000)]
Cpus = Annotated[
    int | None, typer.Option(help="CPUs per machine (default: what the trials need).", min=1)
]
Gpus = Annotated[
    int | None, typer.Option(help="GPUs per machine (default: what the trials need).", min=0)
]
TimeLimit = Annotated[
    str | None, typer.Option(help="Time limit of one run: [DAYS-]HOURS:MINUTES:SECONDS.")
]
WorkingDir = Annotated[Path | None, typer.Option(help="Folder in which the job starts.")]
Venv = Annotated[Path | None, typer.Option(help="Virtual environment on the machines, for Slurm.")]
Partition = Annotated[str | None, typer.Option(help="Slurm partition that runs the job.")]
Claim = Annotated[
    str | None, typer.Option(help="PersistentVolumeClaim that holds --dir, for KubeRay.")
]
OutFile = Annotated[
    Path | None, typer.Option("--out", help="File for the job; by default standard output.")
]


def submit(
    space: Space,
    to: Scheduler,
    folder: Folder,
    nodes: Nodes = 1,
    cpus: Cpus = None,
    gpus: Gpus = None,
    memory: Annotated[int, typer.Option(help="Memory per machine, in GiB.", min=1)] = 16,
    time: TimeLimit = None,
    retries: Annotated[int, typer.Option(help="Number of automatic restarts.", min=0)] = 20,
    working_dir: WorkingDir = None,
    venv: Venv = None,
    partition: Partition = None,
    image: Annotated[str | None, typer.Option(help="Container image, for KubeRay.")] = None,
    claim: Claim = None,
    to_file: OutFile = None,
) -> None:
    """Render a job that starts or continues a sweep, without submitting it."""
    from sweep.config.sweep import read_space
    from sweep.submit.jobs import Job, node_size, plain_name, render

    config, source, text = read_space(space)
    needed = node_size(config.resources, nodes)
    is_file = Path(space).is_file()
    job = Job(
        name=plain_name(config.sweep.name),
        space=str(source) if is_file else space,
        space_text=text if is_file else None,
        folder=folder.absolute(),
        nodes=nodes,
        cpus=needed[0] if cpus is None else cpus,
        gpus=needed[1] if gpus is None else gpus,
        memory_gib=memory,
        time=time,
        retries=retries,
        working_dir=working_dir and working_dir.absolute(),
        venv=venv and venv.absolute(),
        partition=partition,
        image=image,
        claim=claim,
    )
    rendered = render(job, to)
    if to_file is None:
        out.file.write(rendered)
        return
    to_file.write_text(rendered, encoding="utf-8")
    out.print(f"wrote {to_file}; {HINTS[to].format(file=to_file)} submits it", markup=False)


HINTS = {"ray-job": "bash {file}", "kuberay": "kubectl apply -f {file}", "slurm": "sbatch {file}"}
