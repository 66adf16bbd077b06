"""``cvt evaluate``: accuracy on labelled images."""

import typer

from cvt_cli import loader, options, output


def evaluate(
    data: options.Data,
    model: options.Model = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    data_dir: options.DataDir = None,
    res: options.Res = None,
    activation: options.Activation = None,
    exif: options.Exif = False,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    verbose: options.Verbose = False,
    json_output: options.Json = False,
) -> None:
    """Measure top-1 and top-5 accuracy on labelled images.

    Of a folder, val/ is taken, else test/, else its own class folders. Classes are matched by name.
    An image that cannot be read counts as wrong, is listed, and makes the exit code 1.

    Example: cvt evaluate --data cifar10 --model cvt-nano-cifar10
    """
    from cvt_cli import cache, datasets, evaluation

    images = datasets.open_dataset(data, "test", data_dir or cache.data_dir())
    classifier = loader.load_classifier(
        model,
        res,
        activation,
        device,
        precision,
        output.access(revision, offline, verbose),
        engine=engine,
        images=len(images),
    )
    output.note_conditions(classifier)
    class_index, how = datasets.match_classes(images.classes, classifier.labels)
    output.note(
        f"{len(images)} images in {len(images.classes)} classes below `{images.root}`, "
        f"matched by {how}"
    )
    result = evaluation.evaluate(
        classifier.engine,
        images,
        class_index,
        classifier.preprocessing,
        batch_size=batch_size,
        exif=exif,
        progress=output.progress,
    )
    for name, reason in result.failures:
        output.error(f"`{images.root / name}`: {reason}")
    if json_output:
        output.print_json({"data": data, **result.to_json(), **output.conditions(classifier)})
    else:
        low, high = result.top1_interval
        loss = "none readable" if result.loss is None else f"{result.loss:.4f} nats"
        print(
            f"top-1   {100 * result.top1:.2f} %  ({result.correct_top1} of {result.n}; "
            f"95 % interval {100 * low:.2f} to {100 * high:.2f})\n"
            f"top-5   {100 * result.top5:.2f} %  ({result.correct_top5} of {result.n})\n"
            f"loss    {loss}, cross-entropy\n"
            f"speed   {result.n / result.seconds:.0f} images/s, decoding included"
        )
    if result.failures:
        output.note(
            f"{len(result.failures)} of {result.n} images could not be read and count as wrong"
        )
        raise typer.Exit(1)
