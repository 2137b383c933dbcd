// What the pages to play with are put together from: elements, choices, tables of grey cells.
"use strict";

const make = (tag, text = "", attributes = {}) => {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

// A cell's background between white, at 0, and a colour, at 1.
function tint(cell, colour, strength) {
  const mixed = colour.map((part) => Math.round(255 - strength * (255 - part)));
  cell.style.background = `rgb(${mixed.join()})`;
}

// A number between 0 and 1 as a grey cell that also says it.
function shade(share, say = (one) => one.toFixed(2)) {
  const cell = make("td", share === undefined ? "" : say(share));
  if (share === undefined) return cell;
  cell.dataset.value = share;
  tint(cell, [0, 0, 0], share);
  cell.style.color = share > 0.54 ? "#fff" : "#000";       // whichever is told apart more easily
  return cell;
}

function row(title, cells) {
  const made = make("tr");
  made.append(make("th", title, { scope: "row" }), ...cells);
  return made;
}

function tableOf(caption, heads) {
  const table = make("table"), head = make("tr");
  head.append(...heads.map((text) => make("th", text, { scope: "col" })));
  table.append(make("caption", caption), make("thead"), make("tbody"));
  table.tHead.append(head);
  return table;
}

function scrolled(part) {
  const box = make("div", "", { class: "explorable-table", tabindex: 0 });
  box.append(part);
  return box;
}

function button(text, press) {
  const made = make("button", text, { type: "button" });
  made.addEventListener("click", press);
  return made;
}

function choice(label, options, start, change) {
  const line = make("label", label), select = make("select");
  options.forEach((text, index) => select.append(make("option", text, { value: index })));
  select.value = start;
  select.addEventListener("change", () => change(Number(select.value)));
  line.append(select);
  return line;
}
