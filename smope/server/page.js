"use strict";

// The page of `smope serve`. Everything that came from people (names of files and of classes) is put
// in as text, never as HTML.

const byId = (id) => document.getElementById(id);
const limits = JSON.parse(document.body.dataset.limits);
const TOP = 5;
const cards = [];  // {file, element, answers: [newest first]}

/** An element with a class, a text and children. */
function make(tag, className = "", text = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  element.append(...children);
  return element;
}

const percent = (share) => share === null ? "?" : `${(100 * share).toFixed(1)} %`;
const counted = (number, word, words = `${word}s`) => `${number} ${number === 1 ? word : words}`;

function say(id, text, kind = "") {
  byId(id).textContent = text;
  byId(id).className = `status ${kind}`;
}

/** The JSON of an answer; an Error with the server's own line otherwise. */
async function ask(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error("the server does not answer; is it still running?");
  }
  const values = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(values.error || `the server answers ${response.status}`);
  return values;
}

function form(files, fields = {}) {
  const bytes = [...files].reduce((sum, file) => sum + file.size, 0);
  if (bytes > limits.bytes) {
    throw new Error(`${(bytes / 1e6).toFixed(1)} MB are more than the ${limits.bytes / 1e6} MB that the server takes`);
  }
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) data.append(name, value);
  for (const file of files) data.append("images", file, file.name);
  return data;
}

// ---- asking

async function classify(card) {
  try {
    const values = await ask(`predict?top=${TOP}`, {method: "POST", body: form([card.file])});
    card.answers.unshift({version: values.version, ...values.images[0]});
  } catch (error) {
    card.answers.unshift({error: error.message});
  }
  show(card);
}

async function classifyAll(some) {
  let done = 0;
  for (const card of some) {
    say("asked", `classifying ${done + 1} of ${some.length} …`);
    await classify(card);
    done += 1;
  }
  const broken = some.filter((card) => card.answers[0].error).length;
  say("asked", broken ? `${counted(broken, "image")} could not be classified` : "", broken ? "bad" : "");
}

function add(files) {
  const added = [...files].map((file) => {
    const element = byId("card").content.firstElementChild.cloneNode(true);
    const image = element.querySelector("img");
    image.onerror = () => image.classList.add("absent");  // a format that browsers do not show
    image.src = URL.createObjectURL(file);
    element.querySelector("figcaption").textContent = file.name;
    const card = {file, element, answers: []};
    show(card);
    return card;
  });
  cards.unshift(...added);
  byId("cards").prepend(...added.map((card) => card.element));
  return inTurn(() => classifyAll(added));
}

function show(card) {
  const box = card.element.querySelector(".answers");
  const [now, before] = card.answers;
  if (!now) {
    box.replaceChildren(make("p", "soft", "waiting …"));
    return;
  }
  const opened = box.querySelector("details")?.open ?? false;
  const parts = [now.error ? make("p", "problem", now.error) : answer(now, before, opened)];
  if (before && !before.error) parts.push(earlier(before));
  box.replaceChildren(...parts);
}

function answer(now, before, opened) {
  const changed = before && !before.error && before.class !== now.class;
  const box = make("div", "answer");
  if (before) box.append(make("p", "when", `now, ${now.version}`));
  box.append(make("p", changed ? "best changed" : "best", now.class));
  if (now.unknown) box.append(make("p", "soft", `best guess: ${now.top[0].class}`));
  box.append(make("ul", "guesses", "", ...now.top.map(guess)));
  const facts = [];
  if (now.nearest.length) {
    facts.push(`nearest: ${now.nearest.map((one) => `${one.class} ${one.cosine.toFixed(2)}`).join(", ")}`);
  }
  facts.push(`unknown score ${now.unknown_score === null ? "?" : now.unknown_score.toFixed(2)}`);
  for (const fact of facts) box.append(make("p", "soft", fact));
  if (now.experts.length) box.append(experts(now.experts, opened));
  return box;
}

function earlier(before) {
  const box = make("div", "answer earlier");
  box.append(make("p", "when", `before, ${before.version}`));
  box.append(make("p", "best", `${before.class}  ${percent(before.probability)}`));
  return box;
}

function guess({class: name, probability}) {
  const bar = make("span", "bar", "", make("i"));
  bar.firstChild.style.width = `${100 * (probability || 0)}%`;
  return make("li", "", "", make("span", "", name), make("span", "", percent(probability)), bar);
}

