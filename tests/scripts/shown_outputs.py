"""What the command lines in README and docs print, typed again and put into the pages.

    python tests/scripts/shown_outputs.py [PAGE...]

Lines that the tests run are renewed; what took a GPU, a data set or hours stays as it is.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import doc_pages  # noqa: E402

if __name__ == "__main__":
    for page in [Path(name).resolve() for name in sys.argv[1:]] or doc_pages.PAGES:
        with tempfile.TemporaryDirectory() as place:
            places = doc_pages.sandbox(Path(place))
            environment = {**os.environ, "CVT_CACHE": f"{place}/cache", "HF_HOME": f"{place}/hf"}
            environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(doc_pages.ROOT)}
            for line in list(doc_pages.lines(page)):
                if doc_pages.kind(line) != "run":
                    continue
                printed = subprocess.run(
                    [sys.executable, "-m", "cvt_cli", *line.words],
                    cwd=places.of(line), env=environment, stdout=subprocess.PIPE, text=True,
                ).stdout  # fmt: skip
                before, after = line.place
                if after and not (line.shown and doc_pages.alike(line.shown, printed)):
                    at = page.read_text().index(f"$ {line}\n") + len(f"$ {line}\n")
                    text = page.read_text()
                    text = text[:at] + printed.rstrip() + "\n" + text[at + after - before :]
                    page.write_text(text)
