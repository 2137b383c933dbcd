// Who must know? Four memories and three questions about a corridor of eight rooms. Each memory stands in one
// cell of notebook 14's square. The nets' numbers are in square_nets.js; a test holds what is computed here
// to the library. It goes on from corridor.js, with which it is loaded.
"use strict";

if (typeof module !== "undefined") Object.assign(globalThis, require("./corridor.js"));

const MEMORIES = {
  denseformer: { name: "DenseFormer", who: "neither adds anything" },
  attnres: { name: "Attention Residuals", who: "the writer adds a key" },
  mudd: { name: "MUDDFormer", who: "the reader adds a query" },
  base: { name: "MRLA-base", who: "the reader adds a query, the writer a key" },
};
const QUESTIONS = {
  number: "number: the exit is told the room",
  lamp: "lamp: a lamp burns in the room",
  colour: "colour: the exit is told the room's colour",
};

// What the nine layers are told beside the signs: eight numbers each.
function toldOf(asked, question, colours) {
  const only = (place) => Array.from({ length: ROOMS }, (_, index) => Number(index === place));
  const nothing = only(-1), rooms = [...Array(ROOMS).keys()];
  if (question === "number") return [...rooms.map(() => nothing), only(asked)];
  if (question === "lamp") return [...rooms.map((room) => room === asked ? only(0) : nothing), nothing];
  return [...rooms.map((room) => only(colours[room])), only(colours[asked])];
}

function squareInputs(signs, asked, question, colours) {
  return toldOf(asked, question, colours).map((told, layer) =>
    [...told.map((_, sign) => Number(layer < ROOMS && signs[layer] === sign)), ...told]);
}

// The error function: a series of positive terms, exact to the last digits.
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n += 1) {
    term *= 2 * x * x / (2 * n + 1);
    sum += term;
  }
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}

const gelu = (x) => 0.5 * x * (1 + erf(x / Math.SQRT2));

function rootMeanSquareNorm(row) {
  const mean = row.reduce((sum, one) => sum + one * one, 0) / row.length;
  return row.map((one) => one / Math.sqrt(mean + Number.EPSILON));
}

// How the exit of each memory weighs the nine layers.
const WEIGHTS = {
  denseformer: (net) => net["method.by_layer"],
  attnres: (net, inputs, values) =>
    softmax(values.map((v) => dot(rootMeanSquareNorm(v), net["method.query"][0]))),
  mudd: (net, inputs) => linear(
    linear(inputs[ROOMS], net["method.enter.weight"], net["method.enter.bias"]).map(gelu),
    net["method.leave.weight"], net["method.leave.bias"]),
  base: (net, inputs) => {
    const [queries, keys] = ["query", "key"].map((name) =>
      ownLinear(inputs, net[`method.${name}.weight`], net[`method.${name}.bias`]));
    return softmax(keys.map((key) => dot(queries[ROOMS], key) / Math.sqrt(key.length)));
  },
};

// What one net makes of one corridor: {weights, read, chances}.
function answerSquare(net, memory, inputs) {
  const values = ownLinear(inputs, net["method.value.weight"], net["method.value.bias"]);
  const weights = WEIGHTS[memory](net, inputs, values), read = weighed(weights, values);
  return { weights, read, chances: readOut(net, read, inputs[ROOMS].slice(ROOMS)) };
}

// The page, of the parts in parts.js

// Eight numbers in an order that comes from a seed, so that a corridor can be found again.
function shuffled(seed) {
  const order = [...Array(ROOMS).keys()];
  let state = seed;
  for (let last = ROOMS - 1; last > 0; last -= 1) {
    state = (state * 48271 + 11) % 2147483647;
    const place = state % (last + 1);
    [order[last], order[place]] = [order[place], order[last]];
  }
  return order;
}

// A weight of 0 to 1 is a grey cell; what is below or above is said, and negative ones are blue.
function weightOfLayer(share) {
  const tenths = Math.round(10 * share), text = (Math.abs(tenths) / 10).toFixed(1);
  const cell = shade(Math.min(Math.max(share, 0), 1), () => (tenths < 0 ? `−${text}` : text));
  cell.dataset.value = share;
  if (tenths < 0) {
    tint(cell, [86, 180, 233], Math.min(1, -share));
  }
  return cell;
}

function corridorTable(signs, colours, state) {
  const table = headed("The corridor: what each layer is told", "");
  const told = toldOf(state.asked, state.question, colours);
  const say = {
    number: (place) => `room ${place + 1}`, lamp: () => "lamp", colour: (place) => `${place + 1}`,
  };
  const beside = told.map((one) => one.includes(1) ? say[state.question](one.indexOf(1)) : "–");
  const title = state.question === "colour" ? "colour" : "told";
  table.tBodies[0].append(
    row("sign", [...signs.map((sign) => make("td", SIGNS[sign])), make("td", "–")]),
    row(title, beside.map((text) => make("td", text))));
  return scrolled(table);
}

// One memory's cell of the square: a row for each room asked for, with the exit's weights and its answer.
function memoryTable(memory, found, asked) {
  const { name, who } = MEMORIES[memory], right = found.filter((one) => one.right).length;
  const layers = roomNames((room) => `${room}`).concat("exit");
  const caption = `${name}: ${who}. Right for ${right} of ${ROOMS} rooms.`;
  const table = tableOf(caption, ["asked", ...layers, "says"]);
  found.forEach((one, room) => {
    const line = row(`${room + 1}`, [...one.weights.map(weightOfLayer),
      make("td", `${SIGNS[one.best]} ${one.right ? "✓" : "✗"}`, { class: "answer" })]);
    if (room === asked) line.setAttribute("aria-current", "true");
    table.tBodies[0].append(line);
  });
  return scrolled(table);
}

function showSquare(box) {
  const state = { asked: 2, question: "number", seed: 7 };
  const form = make("form", "", { class: "corridor" });
  const words = make("p", "", { "aria-live": "polite" }), results = make("div");
  const update = () => {
    const signs = shuffled(state.seed), colours = shuffled(state.seed + 1), found = {};
    for (const memory of Object.keys(MEMORIES)) {
      const net = SQUARE_NETS[state.question][memory].numbers;
      found[memory] = signs.map((sign, room) => {
        const one = answerSquare(net, memory, squareInputs(signs, room, state.question, colours));
        const best = likeliest(one.chances);
        return { ...one, best, right: best === sign };
      });
    }
    const all = Object.keys(MEMORIES).filter((memory) => found[memory].every((one) => one.right));
    words.textContent = `Right for every room of this corridor: `
      + `${all.map((memory) => MEMORIES[memory].name).join(", ") || "nobody"}.`;
    const square = make("div", "", { class: "weights" });
    square.append(...Object.keys(MEMORIES).map((memory) => memoryTable(memory, found[memory], state.asked)));
    results.replaceChildren(corridorTable(signs, colours, state), square);
  };
  const asked = Object.keys(QUESTIONS);
  form.append(choice("Question", Object.values(QUESTIONS), 0, (index) => {
    state.question = asked[index];
    update();
  }));
  form.append(roomChoice("Show what is told for room", state.asked, (room) => {
    state.asked = room;
    update();
  }), button("Another corridor", () => {
    state.seed += 2;
    update();
  }));
  box.replaceChildren(form, words, results);
  update();
}

if (typeof module !== "undefined") module.exports = { answerSquare, squareInputs };
else for (const box of document.querySelectorAll('[data-explorable="square"]')) showSquare(box);
