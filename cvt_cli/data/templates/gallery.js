// The page can be read without this; it adds filters and other orders.
const main = document.querySelector("main"), cards = [...main.querySelectorAll("figure")];
const controls = document.querySelector(".controls"), shown = document.querySelector("#shown");
const words = document.querySelector("input"), order = document.querySelector("select");
const buttons = [...document.querySelectorAll(".chip")].map(chip => {
  const button = document.createElement("button");
  button.className = "chip";
  button.type = "button";
  Object.assign(button.dataset, chip.dataset);
  button.append(...chip.childNodes);
  button.setAttribute("aria-pressed", "false");
  chip.replaceWith(button);
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    for (const other of buttons) other.setAttribute("aria-pressed", other === button && on);
    filter();
  });
  return button;
});
function fits(card, chosen) {
  if (!card.dataset.words.includes(words.value.toLowerCase())) return false;
  if (!chosen) return true;
  return chosen.dataset.kind ? card.classList.contains(chosen.dataset.kind)
    : (card.dataset.classes?.split("|") ?? [card.dataset.class]).includes(chosen.dataset.class);
}
function filter() {
  const chosen = buttons.find(button => button.getAttribute("aria-pressed") === "true");
  let count = 0;
  for (const card of cards) {
    card.hidden = !fits(card, chosen);
    count += !card.hidden;
  }
  shown.textContent = count === cards.length ? "" : `${count} of ${cards.length} images`;
}
function sort() {
  const by = order.value, sign = by === "sure" ? -1 : 1;
  const key = card => sign * Number(by === "given" ? card.dataset.order : card.dataset.score);
  const keyed = cards.map(card => [key(card), card]).sort((a, b) => a[0] - b[0]);
  // Moving the cards would make the browser read every picture again.
  keyed.forEach(([, card], place) => { card.style.order = place; });
}
words.addEventListener("input", filter);
order.addEventListener("change", sort);
controls.hidden = false;
