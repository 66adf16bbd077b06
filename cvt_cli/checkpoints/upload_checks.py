"""Whether a folder is a checkpoint that can be sent to the hub, and what of it is sent."""

import shlex
from pathlib import Path

from cvt_cli.base.errors import CheckpointError
from cvt_cli.base.progress import Say
from cvt_cli.checkpoints import folders, headers
from cvt_cli.checkpoints.names import to_transformers
from cvt_cli.spec import costs

FILES = (folders.CONFIG_FILE, folders.PREPROCESSING_FILE, folders.WEIGHTS_FILE, folders.CARD_FILE)
"""What is sent of a folder; the card may be missing."""

EVAL_RESULTS = ".eval_results/*.yaml"
"""The results in the hub's present form, which are sent too."""

OWN_RESULTS = ".eval_results/cvt.yaml"
"""Those that `cvt card` writes; a repository's go where the folder has none any more."""


def checkpoint_of(run: Path) -> Path:
    """The checkpoint folder that is meant: a training run's best epoch, or the folder itself.

    Raises:
        CheckpointError: there is none; the message names what there is.
    """
    folder = folders.folder_of(run)
    if folder is None:
        raise CheckpointError(
            f"`{run}` is not a folder" if run.exists() else f"`{run}` does not exist",
            hint="name a run folder of `cvt finetune` or a checkpoint folder, then the "
            "repository: `cvt push RUN user/name`",
        )
    if (folder / folders.CONFIG_FILE).is_file():
        return folder
    if best := folders.best_of(folder):
        return best
    present = sorted(path.name for path in folder.iterdir())[:8]
    last = folder / folders.LAST
    raise CheckpointError(
        f"`{folder}` is neither a checkpoint folder nor a run with a finished epoch: it has no "
        f"`{folders.CONFIG_FILE}` and no `{folders.BEST}/{folders.CONFIG_FILE}`; it holds "
        f"{', '.join(present) or 'nothing'}",
        hint=f"`{last}` is a checkpoint and can be pushed by its name"
        if (last / folders.CONFIG_FILE).is_file()
        else None,
    )


def check_folder(folder: Path, say: Say) -> dict[str, int]:
    """Make sure that a folder is a checkpoint which others can use; reads no tensor.

    Args:
        folder: in the hub's form.
        say: told what whoever loads it will have to guess.

    Returns:
        Sizes in bytes of the files to send, by name.

    Raises:
        CheckpointError: a file is missing, unreadable or cut short, or the weights are not those
            that its config describes.
        ConfigError: a value that no published CvT has.
    """
    described = folders.read_folder(folder)
    weights = folder / folders.WEIGHTS_FILE
    if not weights.is_file():
        pickled = (folder / folders.PICKLED_WEIGHTS_FILE).is_file()
        raise CheckpointError(
            f"`{folder}` has no `{folders.WEIGHTS_FILE}`"
            + (
                f", but a `{folders.PICKLED_WEIGHTS_FILE}`, which is a pickle and is not pushed"
                * pickled
            ),
            hint=None if pickled else "the weights are written last, so this folder is incomplete",
        )
    if not (folder / folders.PREPROCESSING_FILE).is_file():
        raise CheckpointError(
            f"`{folder}` has no `{folders.PREPROCESSING_FILE}`, without which others "
            "do not know how to prepare images",
            hint="copy the one of the checkpoint that you started from",
        )
    card = folder / folders.CARD_FILE
    try:
        header = headers.safetensors_header(weights)
        for name in (folders.CONFIG_FILE, folders.PREPROCESSING_FILE):
            if not (folder / name).read_bytes().lstrip().startswith(b"{"):
                raise CheckpointError(
                    f"`{folder / name}` begins with a byte order mark, which transformers does "
                    "not read",
                    hint="save it as UTF-8 without a byte order mark",
                )
        if card.is_file():
            card.read_text(encoding="utf-8")
        else:
            say(f"`{folder}` has no model card (`{card.name}`): its page on the hub will be empty")
    except UnicodeDecodeError:
        raise CheckpointError(f"`{card}` is not in UTF-8, which the hub needs") from None
    except OSError as error:
        raise unreadable(error) from None
    found = {
        name: (shape, header.dtypes[name][:1] in "FB") for name, shape in header.shapes.items()
    }
    wanted = {
        to_transformers(name): shape
        for name, shape in costs.tensor_shapes(described.config).items()
    }
    if problems := headers.tensor_problems(found, wanted):
        is_reference = "head.weight" in found
        raise CheckpointError(
            f"`{weights}` does not match the `{folders.CONFIG_FILE}` beside it, as "
            "transformers reads it: " + headers.differences(problems),
            hint="its tensors have the reference's names; to write those of transformers: "
            f"`cvt export {shlex.quote(str(folder))} --format safetensors --output FOLDER`"
            if is_reference
            else None,
        )
    for note in described.notes:
        say(note.partition("; --")[0])  # whoever loads it has the options, not this command
    results = sorted(path for path in folder.glob(EVAL_RESULTS) if path.is_file())
    names = [*FILES, *(path.relative_to(folder).as_posix() for path in results)]
    return {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}


def unreadable(error: OSError) -> CheckpointError:
    return CheckpointError(f"`{error.filename}` cannot be read: {error.strerror or error}")
