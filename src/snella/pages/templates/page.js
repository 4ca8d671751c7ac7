"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

function show(key) {
  const found = data.galleries[key], place = document.querySelector(".clicked");
  if (!found || !place) return;
  const shots = document.createElement("div");
  shots.className = "shots";
  for (const shot of found.shots) {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    if (shot.thumbnail !== null) {
      const image = document.createElement("img");
      image.alt = shot.name;
      image.src = data.thumbnails[shot.thumbnail];
      figure.append(image);
    }
    const name = document.createElement("small");
    name.textContent = shot.name;
    caption.append(shot.text, name);
    figure.append(caption);
    shots.append(figure);
  }
  const title = document.createElement("p");
  title.textContent = found.title + (found.left_out ? ` (${found.left_out.toLocaleString("en")} more are not shown)` : "");
  place.replaceChildren(title, shots);
  place.scrollIntoView({ block: "nearest", behavior: "smooth" });
}

for (const image of document.querySelectorAll("img[data-thumbnail]")) image.src = data.thumbnails[image.dataset.thumbnail];
for (const button of document.querySelectorAll("[data-shows]")) button.onclick = () => show(button.dataset.shows);

for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
  const column = [...head.parentElement.children].indexOf(head), down = head.getAttribute("aria-sort") !== "descending";
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) => (isNaN(a) || isNaN(b) ? String(a).localeCompare(String(b), "en", { numeric: true }) : a - b);
  const rows = [...body.rows].sort((a, b) => compare(value(a), value(b)) * (down ? -1 : 1));
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...rows);
};

for (const place of document.querySelectorAll("[data-chart]")) {
  const options = { actions: false, renderer: "svg", mode: "vega-lite", logLevel: 1 };
  vegaEmbed(place, data.charts[place.dataset.chart], options).then(({ view }) =>
    view.addEventListener("click", (event, item) => item && item.datum && show(item.datum.cell)));
}
