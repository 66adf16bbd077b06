"""``torchrun --standalone`` whose processes are forks of this one, which has imported torch.

They are watched by torch's own agent and find in the environment all that it sets; what it would
start as new interpreters takes 3 seconds of a core each. Arguments: how many, then those of
``torchrun``: ``-m MODULE ...`` or ``SCRIPT ...``.
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

    count = int(sys.argv[1])
    config = LaunchConfig(
        1, 1, count, run_id=str(uuid.uuid4()), rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        start_method="fork", max_restarts=0,
    )  # fmt: skip
    try:
        elastic_launch(config, run)(sys.argv[2:])
    except ChildFailedError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
