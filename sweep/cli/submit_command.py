"""The command that hands a sweep to other machines: submit."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sweep.cli.options import Space, out


def submit(
    space: Space,
    to: Annotated[Literal["ray-job", "kuberay", "slurm"], typer.Option(help="Whose job.")],
    folder: Annotated[
        Path, typer.Option("--dir", help="The sweep's directory, which all machines see.")
    ],
    nodes: Annotated[int, typer.Option(help="Machines that run trials.", min=1, max=10_000)] = 1,
    cpus: Annotated[
        int | None, typer.Option(help="Of each machine; by default what its trials need.", min=1)
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="The same.", min=0)] = None,
    memory: Annotated[int, typer.Option(help="GiB of each machine.", min=1)] = 16,
    time: Annotated[
        str | None, typer.Option(help="Longest run: [DAYS-]HOURS:MINUTES:SECONDS.")
    ] = None,
    retries: Annotated[int, typer.Option(help="Times it goes on by itself.", min=0)] = 20,
    working_dir: Annotated[Path | None, typer.Option(help="From where it is started.")] = None,
    venv: Annotated[Path | None, typer.Option(help="Virtual environment, for Slurm.")] = None,
    partition: Annotated[str | None, typer.Option(help="Of Slurm.")] = None,
    image: Annotated[str | None, typer.Option(help="Container, for KubeRay.")] = None,
    claim: Annotated[
        str | None, typer.Option(help="PersistentVolumeClaim with DIR, for KubeRay.")
    ] = None,
    to_file: Annotated[Path | None, typer.Option("--out", help="Write it there.")] = None,
) -> None:
    """Render a job that runs the sweep, or goes on with it; nothing is submitted."""
    from sweep.config.sweep import read
    from sweep.submit.jobs import Job, node_size, plain_name, render

    config, source, text = read(space)
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
