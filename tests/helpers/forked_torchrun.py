"""``torchrun --standalone`` whose processes are forks of this one, which has imported torch.

They are watched by torch's own agent and find in the environment all that it sets; what it would
start as new interpreters takes 3 seconds of a core each. Arguments: how many, with ``+1`` behind it
for ``--max-restarts 1``, then those of ``torchrun``: ``-m MODULE ...`` or ``SCRIPT ...``.
"""

import atexit
import runpy
import sys
import uuid

from warm_server import leave


def run(words: list[str]) -> None:
    """What each process does; the agent waits for its return, or for a status other than 0."""
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as error:
        if error.code:
            leave(error.code if isinstance(error.code, int) else 1)
    atexit._run_exitfuncs()


def main() -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count, _, restarts = sys.argv[1].partition("+")
    config = LaunchConfig(
        1, 1, int(count), run_id=str(uuid.uuid4()), rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", start_method="fork", max_restarts=int(restarts or 0),
        monitor_interval=0.1,
    )  # fmt: skip
    try:
        elastic_launch(config, run)(sys.argv[2:])
    except ChildFailedError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
