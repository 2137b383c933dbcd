// What a layer keeps: the memories of one stage, counted while you move the sliders.
// The formulas are those of notebooks 05 and 11. A test holds every number to the library's own counts.
"use strict";

// How many neighbours the query's and the key's convolution along the channels sees: the rule of ECA.
function taps(channels) {
  const whole = Math.trunc(Math.abs((Math.log2(channels) + 1) / 2));
  return whole % 2 ? whole : whole + 1;
}

function headDim(channels, largest) {
  let d = Math.min(channels, largest);
  while (channels % d) d -= 1;
  return d;
}

// A stage of `layers` layers, maps of channels x size x size, float32. Of each memory: the maps handed on
// after the last layer, the maps that training keeps for the backward pass, the bytes of both for `batch`
// images (rows of queries, keys and weights included), and the attention's multiply-adds for one image.
function countMemories({ layers: T, channels: C, size, batch }) {
  const entries = C * size * size;          // of one map
  const pairs = T * (T + 1) / 2;            // a layer and one that it reads
  const row = taps(C) * C;                  // multiply-adds of one query or key
  const bytes = (maps, rows) => 4 * batch * (maps * entries + rows);
  const wide = headDim(C, 32), narrow = headDim(C, 16);
  const summed = (pairs - 1) * entries;     // the weighted sums, from two layers on
  return [
    {
      name: "Eq. 4", handed: T, handedBytes: bytes(T, 0),
      kept: pairs + T, keptBytes: bytes(pairs + T, C * (3 * pairs + 2 * T) + pairs * C / wide),
      macs: pairs * 9 * entries + (pairs + T) * row + pairs * C + summed,
    },
    {
      name: "MRLA-base", handed: T, handedBytes: bytes(T, T * C),
      kept: 2 * T, keptBytes: bytes(2 * T, 2 * C * (T + pairs) + pairs * C / narrow),
      macs: T * 9 * entries + 2 * T * row + pairs * C + summed,
    },
    {
      name: "running state", handed: wide, handedBytes: bytes(wide, 0),
      kept: (2 + wide) * T, keptBytes: bytes((2 + wide) * T, 3 * C * T),
      macs: T * 9 * entries + 2 * T * row + 2 * T * wide * entries,     // writing k v, reading with q
    },
    {
      name: "MRLA-light", handed: 1, handedBytes: bytes(1, 0),
      // the first layer carries one zero a channel, whatever the batch
      kept: 3 * T - 1, keptBytes: bytes(3 * T - 1, T * (4 * C + C / wide)) + 4 * C,
      macs: T * 9 * entries + 2 * T * row + T * C,
    },
  ];
}

const DEPTHS = Array.from({ length: 24 }, (_, index) => index + 1);
const SLIDERS = [
  { key: "layers", label: "layers in the stage, T", values: DEPTHS, start: 9 },
  { key: "channels", label: "channels, C", values: [8, 16, 32, 64, 128, 256, 512], start: 64 },
  { key: "size", label: "height and width", values: [4, 7, 8, 14, 16, 28, 32, 56, 64], start: 32 },
  { key: "batch", label: "images in a batch", values: [1, 2, 4, 8, 16, 32, 64, 128, 256], start: 32 },
];
const LOOKS = {         // the course's colours; each line has a dash and a label of its own besides
  "Eq. 4": { colour: "#CC79A7", dash: "" }, "MRLA-base": { colour: "#D55E00", dash: "7 3" },
  "running state": { colour: "#A08B00", dash: "2 3" }, "MRLA-light": { colour: "#0072B2", dash: "10 3 2 3" },
};

