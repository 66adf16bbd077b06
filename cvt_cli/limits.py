"""What a file that a stranger wrote may ask for, before anything is built by it.

Each is far above what any CvT has or needs, and low enough that a number in a small file cannot
take the machine's memory or its time.
"""

LARGEST_SIZE = 2048
"""Height and width in pixels of the network's input; published models take 224 and 384."""

LARGEST_SHORTER_SIDE = 4 * LARGEST_SIZE
"""Pixels that an image's shorter side is resized to before the crop."""

LARGEST_MEAN = 100.0
LARGEST_STD, SMALLEST_STD = 100.0, 1e-3
"""Of pixels that go from 0 to 1, per channel; ImageNet's are 0.4 to 0.5 and 0.2."""

MOST_CLASSES = 1_000_000
"""Of the head; ImageNet-22k has 21,841 classes."""

MOST_STAGES = 8
MOST_BLOCKS = 1_000
"""Of a stage; CvT-W24's last one has 20."""

LARGEST_WIDTH = 16_384
"""Channels of a token; CvT-W24's last stage has 1024."""

LARGEST_KERNEL = 64
"""Kernel and stride of a token embedding; published are 7 and 4."""

LARGEST_MLP_RATIO = 64

LARGEST_CONFIG_BYTES = 64 * 1024**2
"""Of `config.json` and `preprocessor_config.json`; one with 21,841 class names has 2 MB."""

LARGEST_HEADER_BYTES = 100_000_000
"""Of a safetensors file, as its own library has it."""
