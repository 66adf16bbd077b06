"""What a benchmark runs: networks, and the engines and precisions that each of them can run on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from cvt_cli.base.errors import UsageError
from cvt_cli.checkpoints import export_metadata
from cvt_cli.checkpoints.architecture import architectures_of
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.checkpoints.export_metadata import Record
from cvt_cli.checkpoints.locate import Access, find
from cvt_cli.engines import runtimes
from cvt_cli.export import benchmark_peers, quantise
from cvt_cli.export.benchmark_peers import PEERS, Peer
from cvt_cli.spec.config import CvTConfig, Size
from cvt_cli.spec.costs import costs
from cvt_cli.spec.formats import (
    FORMATS,
    PRECISIONS,
    EngineName,
    FilePrecision,
    GraphFormat,
    Precision,
    Runtime,
)

Name = EngineName | Peer
NAMES: tuple[Name, ...] = (*get_args(EngineName), *PEERS)


@dataclass(frozen=True)
class Network:
    """What a side runs, and where."""

    name: str
    config: CvTConfig
    height: int  # of the images in pixels
    width: int
    macs: int  # multiply-accumulates of one image
    device: str = "cpu"  # of torch and transformers; the other engines run on the CPU
    file: Path | None = None  # one that `cvt export` wrote; else the weights are random
    form: GraphFormat | None = None  # of the file
    record: Record | None = None  # what it says of itself

    @classmethod
    def of(cls, name: str, config: CvTConfig, height: int, width: int) -> "Network":
        """One with random weights."""
        return cls(name, config, height, width, costs(name, config, height, width).macs)

    @classmethod
    def of_graph(cls, graph: Checkpoint, size: Size | None = None) -> "Network":
        """One that was exported.

        Raises:
            UsageError: it does not take this size.
            CheckpointError: it is damaged, or another tool wrote it.
        """
        record = export_metadata.read(graph.path).at(size, graph.path)
        height, width = record.preprocessing.size
        network = cls.of(graph.name, record.config, height, width)
        return replace(network, file=graph.path, form=graph.format, record=record)

    def to_json(self) -> dict[str, int]:
        """What tells it from others, by the documented keys of a benchmark."""
        return {"height": self.height, "width": self.width, "macs": self.macs}

    @property
    def engines(self) -> tuple[Name, ...]:
        """Those that run the file, its own first."""
        assert self.form is not None
        return FORMATS[self.form].engines


@dataclass(frozen=True)
class Side:
    """One way to run a network."""

    engine: Name  # "transformers": its eager network
    precision: FilePrecision
    batch_size: int
    network: Network

    @property
    def in_int8(self) -> Runtime | None:
        """The runtime that has a graph of its own, in 8 bits."""
        if self.precision != "int8":
            return None
        return next((name for name in get_args(Runtime) if name == self.engine), None)

    @property
    def needs_graph(self) -> bool:
        """Whether it runs a graph of ours that is still to be made."""
        return self.network.file is None and self.engine in ("onnxruntime", "openvino")


def network_of(variant: str | None, model: str | None, res: str | None, access: Access) -> Network:
    """A variant, or a model; by default CvT-13.

    Raises:
        UsageError: both, no such size, or a file does not take it.
        CheckpointError, ConfigError: as `architectures_of`, or a file is damaged.
    """
    found = find(model, access) if model is not None else None
    if isinstance(found, Checkpoint) and found.kind == "graph":
        return Network.of_graph(found, Size.of(res))
    wanted = variant or (None if model else "13")
    ((costs_of, config),) = architectures_of(wanted, model, res, None, access)
    return Network.of(costs_of.variant, config, costs_of.height, costs_of.width)


def sides_of(
    networks: Sequence[Network],
    engines: Sequence[str] | None,
    precisions: Sequence[str],
    batch_sizes: Sequence[int],
    against: Sequence[str] = (),
) -> list[Side]:
    """Every combination that can run; the baseline first for each batch size.

    Args:
        networks: a file runs in its own precision; the first one's architecture is the baseline's.
        engines: None for all that are installed, of a file its own.
        precisions: of what is no file.
        batch_sizes: images per call.
        against: `PEERS`, in fp32 and in what else they are measured in; the first is the baseline.

    Raises:
        UsageError: an engine or precision that does not exist, an engine that is not installed or
            does not run a file, or no combination that can run.
    """
    asked = None if engines is None else [_engine(name) for name in engines]
    peers = [_peer(name) for name in dict.fromkeys(against)]
    wanted = [_answer_precision(name) for name in precisions]
    found = []
    installed: list[Name] = [name for name in get_args(EngineName) if runtimes.installed(name)]
    for batch_size in batch_sizes:
        plain = replace(networks[0], file=None, record=None)
        found += [
            Side(peer, precision, batch_size, plain)
            for peer in peers
            for precision in dict.fromkeys([_answer_precision("fp32"), *wanted])
            if benchmark_peers.computes_in(peer, precision)
        ]
        for network in networks:
            if network.record is not None:
                found += _sides_of_file(network, network.record, asked, batch_size)
                continue
            found += [
                Side(engine, precision, batch_size, network)
                for engine in (installed if asked is None else asked)
                for precision in wanted
                if not is_lacking(engine, precision, network.device)
            ]
    if not found:
        engines = installed if asked is None else asked
        raise nothing_to_measure(engines, wanted, networks[0].device)
    for side in found:
        if side.needs_graph and side.in_int8 is not None:
            quantise.require(side.in_int8)
    return found


def nothing_to_measure(
    engines: Sequence[str], precisions: Sequence[str], device: str
) -> UsageError:
    """What to tell the user where no engine computes in any of the precisions."""
    return UsageError(
        f"there is nothing to measure: {' and '.join(f'`{name}`' for name in engines)} cannot "
        f"compute in {' or '.join(f'`{name}`' for name in precisions)} on `{device}`",
        hint="--precision fp32 works with every engine",
    )


def engines_of(names: Sequence[str]) -> list[EngineName]:
    """Engines of ours by name; of none, all that are installed."""
    for name in names:
        _engine(name)
    return [
        name
        for name in get_args(EngineName)
        if (name in names if names else runtimes.installed(name))
    ]


def _peer(name: str) -> Peer:
    """Raises UsageError if there is no peer of this name, or what it needs is not installed."""
    found = next((known for known in PEERS if known == name), None)
    if found is None:
        accepted = ", ".join(f"`{known}`" for known in PEERS)
        raise UsageError(f"--against: there is no `{name}`; accepted are {accepted}")
    benchmark_peers.require(found)
    return found


def _engine(name: str) -> Name:
    """Raises UsageError if there is no engine of this name, or it is not installed."""
    found: Name | None = next((known for known in NAMES if known == name), None)
    if found is None:
        raise UsageError(
            f"there is no engine `{name}`; accepted are `torch`, `onnxruntime`, `openvino`"
        )
    if found in PEERS:
        return _peer(found)
    if not runtimes.installed(name):
        raise UsageError(f"`{name}` is not installed", hint=f"pip install {name}")
    return found


def precision_of(name: str, *more: str) -> Precision:
    """Raises UsageError, which names ``more`` too, if random weights run in none of this name."""
    found: Precision | None = next((k for k in get_args(Precision) if k == name), None)
    if found is None:
        accepted = ", ".join(["`fp32`", "`bf16`", "`fp16`", *more])
        raise UsageError(f"there is no precision `{name}`; accepted are {accepted}")
    return found


def _answer_precision(name: str) -> FilePrecision:
    """Likewise, with the precision that only graphs are in."""
    return "int8" if name == "int8" else precision_of(name, "`int8`")


def is_lacking(engine: Name, precision: FilePrecision, device: str) -> bool:
    """Whether an engine does not run random weights in a precision."""
    if precision == "int8":
        return engine not in get_args(Runtime)
    if engine == "torch" and device == "cpu" and precision == "fp16":
        return True
    peer = next((known for known in PEERS if known == engine), None)
    if peer is not None:
        return not benchmark_peers.computes_in(peer, precision)
    return all(precision not in able for name, able in PRECISIONS.items() if name == engine)


def _sides_of_file(
    network: Network, record: Record, engines: Sequence[Name] | None, batch_size: int
) -> list[Side]:
    found = []
    for engine in network.engines[:1] if engines is None else engines:
        if engine in network.engines:
            found.append(Side(engine, record.precision, batch_size, network))
        else:
            runs = " and ".join(f"`{name}`" for name in network.engines)
            raise UsageError(f"`{network.file}` runs on {runs}, not on `{engine}`")
    return found