function svg(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

// Maps kept for training against the number of layers, for each memory; the chosen number is marked.
function draw(picture, chosen) {
  const last = DEPTHS.at(-1), highest = last * (last + 3) / 2;
  const x = (layers) => 40 + (layers - 1) / (last - 1) * 380;
  const y = (maps) => 210 - (maps / highest) * 185;
  const line = (x1, x2, y1, y2, opacity) => svg("line", { x1, x2, y1, y2, stroke: "currentColor", opacity });
  const word = (left, top, text, anchor) => svg("text", { x: left, y: top, "text-anchor": anchor }, text);
  picture.replaceChildren();
  for (const maps of [0, 100, 200, 300]) {
    picture.append(line(40, 420, y(maps), y(maps), 0.2), word(34, y(maps) + 4, maps, "end"));
  }
  picture.append(...[1, 6, 12, 18, 24].map((layers) => word(x(layers), 227, layers, "middle")));
  picture.append(line(x(chosen.layers), x(chosen.layers), 20, 210, 0.5));
  picture.append(word(230, 246, "layers in the stage", "middle"));
  picture.append(word(230, 12, "maps kept for training", "middle"));
  for (const [name, { colour, dash }] of Object.entries(LOOKS)) {
    const kept = (layers) => countMemories({ ...chosen, layers }).find((one) => one.name === name).kept;
    const inside = DEPTHS.filter((layers) => kept(layers) <= highest), end = inside.at(-1);
    const points = inside.map((layers) => `${x(layers)},${y(kept(layers))}`).join(" ");
    const look = { fill: "none", stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash };
    picture.append(svg("polyline", { points, ...look }));
    picture.append(svg("circle", { cx: x(end), cy: y(kept(end)), r: 4, fill: colour }));
    // a line that leaves the picture is named below the place
    picture.append(word(x(end) + 8, y(kept(end)) + (end < last ? 14 : 4), name, "start"));
  }
}

function show(box) {
  const chosen = Object.fromEntries(SLIDERS.map(({ key, start }) => [key, start]));
  const make = (tag) => document.createElement(tag);
  const form = make("form"), table = make("table"), scroll = make("div");
  const picture = svg("svg", { viewBox: "0 0 540 252", role: "img" });
  const heads = ["memory", "hands on, maps", "MiB", "kept for training, maps", "MiB",
    "multiply-adds an image, M"];
  table.innerHTML = "<caption>after T layers, in float32</caption><thead><tr>"
    + heads.map((head) => `<th scope="col">${head}</th>`).join("") + "</tr></thead><tbody></tbody>";

  const cell = ([value, digits]) => {
    const text = value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
    return `<td data-value="${value}">${text}</td>`;
  };
  const row = (one) => `<tr><th scope="row">${one.name}</th>` + [
    [one.handed, 0], [one.handedBytes / 2 ** 20, 2], [one.kept, 0], [one.keptBytes / 2 ** 20, 2],
    [one.macs / 1e6, 2],
  ].map(cell).join("") + "</tr>";
  const update = () => {
    const counted = countMemories(chosen);
    table.tBodies[0].innerHTML = counted.map(row).join("");
    draw(picture, chosen);
    const words = counted.map((one) => `${one.name} ${one.kept}`).join(", ");
    picture.setAttribute("aria-label",
      `Maps kept for training, by the number of layers. For ${chosen.layers} layers: ${words}.`);
  };

  for (const { key, label, values, start } of SLIDERS) {
    const line = make("label"), input = make("input"), output = make("output");
    Object.assign(input, { type: "range", name: key, min: 0, max: values.length - 1 });
    input.value = values.indexOf(start);
    const take = () => {
      chosen[key] = values[input.value];
      output.value = chosen[key];
      input.setAttribute("aria-valuetext", chosen[key]);
    };
    input.addEventListener("input", () => { take(); update(); });
    line.append(label, input, output);
    form.append(line);
    take();
  }
  scroll.className = "explorable-table";
  scroll.tabIndex = 0;
  scroll.append(table);
  box.replaceChildren(form, picture, scroll);
  update();
}

if (typeof module !== "undefined") module.exports = { countMemories };
else for (const box of document.querySelectorAll('[data-explorable="keeps"]')) show(box);
