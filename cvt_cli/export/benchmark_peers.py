"""What others run a CvT with, in a benchmark: `transformers`, and what it exports itself.

Imports torch only inside functions.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import machine
from cvt_cli.base.errors import UsageError
from cvt_cli.checkpoints import folders
from cvt_cli.checkpoints.names import to_transformers
from cvt_cli.engines import runtimes
from cvt_cli.spec.config import CvTConfig
from cvt_cli.spec.labels import unnamed

Peer = Literal["transformers", "transformers-openvino", "transformers-onnx"]
PEERS: tuple[Peer, ...] = get_args(Peer)

_NEEDED: dict[Peer, tuple[str, ...]] = {
    "transformers": ("transformers",),
    "transformers-openvino": ("transformers", "openvino"),
    "transformers-onnx": ("transformers", "onnx", "onnxscript", "onnxruntime"),
}

_FIRST_WITH_EXPORTERS = "5.23"


def exports(name: str) -> bool:
    """Whether a peer runs a file that is made first."""
    return name in PEERS and name != "transformers"


def require(peer: Peer) -> None:
    """Raises UsageError, with what installs it, if something that a peer needs is not there."""
    missing = [package for package in _NEEDED[peer] if not runtimes.installed(package)]
    if missing:
        raise UsageError(
            f"`{peer}` needs {' and '.join(f'`{name}`' for name in missing)}, not installed here",
            hint=f"pip install {' '.join(missing)}",
        )
    if exports(peer):
        found = find_spec("transformers")
        places = (found and found.submodule_search_locations) or ()
        if not any(Path(place, "exporters").is_dir() for place in places):
            raise UsageError(
                f"`{peer}` needs `transformers` {_FIRST_WITH_EXPORTERS} or later, which exports "
                f"models; installed is {machine.version_of('transformers')}",
                hint="pip install --upgrade transformers",
            )


def computes_in(peer: Peer, precision: str) -> bool:
    """Whether a peer is measured in a precision: eager and in ONNX in fp32 alone."""
    if peer == "transformers-openvino":
        return runtimes.computes_in("openvino", precision)
    return precision == "fp32"


def network(config: CvTConfig, state: Any = None) -> Any:
    """The network of `transformers`, eager, in float32; with these weights of ours."""
    from transformers import CvtConfig, CvtForImageClassification

    names = unnamed(config.num_classes)
    theirs: Any = CvtForImageClassification(
        CvtConfig(**folders.transformers_config(config, names, ""))
    )
    if state is not None:
        theirs.load_state_dict({to_transformers(name): tensor for name, tensor in state.items()})
    theirs.eval()
    return theirs


def export(peer: Peer, config: CvTConfig, height: int, width: int, folder: Path) -> Path:
    """The file that `transformers` makes of its network, for batches of any size.

    For ONNX without its option ``ort_fusions``, which makes CvT slower.
    """
    import torch
    from transformers.exporters import configs

    inputs = {"pixel_values": torch.zeros(2, 3, height, width)}
    free = {"pixel_values": {0: torch.export.Dim("batch", min=1)}}
    exporter: Any
    how: Any
    if peer == "transformers-openvino":
        from transformers.exporters.exporter_openvino import OpenVINOExporter

        path, exporter = folder / "theirs.xml", OpenVINOExporter
        how = configs.OpenVINOConfig(dynamic_shapes=free)
    else:
        from transformers.exporters.exporter_onnx import OnnxExporter

        path, exporter = folder / "theirs.onnx", OnnxExporter
        how = configs.OnnxConfig(dynamic_shapes=free)
    with _quiet():
        made = exporter().export(network(config), inputs, config=how)
        exporter.save_program(made.program, path)
    return path


def runner(
    peer: Peer, path: Path, precision: str, macs: int
) -> Callable[[NDArray[np.float32]], Any]:
    """What runs such a file, with the threads and hints that ours has."""
    threads = machine.threads_for(macs)
    if peer == "transformers-openvino":
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        return lambda batch: np.array(request.infer([batch], share_inputs=True)[0])
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own remarks from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)
