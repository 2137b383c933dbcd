// The corridor: eight rooms, a sign in each, and an exit that is asked for one of them. Four trained nets
// answer. Their numbers are in corridor_nets.js; a test holds what is computed here to the library.
"use strict";

const ROOMS = 8;                // the exit is the ninth layer
const SIGNS = "ABCDEFGH";
const NAMES = { last: "last alone", mean: "mean of v", light: "MRLA-light", base: "MRLA-base" };

// What each of the nine layers is told: a sign and the room asked for, one-hot, or zeros. In the late
// question the exit alone is told the room, in the early one every layer is.
function inputsOf(signs, asked, question) {
  return Array.from({ length: ROOMS + 1 }, (_, layer) => Array.from({ length: 2 * ROOMS }, (_, place) => {
    if (place < ROOMS) return layer < ROOMS && signs[layer] === place ? 1 : 0;
    return (question === "early" || layer === ROOMS) && place - ROOMS === asked ? 1 : 0;
  }));
}

const dot = (first, second) => first.reduce((sum, one, index) => sum + one * second[index], 0);

// A projection of its own for each layer: weight[layer][input][output], bias[layer][output].
function ownLinear(inputs, weight, bias) {
  return inputs.map((input, layer) => bias[layer].map((start, output) =>
    start + input.reduce((sum, one, place) => sum + one * weight[layer][place][output], 0)));
}

// torch's nn.Linear: weight[output][input].
const linear = (input, weight, bias) => weight.map((row, output) => bias[output] + dot(row, input));

function softmax(logits) {
  const largest = Math.max(...logits), raised = logits.map((one) => Math.exp(one - largest));
  const total = raised.reduce((sum, one) => sum + one, 0);
  return raised.map((one) => one / total);
}

// The sum of the layers' values, each times its share.
const weighed = (shares, values) => values[0].map((_, place) => dot(shares, values.map((v) => v[place])));

// The readout that all methods share: from what the exit holds and what it is told, the chances of the signs.
function readOut(net, read, told) {
  const hidden = linear([...read, ...told], net["readout.0.weight"], net["readout.0.bias"]);
  const positive = hidden.map((one) => Math.max(one, 0));
  return softmax(linear(positive, net["readout.2.weight"], net["readout.2.bias"]));
}

// What one net makes of one corridor: {queries, keys, values, weights, read, chances}. In light the weights
// are its gates; methods that choose nothing have neither weights nor queries and keys. The chances are those
// of the eight signs.
function answer(net, method, inputs) {
  const of = (name) => ownLinear(inputs, net[`method.${name}.weight`], net[`method.${name}.bias`]);
  const values = of("value"), chooses = method === "base" || method === "light";
  const queries = chooses ? of("query") : null, keys = chooses ? of("key") : null;
  const scale = chooses ? Math.sqrt(keys[0].length) : 1;
  let weights = null, read = null;
  if (method === "last") read = values[ROOMS];
  if (method === "mean") read = weighed(values.map(() => 1 / values.length), values);
  if (method === "base") {                      // Eq. 6: the exit's query asks the keys of all layers
    weights = softmax(keys.map((key) => dot(queries[ROOMS], key) / scale));
    read = weighed(weights, values);
  }
  if (method === "light") {                     // Eq. 8: each layer gates what it writes
    weights = keys.map((key, layer) => 1 / (1 + Math.exp(-dot(queries[layer], key) / scale)));
    read = values.reduce((output, v, layer) => output.map((one, place) =>
      net["method.lambda_o"][layer][place] * one + weights[layer] * v[place]), values[0].map(() => 0));
  }
  const chances = readOut(net, read, inputs[ROOMS].slice(ROOMS));
  return { queries, keys, values, weights, read, chances };
}

// The page, of the parts in parts.js

const roomNames = (name) => Array.from({ length: ROOMS }, (_, room) => name(room + 1));

const likeliest = (chances) => chances.indexOf(Math.max(...chances));

const roomChoice = (label, start, change) => choice(label, roomNames((room) => room), start, change);

function headed(caption, first) {
  const layers = roomNames((room) => `room ${room}`).concat("exit");
  return tableOf(caption, [first, ...layers]);
}

