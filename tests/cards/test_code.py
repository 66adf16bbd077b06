"""The lines that a card shows for other tools run as they stand there."""

import re
import shutil
from pathlib import Path

import pytest

from cvt_cli.model import weights
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing
from tests_shared import CHELSEA, TINY, golden_model, python


@pytest.mark.slow
def test_the_code_of_a_card_runs_as_it_is(cvt, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(CHELSEA, "photo.jpg")
    labels = Labels(tuple("abcdefghij"))
    weights.save(Path("MODEL"), golden_model(TINY), labels, Preprocessing(64, 64, "crop"), "")
    text = cvt("card", "MODEL", "-o", "card.md") and Path("card.md").read_text()
    exported = cvt("export", "MODEL", "--output", "model.onnx", "--with-preprocessing")
    assert exported.exit_code == 0, exported.stderr
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    shell = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1]

    answers = [python(block) for block in blocks]

    for answer in answers:
        assert answer.exit_code == 0, answer.stderr
        assert re.search(r"\b[a-j]\b", answer.stdout)
    for line in re.findall(r"^cvt (.+)$", shell, re.MULTILINE):
        assert cvt(*line.split()).exit_code == 0
