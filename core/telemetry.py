"""Switches off what other libraries send to their makers.

ONNX Runtime uploads events about each session and model, and leaves a file `.ses` in the temporary
folder; MLflow, Ray and the Hugging Face hub count their users. None of it is needed to prune a
recognizer, and nobody who starts a sweep asked for it.
"""

from collections.abc import MutableMapping

TELEMETRY_OFF = {
    "ORT_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Environment variables that each library reads when it is imported or started."""


def disable_telemetry(environment: MutableMapping[str, str]) -> None:
    """Ask libraries not to send usage data, unless the user has set the variable.

    Call it before the library is imported; child processes inherit the variables.

    Args:
        environment: variables of this process, which are changed.
    """
    for name, value in TELEMETRY_OFF.items():
        # A user who has set a variable, to whatever value, decides.
        environment.setdefault(name, value)