/** The chosen experts of each block: a row for each head, a square for each expert. */
function experts(blocks, opened) {
  const details = make("details", "", "", make("summary", "", "Experts that it used"));
  details.open = opened;
  for (const {block, of, heads} of blocks) {
    details.append(make("p", "block", `block ${block}: ${counted(heads.length, "head")}, ${of} experts each`));
    details.append(squares(of, heads, block));
  }
  return details;
}

function squares(of, heads, block) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("viewBox", `0 0 ${of} ${heads.length}`);
  drawing.setAttribute("class", "experts");
  drawing.setAttribute("role", "img");
  const words = heads.map((chosen, head) => `head ${head}: ${chosen.join(", ")}`).join("; ");
  drawing.setAttribute("aria-label", `block ${block}, ${words}`);
  heads.forEach((chosen, head) => {
    for (let expert = 0; expert < of; expert += 1) {
      const square = document.createElementNS(space, "rect");
      const values = {x: expert + 0.08, y: head + 0.08, width: 0.84, height: 0.84, rx: 0.15};
      for (const [name, value] of Object.entries(values)) square.setAttribute(name, value);
      if (chosen.includes(expert)) square.setAttribute("class", "chosen");
      drawing.append(square);
    }
  });
  return drawing;
}

// ---- teaching

function showModel(model) {
  byId("count").textContent = counted(model.classes.length, "class", "classes");
  document.title = `${model.method}: ${counted(model.classes.length, "class", "classes")}`;
  byId("version").textContent = model.version;
  const known = new Set([...byId("classes").children].map((item) => item.textContent));
  byId("classes").replaceChildren(
    ...model.classes.map((name) => make("li", known.has(name) ? "" : "new", name)));
  if (!byId("versions")) return;
  byId("undo").disabled = !model.can_undo;
  byId("versions").replaceChildren(...model.versions.map(({file, how, lesson, classes}) => {
    const taught = Object.entries(lesson).map(([name, number]) => `${name} (${counted(number, "image")})`);
    const what = {start: "at the start", learn: `learned ${taught.join(", ")}`, undo: `took back ${taught.join(", ")}`};
    return make("li", "", `${file}: ${what[how]}; ${counted(classes, "class", "classes")}`);
  }));
}

function lessonText(accuracy, remarks) {
  const parts = [];
  if (accuracy.old_before !== null) {
    parts.push(`old classes: ${percent(accuracy.old_before)} right before, ${percent(accuracy.old_after)} now`);
  }
  if (accuracy.new !== null) parts.push(`new class: ${percent(accuracy.new)} right`);
  if (accuracy.measured_on) parts.push(`measured on ${accuracy.measured_on}`);
  return ["learned", ...parts, ...remarks].join("; ");
}

async function change(text, action) {
  const buttons = [byId("learn"), byId("undo")];
  buttons.forEach((button) => { button.disabled = true; });
  const start = Date.now();
  const clock = setInterval(() => say("taught", `${text} ${Math.round((Date.now() - start) / 1000)} s`), 1000);
  say("taught", text);
  try {
    const result = await action();
    clearInterval(clock);
    showModel(result.model);
    say("taught", result.text, "good");
    // those that have an answer: others wait for their own turn, and more may come meanwhile
    await inTurn(() => classifyAll(cards.filter((card) => card.answers.length)));
  } catch (error) {
    clearInterval(clock);
    say("taught", error.message, "bad");
    await ask("model").then(showModel, () => {});
  }
  byId("learn").disabled = false;
}

function teach() {
  return change("learning …", async () => {
    const fields = {class_name: byId("name").value, more_images: byId("more").checked};
    const values = await ask("learn", {method: "POST", body: form(byId("pictures").files, fields)});
    byId("teach").reset();
    return {model: values.model, text: lessonText(values.accuracy, values.remarks)};
  });
}

function undo() {
  return change("undoing …", async () => {
    const values = await ask("undo", {method: "POST"});
    return {model: values.model, text: `took back ${Object.keys(values.undone).join(", ")}`};
  });
}

// ---- the page

let turn = Promise.resolve();  // one thing after the other, so that answers come in order

function inTurn(action) {
  turn = turn.then(action, action);
  return turn;
}

for (const element of document.querySelectorAll(".origin")) element.textContent = location.origin;
byId("images").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
addEventListener("dragover", (event) => { event.preventDefault(); byId("drop").classList.add("over"); });
addEventListener("dragleave", () => byId("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  add(event.dataTransfer.files);
});
if (byId("teach")) {
  byId("teach").addEventListener("submit", (event) => { event.preventDefault(); teach(); });
  byId("undo").addEventListener("click", undo);
  ask("model").then(showModel, () => {});
}
