"""A page of thumbnails with their answers: one HTML file that needs nothing else."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import IO, Any

from cvt_cli.prediction.answers import UNKNOWN, Answer
from cvt_cli.prediction.whole import WholeFile

_STYLE = """
:root { color-scheme: light dark; --back: #f4f4f2; --card: #fff; --text: #1b1b1b; --soft: #6b6b6b;
  --bar: #d9e4f5; --line: #e2e2df; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --back: #161616; --card: #222; --text: #eee;
  --soft: #9a9a9a; --bar: #2f4668; --line: #333; --bad: #f2867f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 14px/1.4 system-ui, sans-serif; }
header { position: sticky; top: 0; z-index: 1; padding: 12px 20px; background: var(--back);
  border-bottom: 1px solid var(--line); }
h1 { margin: 0 0 2px; font-size: 18px; }
header p { margin: 0 0 8px; color: var(--soft); font-size: 12px; }
input, select { font: inherit; padding: 4px 8px; border: 1px solid var(--line); border-radius: 6px;
  background: var(--card); color: inherit; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(224px, 1fr)); gap: 14px;
  padding: 16px 20px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; content-visibility: auto; contain-intrinsic-size: 224px 380px; }
figure .picture { height: 224px; display: flex; align-items: center; justify-content: center;
  background: var(--back); }
figure img { max-width: 100%; max-height: 100%; }
figcaption { padding: 10px 12px 12px; }
.best { display: flex; justify-content: space-between; gap: 8px; font-size: 16px;
  font-weight: 600; }
.unknown .best span:first-child { font-style: italic; color: var(--soft); }
.row { display: flex; justify-content: space-between; gap: 8px; margin-top: 3px; padding: 1px 6px;
  border-radius: 4px; font-size: 12px;
  background: linear-gradient(to right, var(--bar) var(--share), transparent var(--share)); }
.path { margin-top: 8px; color: var(--soft); font-size: 11px; overflow-wrap: anywhere; }
.failed { color: var(--bad); padding: 24px; text-align: center; }
.hidden { display: none; }
"""

_SCRIPT = """
const cards = [...document.querySelectorAll("figure")];
const words = document.querySelector("input"), order = document.querySelector("select");
const shown = document.querySelector("#shown"), main = document.querySelector("main");
function filter() {
  const wanted = words.value.toLowerCase();
  let count = 0;
  for (const card of cards) {
    const fits = card.dataset.words.includes(wanted);
    card.classList.toggle("hidden", !fits);
    count += fits;
  }
  const of = count === cards.length ? "" : ` of ${cards.length}`;
  shown.textContent = `${count}${of} images`;
}
function sort() {
  const by = order.value, score = card => Number(card.dataset.score);
  const sorted = by === "given" ? cards
    : [...cards].sort((a, b) => by === "sure" ? score(b) - score(a) : score(a) - score(b));
  main.append(...sorted);
}
words.addEventListener("input", filter);
order.addEventListener("change", sort);
filter();
"""


def start(model: str, describe: str) -> str:
    """The page up to its first card; ``describe`` tells the conditions in a line."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(model)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(model)}</h1>
<p>{escape(describe)}</p>
<input type="search" placeholder="class or file name" aria-label="Filter">
<select aria-label="Order"><option value="given">as given</option>
<option value="sure">surest first</option><option value="unsure">least sure first</option></select>
<span id="shown"></span>
</header>
<main>
"""


def card(answer: Answer) -> str:
    """One image with its classes, or why it could not be read."""
    path = escape(answer.path)
    if answer.error is not None:
        words = escape(f"{answer.path} {answer.error}".lower())
        return (
            f'<figure data-words="{words}" data-score="-1"><div class="picture failed">'
            f'{escape(answer.error)}</div><figcaption><div class="path">{path}</div>'
            "</figcaption></figure>\n"
        )
    best = answer.predictions[0]
    named = answer.answer or best.label
    words = escape(" ".join([answer.path, named, *(p.label for p in answer.predictions)]).lower())
    kind = ' class="unknown"' if named == UNKNOWN else ""
    picture = base64.b64encode(answer.thumbnail or b"").decode()
    rows = "".join(
        f'<div class="row" style="--share: {100 * p.score:.1f}%"><span>{escape(p.label)}</span>'
        f"<span>{100 * p.score:.1f} %</span></div>"
        for p in answer.predictions
    )
    return (
        f'<figure{kind} data-words="{words}" data-score="{best.score:.6f}">'
        f'<div class="picture"><img alt="" src="data:image/jpeg;base64,{picture}"></div>'
        f'<figcaption><div class="best"><span>{escape(named)}</span></div>{rows}'
        f'<div class="path">{path}</div></figcaption></figure>\n'
    )


END = f"""</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


class Page(WholeFile):
    """A self-contained HTML page of thumbnails with their answers."""

    def __init__(self, path: Path, conditions: Mapping[str, Any], describe: str) -> None:
        self._start = start(str(conditions["model"]), describe)
        super().__init__(path)

    def _begin(self) -> None:
        self._file: IO[str] = self._stack.enter_context(
            self._temporary.open("w", encoding="utf-8", errors="backslashreplace")
        )
        self._file.write(self._start)

    def _add(self, answer: Answer) -> None:
        self._file.write(card(answer))

    def _finish(self) -> None:
        self._file.write(END)
