"""Importing the program changes neither the environment nor other libraries."""

import json
import pkgutil
import subprocess
import sys

import core
import sweep
from core import environment as library_environment
from sweep.tracking import mlflow_server

OTHERS = (
    "mlflow",
    "optuna",
    "ray.tune",
    "ray._private.worker",
    "torch",
    "lhotse",
    "matplotlib.pyplot",
)
"""Libraries that change the environment themselves when they are imported."""

CHECK = """
import importlib, json, os, sys

names, others = json.loads(sys.argv[1])
for name in others:
    importlib.import_module(name)
from ray._private import ray_constants, worker

def state():
    constants = {k: repr(v) for k, v in vars(ray_constants).items()}
    return dict(os.environ), {k: id(v) for k, v in vars(worker).items() if callable(v)}, constants

before = state()
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] in ("core", "sweep"):
            raise
assert state() == before, [b for a, b in zip(before, state()) if a != b]
print("same")
"""


def modules():
    names = ["core", "sweep"]
    for package in (core, sweep):
        inside = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        names += [module.name for module in inside if not module.name.endswith("__main__")]
    return names


def test_importing_every_module_changes_no_environment_and_nothing_of_ray():
    names = modules()
    assert len(names) > 100

    words = [sys.executable, "-P", "-c", CHECK, json.dumps([names, OTHERS])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603

    assert done.stdout == "same\n", done.stderr


def test_defaults_never_replace_what_the_user_has_set():
    for module in (library_environment, mlflow_server):
        environment = dict.fromkeys(list(module.DEFAULTS)[:1], "mine")

        module.set_defaults(environment)

        assert environment == module.DEFAULTS | dict.fromkeys(list(module.DEFAULTS)[:1], "mine")
