"""The process of one tool: records come by stdin, a line of JSON each, and go into the tool's run.

    python -m cvt_cli.tracking.worker wandb

The first record begins the run, or goes on with the one that the run's folder names. When stdin
ends without a last record the training was killed, and the tool's run stays to be gone on with.
"""

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

PROJECT = "cvt"
"""What the tool's project is called, unless its own environment variable says otherwise."""

QUIET = {
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Environment variables by which the tools tell nobody else that they are used."""


class Backend(Protocol):
    """A run of a tool."""

    def add(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self, how: str, card: str | None) -> None: ...


class _Kept:
    """Which of the tool's runs the run's folder is followed by."""

    def __init__(self, run: Path, name: str) -> None:
        self.path = run / "tracking" / f"{name}.json"
        try:
            self.values: dict[str, str] = json.loads(self.path.read_text())
        except (OSError, ValueError):
            self.values = {}

    def id(self) -> str:
        """A name that no other run has."""
        if "id" not in self.values:
            self.write(id=secrets.token_hex(4))
        return self.values["id"]

    def write(self, **values: str) -> None:
        self.values |= values
        whole = self.path.with_suffix(".tmp")  # killed in between, the run would begin another
        whole.write_text(json.dumps(self.values) + "\n")
        os.replace(whole, self.path)


class _Trackio:
    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        import trackio

        self._trackio = trackio
        name = f"{run.name}-{_Kept(run, 'trackio').id()}"
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=name,
            config=settings,
            resume="allow",  # its default is not to, and to begin another run
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def finish(self, how: str, card: str | None) -> None:
        if card:
            self._trackio.log({"card": self._trackio.Markdown(card)})
        self._trackio.finish()


class _Wandb:
    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        self._id = _Kept(run, "wandb").id()
        known = wandb.api.api_key is not None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=self._id,
            dir=run / "tracking",
            config=settings,
            resume="allow",
            mode=None if known or "WANDB_MODE" in os.environ else "offline",
        )
        self._run.define_metric("*", step_metric="step")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def finish(self, how: str, card: str | None) -> None:
        if card:
            artifact = self._wandb.Artifact(f"card-{self._id}", type="model-card")
            with artifact.new_file("README.md") as file:
                file.write(card)
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=0 if how == "finished" else 1)


class _Mlflow:
    _STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        kept = _Kept(run, "mlflow")
        here = f"sqlite:///{Path('mlflow.db').resolve()}"
        store = kept.values.get("store") or os.environ.get("MLFLOW_TRACKING_URI") or here
        mlflow.set_tracking_uri(store)
        if "id" in kept.values:
            mlflow.start_run(run_id=kept.values["id"])
            return
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        kept.write(store=store, id=mlflow.start_run(run_name=run.name).info.run_id)
        mlflow.log_params({name: str(value)[:500] for name, value in settings.items()})

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def finish(self, how: str, card: str | None) -> None:
        if card:
            self._mlflow.log_text(card, "README.md")
        self._mlflow.end_run(self._STATUS[how])


_BACKENDS: dict[str, Callable[[Path, dict[str, Any]], Backend]] = {
    "trackio": _Trackio,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
}


def serve(name: str, lines: Iterable[str]) -> None:
    """Tell a tool what comes, until the end.

    Args:
        name: of the tool.
        lines: of JSON, as `feed` writes them.
    """
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    backend: Backend | None = None
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # half a line: whoever trained was killed
            break
        if begin := record.get("begin"):
            backend = _BACKENDS[name](Path(begin["run"]), begin["settings"])
            continue
        assert backend is not None
        if how := record.get("finish"):
            card = record["card"] and Path(record["card"]).read_text(encoding="utf-8")
            backend.finish(how, card)
            return
        backend.add(record["step"], record["values"])
    if backend is not None:  # whoever trained was killed
        backend.finish("stopped", None)


if __name__ == "__main__":
    serve(sys.argv[1], sys.stdin)
