"""MLflow's model registry: versions of models and their aliases."""

from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from sweep.tracking.mlflow_client import find_run, is_deleted


class Registry:
    """MLflow's model registry."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client

    def has_run(self, run_id: str) -> bool:
        """Whether the run exists; one that lies in MLflow's bin is restored."""
        run = find_run(self.client, run_id)
        if run is not None and is_deleted(run):
            self.client.restore_run(run_id)
        return run is not None

    def find_version(self, name: str, tags: Mapping[str, str]) -> str | None:
        """The first version of a model that has these tags, and whose run still has its files."""
        conditions = "".join(f" AND tags.`{key}` = '{value}'" for key, value in tags.items())
        models = self.client.search_model_versions(f"name = '{name}'{conditions}")
        versions = (str(model.version) for model in models if self.has_run(str(model.run_id)))
        # As numbers, since "10" < "9" as texts.
        return min(versions, key=int, default=None)

    def register(
        self,
        name: str,
        folder: Path,
        *,
        run_id: str,
        path: str,
        tags: Mapping[str, str],
        description: str,
    ) -> str:
        """Create a new version from a folder, whose files become artifacts of the run.

        Args:
            name: the registered model's; it is created if it is missing.
            folder: the files.
            run_id: the run whose artifacts they become.
            path: their folder among the artifacts.
            tags: of the version.
            description: of the version.

        Returns:
            The version.
        """
        self.client.log_artifacts(run_id, str(folder), path)
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            # Another process may have created it between a question and this call, so nobody asks
            # first.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self.client.get_run(run_id).info.artifact_uri}/{path}"
        model = self.client.create_model_version(
            name, source, run_id=run_id, tags=dict(tags), description=description
        )
        return str(model.version)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Let an alias of a registered model mean this version."""
        self.client.set_registered_model_alias(name, alias, version)
