// Which layers does this image ask? Forty test images, three trained nets, and what each net answers as
// learned, with its weights frozen at their mean, and with uniform weights. Nothing is computed here: the
// numbers are in images_nets.js, made by the library, and a test holds them to it.
"use strict";

const SIZE = 32;                // pixels of an image, which the picture of all of them is cut into
const PICTURE = typeof document === "undefined" ? "" : new URL("images.png", document.currentScript.src).href;
const HOWS = { learned: "as learned", mean: "frozen at the mean", uniform: "made uniform" };
const VIEWS = { ...HOWS, difference: "as learned, less the mean" };

// The weights [stage][layer][head][s] of one image in one of VIEWS.
function weightsOf(net, image, view) {
  if (view === "learned") return net.weights[image];
  if (view !== "difference") return net.frozen[view];
  return net.weights[image].map((stage, s) => stage.map((layer, t) => layer.map((head, h) =>
    head.map((weight, read) => weight - net.frozen.mean[s][t][h][read]))));
}

// {how: {best, chance}}: the class that the net says, and how sure it is.
function answersOf(net, image) {
  return Object.fromEntries(Object.keys(HOWS).map((how) => {
    const chances = net.chances[how][image], chance = Math.max(...chances);
    return [how, { best: chances.indexOf(chance), chance }];
  }));
}

// Where this image's weight is furthest from the mean: {stage, layer, head, read, weight, mean}, from 0.
function furthest(net, image) {
  let found = { gap: -1 };
  net.weights[image].forEach((layers, stage) => layers.forEach((heads, layer) =>
    heads.forEach((weights, head) => weights.forEach((weight, read) => {
      const mean = net.frozen.mean[stage][layer][head][read], gap = Math.abs(weight - mean);
      if (gap > found.gap) found = { gap, stage, layer, head, read, weight, mean };
    }))));
  return found;
}

// The page, of the parts in parts.js

const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}\u00a0%`;

// The part of the picture that shows one image, drawn `pixels` wide.
function thumbnail(nets, image, pixels) {
  const made = make("span", "", { class: "thumbnail", "aria-hidden": "true" });
  const rows = nets.labels.length / nets.columns, times = pixels / SIZE;
  const left = image % nets.columns, top = Math.floor(image / nets.columns);
  Object.assign(made.style, {
    width: `${pixels}px`, height: `${pixels}px`, backgroundImage: `url("${PICTURE}")`,
    backgroundSize: `${SIZE * nets.columns * times}px ${SIZE * rows * times}px`,
    backgroundPosition: `${-SIZE * left * times}px ${-SIZE * top * times}px`,
  });
  return made;
}

// One radio button an image, so that the arrow keys go from one to the next.
function pictures(nets, start, change) {
  const all = make("fieldset", "", { class: "pictures" });
  all.append(make("legend", "Image"));
  nets.labels.forEach((label, image) => {
    const line = make("label"), name = `${nets.classes[label]}, image ${image + 1}`;
    const button = make("input", "", { type: "radio", name: "image", value: image, "aria-label": name });
    button.checked = image === start;
    button.addEventListener("change", () => change(image));
    line.append(button, thumbnail(nets, image, SIZE));
    line.title = name;
    all.append(line);
  });
  return all;
}

// A row a class, a column each way to set the weights; what the net says is marked, and so is the truth.
function answerTable(nets, net, image) {
  const heads = ["class", "learned", "mean", "uniform"];
  const table = tableOf("What the net answers, in %, with its weights", heads);
  const answers = answersOf(net, image), right = nets.labels[image];
  nets.classes.forEach((name, label) => {
    const cells = Object.keys(HOWS).map((how) => {
      const share = net.chances[how][image][label], said = answers[how].best === label;
      const mark = said ? (label === right ? " ✓" : " ✗") : "";
      const cell = make("td", `${(100 * share).toFixed(1)}${mark}`, { "data-value": share });
      cell.style.setProperty("--share", `${100 * share}%`);
      if (said) cell.classList.add("said");
      return cell;
    });
    table.tBodies[0].append(row(label === right ? `${name} (true)` : name, cells));
  });
  return scrolled(table);
}

// A share as a grey cell; a difference in the colour of its sign, which it also has in words.
function weightCell(share, view) {
  if (view !== "difference" || share === undefined) return shade(share, (one) => (100 * one).toFixed(0));
  const points = Math.round(100 * share), strength = Math.min(1, 2 * Math.abs(share));
  const text = points > 0 ? `+${points}` : `${points}`.replace("-", "−");
  const cell = make("td", text, { "data-value": share });
  tint(cell, share > 0 ? [230, 159, 0] : [86, 180, 233], strength);
  cell.style.color = "#000";
  return cell;
}

// One table for each stage and head of MRLA-base; of MRLA-light one for each stage, with a row a head.
function weightTables(net, image, view) {
  const box = make("div", "", { class: "weights" }), unit = view === "difference" ? "points" : "%";
  weightsOf(net, image, view).forEach((layers, stage) => {
    const numbers = layers.map((_, layer) => layer + 1), heads = layers[0].map((_, head) => head);
    const where = net.weights[image].length > 1 ? `Stage ${stage + 1}` : "The only stage";
    if (net.gates) {
      const table = tableOf(`${where}: how far each layer's gate is open, ${unit}`, ["layer", ...numbers]);
      table.tBodies[0].append(...heads.map((head) => row(heads.length > 1 ? `head ${head + 1}` : "gate",
        layers.map((layer) => weightCell(layer[head][0], view)))));
      box.append(scrolled(table));
      return;
    }
    for (const head of heads) {
      const which = heads.length > 1 ? `, head ${head + 1}` : "";
      const caption = `${where}${which}: each row a layer that asks, each column one that is read, ${unit}`;
      const table = tableOf(caption, ["", ...numbers]);
      layers.forEach((layer, t) => table.tBodies[0].append(row(`${t + 1}`,
        numbers.map((_, read) => weightCell(layer[head][read], view)))));
      box.append(scrolled(table));
    }
  });
  return box;
}

