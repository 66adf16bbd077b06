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
