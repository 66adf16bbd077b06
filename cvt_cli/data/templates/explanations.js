// Draws the maps from their numbers: where their cells lie, as geometry.py computes it.
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const scales = JSON.parse(document.querySelector("#scales").textContent).map(bytes);
const fade = document.querySelector("#fade"), HATCH = 8;

// For each pixel along an axis the cell before it and the share of the next; none if not seen.
function places([photo, resized, corner, input], [stride, offset], cells, length) {
  return Array.from({length}, (_, i) => {
    const place = (i + .5) * resized / length - corner;
    if (place < 0 || place > input) return null;
    const at = Math.min(Math.max((place - offset) / stride, 0), cells - 1);
    const first = Math.min(Math.floor(at), Math.max(cells - 2, 0));
    return [first, Math.min(first + 1, cells - 1), at - first];
  });
}
function draw(canvas, view, map) {
  const {width, height} = canvas, [rows, columns] = map.shape, values = map.numbers;
  const down = places(view[0], map.grid, rows, height);
  const across = places(view[1], map.grid, columns, width);
  const pixels = new ImageData(width, height), colours = scales[map.signed ? 1 : 0];
  const most = fade.value / 75;
  for (let y = 0, at = 0; y < height; y++) for (let x = 0; x < width; x++, at += 4) {
    const r = down[y], c = across[x];
    if (!r || !c) {
      const line = (x + y) % HATCH < 2 ? 90 : 150;
      pixels.data.set([line, line, line, 200], at);
      continue;
    }
    const upper = values[r[0] * columns + c[0]] * (1 - c[2]) + values[r[0] * columns + c[1]] * c[2];
    const lower = values[r[1] * columns + c[0]] * (1 - c[2]) + values[r[1] * columns + c[1]] * c[2];
    const value = upper * (1 - r[2]) + lower * r[2], index = Math.round(value);
    const strength = map.signed ? Math.abs(2 * value / 255 - 1) : value / 255;
    const alpha = 255 * Math.min(1, most * (.15 + .6 * strength));
    pixels.data.set([...colours.subarray(3 * index, 3 * index + 3), alpha], at);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}
// What is strongest, as one map of all heads.
function mean(heads) {
  const sum = new Float32Array(heads[0].length);
  for (const head of heads) head.forEach((value, i) => { sum[i] += value; });
  const low = Math.min(...sum), high = Math.max(...sum);
  return sum.map(value => high > low ? 255 * (value - low) / (high - low) : 0);
}
function begin(card) {
  const {view, maps} = JSON.parse(card.querySelector("script").textContent);
  const photo = card.querySelector(".photo"), said = card.querySelector(".said");
  const canvas = document.createElement("canvas");
  for (const side of ["width", "height"]) canvas[side] = Number(photo.getAttribute(side));
  canvas.setAttribute("role", "img");
  canvas.style.backgroundImage = `url(${photo.src})`;
  card.querySelector(".pair").append(canvas);
  const groups = [...card.querySelectorAll(".choice")];
  const heads = card.querySelector('[data-choice="heads"]');
  const [block, head] = heads ? heads.querySelectorAll("select") : [];
  const chosen = name => groups.find(g => g.dataset.choice === name)
    ?.querySelector('[aria-pressed="true"]');
  function show() {
    const method = chosen("method").dataset.value, wanted = Number(chosen("class")?.dataset.value ?? 0);
    const map = maps.find(m => m.method === method && (m.class === null || m.class === wanted));
    let shown = {...map, numbers: bytes(map.values)}, where = "";
    if (heads) heads.hidden = !map.heads;
    if (map.heads && block.value) {
      const all = map.heads.values[Number(block.value)].map(bytes);
      shown = {...map, ...map.heads, numbers: head.value ? all[Number(head.value)] : mean(all)};
      where = `, block ${block.value}, ${head.value ? "head " + head.value : "mean of the heads"}`;
    }
    if (head) head.disabled = !block.value;
    if (chosen("class")) said.textContent = chosen("class").textContent;
    canvas.setAttribute("aria-label", `Map of ${method}${where}, for ${map.class === null ? "every class" : said.textContent}`);
    draw(canvas, view, shown);
  }
  for (const group of groups) for (const button of group.children) {
    button.hidden = false;
    button.addEventListener("click", () => {
      for (const other of group.children) other.setAttribute("aria-pressed", other === button);
      show();
    });
  }
  if (heads) heads.addEventListener("change", show);
  show();
  return show;
}
const again = [...document.querySelectorAll(".explanation")].map(begin);
fade.addEventListener("input", () => again.forEach(show => show()));
document.querySelector("header .controls").hidden = false;