function sentences(nets, net, image) {
  const answers = answersOf(net, image), right = nets.labels[image], far = furthest(net, image);
  const said = Object.entries(HOWS).map(([how, words]) => {
    const { best, chance } = answers[how];
    return `${words}: ${nets.classes[best]} (${percent(chance)}), ${best === right ? "right" : "wrong"}`;
  });
  const tested = Object.entries(HOWS).map(([how, words]) => `${words} ${percent(net.tested[how], 1)}`);
  const which = net.weights[image][far.stage][0].length > 1 ? ` in head ${far.head + 1}` : "";
  const stage = net.weights[image].length > 1 ? ` of stage ${far.stage + 1}` : "";
  const did = net.gates ? "'s gate is open by" : `${which} reads layer ${far.read + 1} with`;
  return {
    answer: `Image ${image + 1}, of class ${nets.classes[right]}. Answers ${said.join("; ")}.`,
    far: `Furthest from the mean: layer ${far.layer + 1}${stage}${did} ${percent(far.weight)}, `
      + `where the mean is ${percent(far.mean)}.`,
    tested: `Of 10,000 test images this net gets right: ${tested.join(", ")}.`,
  };
}

function showImages(box) {
  const nets = IMAGES_NETS, state = { image: 0, net: 0, view: "learned" };
  const form = make("form", "", { class: "looking" });
  const words = make("p", "", { "aria-live": "polite" }), more = make("p"), results = make("div");
  const update = () => {
    const net = nets.nets[state.net], said = sentences(nets, net, state.image);
    words.textContent = said.answer;
    more.textContent = `${said.far} ${said.tested}`;
    const one = make("div", "", { class: "one-image" });
    one.append(thumbnail(nets, state.image, 4 * SIZE), answerTable(nets, net, state.image));
    results.replaceChildren(one, weightTables(net, state.image, state.view));
  };
  const take = (key, value) => {
    state[key] = value;
    update();
  };
  const views = Object.keys(VIEWS);
  form.append(choice("Net", nets.nets.map((net) => net.title), 0, (index) => take("net", index)),
    choice("Show the weights", Object.values(VIEWS), 0, (index) => take("view", views[index])),
    pictures(nets, state.image, (image) => take("image", image)));
  box.replaceChildren(form, words, more, results);
  update();
}

if (typeof module !== "undefined") module.exports = { answersOf, furthest, weightsOf };
else for (const box of document.querySelectorAll('[data-explorable="images"]')) showImages(box);