// What each method made of the corridor: how much it took of each layer, what it read, what it says.
function answers(found, right) {
  const table = headed("How much of each layer is taken: weights, and in MRLA-light gates", "");
  const more = ["answer", "vector read"].map((text) => make("th", text, { scope: "col" }));
  table.tHead.rows[0].firstChild.after(more[0]);
  table.tHead.rows[0].append(more[1]);
  for (const [method, one] of Object.entries(found)) {
    const even = one.values.map((_, layer) => method === "mean" ? 1 / (ROOMS + 1) : Number(layer === ROOMS));
    const vector = make("td", one.read.map((part) => part.toFixed(2)).join("  "), { "data-value": one.read });
    const verdict = one.best === right ? "✓ right" : "✗ wrong";
    const said = make("td", `${SIGNS[one.best]} ${verdict}`, { class: "answer" });
    const shares = (one.weights ?? even).map((share) => shade(share));
    table.tBodies[0].append(row(NAMES[method], [said, ...shares, vector]));
  }
  return scrolled(table);
}

// One row for each room that has been asked for; the others are empty.
function diagonal(method, seen) {
  const shown = method === "base" ? "weights" : "gates";
  const map = headed(`${NAMES[method]}: ${shown} by the room asked for`, "");
  for (let room = 0; room < ROOMS; room += 1) {
    const shares = seen[room] ?? Array(ROOMS + 1).fill(undefined);
    map.tBodies[0].append(row(`asked for ${room + 1}`, shares.map((share) => shade(share))));
  }
  return scrolled(map);
}

function keysAndQuery({ keys, queries }, open) {
  const details = make("details");
  const table = headed("One key a layer, and the exit's query: eight numbers each", "");
  table.tHead.rows[0].append(make("th", "query", { scope: "col" }));
  keys[0].forEach((_, place) => {
    const numbers = [...keys.map((key) => key[place]), queries[ROOMS][place]];
    table.tBodies[0].append(row(`${place + 1}`, numbers.map((one) => make("td", one.toFixed(2)))));
  });
  details.append(make("summary", "Keys and query of MRLA-base"), scrolled(table));
  details.open = open;
  return details;
}

function showCorridor(box) {
  const signs = [2, 0, 5, 7, 1, 3, 6, 4];
  const state = { asked: 2, question: "late", width: 4 };
  let seen = { base: {}, light: {} };           // the weights so far, by the room that was asked for
  const form = make("form", "", { class: "corridor" });
  const words = make("p", "", { "aria-live": "polite" }), results = make("div");

  const update = () => {
    const inputs = inputsOf(signs, state.asked, state.question), right = signs[state.asked];
    const found = {};
    for (const method of Object.keys(NAMES)) {
      const net = CORRIDOR_NETS[state.width][state.question][method].numbers;
      const one = answer(net, method, inputs);
      found[method] = { ...one, best: likeliest(one.chances) };
      if (one.weights) seen[method][state.asked] = one.weights;
    }
    const good = Object.keys(NAMES).filter((name) => found[name].best === right).map((name) => NAMES[name]);
    words.textContent = `Room ${state.asked + 1} is asked for, and ${SIGNS[right]} hangs there. `
      + `Right: ${good.join(", ") || "nobody"}.`;
    const open = results.querySelector("details")?.open ?? false;
    results.replaceChildren(answers(found, right), diagonal("base", seen.base), diagonal("light", seen.light),
      keysAndQuery(found.base, open));
  };

  const takeOtherNets = (key, value) => {
    state[key] = value;
    seen = { base: {}, light: {} };
    update();
  };
  const told = ["late: the exit alone", "early: every layer"], widths = [4, 8];
  form.append(choice("Who is told the room?", told, 0, (index) =>
    takeOtherNets("question", ["late", "early"][index])));
  form.append(choice("Numbers in a value", widths, 0, (index) => takeOtherNets("width", widths[index])));
  form.append(roomChoice("Ask for room", state.asked, (room) => {
    state.asked = room;
    update();
  }), button("Ask for every room", () => {
    const before = state.asked;
    for (let room = 0; room < ROOMS; room += 1) {
      state.asked = room;
      update();
    }
    state.asked = before;
    update();
  }));
  const hung = make("fieldset");
  hung.append(make("legend", "Signs"));
  signs.forEach((sign, room) => hung.append(choice(`room ${room + 1}`, [...SIGNS], sign, (chosen) => {
    signs[room] = chosen;
    update();
  })));
  form.append(hung);
  box.replaceChildren(form, words, results);
  update();
}

if (typeof module !== "undefined") {
  module.exports = { ROOMS, answer, dot, inputsOf, linear, ownLinear, readOut, softmax, weighed };
} else for (const box of document.querySelectorAll('[data-explorable="corridor"]')) showCorridor(box);
