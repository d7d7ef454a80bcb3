// The panel next to the image: facts, objects, findings, and the conversation with the model.
import { COLOURS } from "./browse_stage.js";

const SVG = "http://www.w3.org/2000/svg";
const EFFECTS = { "file left out": "bad", "shape left out": "bad", error: "bad", changed: "warn", warning: "warn" };

/** An element with attributes and children; text is text, never markup. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export const count = (value) => Number(value).toLocaleString("en");
export const percent = (share) => (share === null || share === undefined ? "" : `${(100 * share).toFixed(2)} %`);
export const splitTag = (split) => (split === "none" ? "in no split" : split);
export const colourOf = (number) => COLOURS[number % COLOURS.length];

/** One colour per object: that of its phrase, or of its index if a phrase is repeated. */
export function coloursOf(phrases, all) {
  const distinct = new Set(phrases).size === phrases.length;
  return phrases.map((phrase, place) => colourOf(distinct ? Math.max(0, all.indexOf(phrase)) : place));
}

function facts(pairs) {
  return element("dl", { class: "facts" }, pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined)
    .map(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]));
}

/** Histogram of the object's grey values over that of the background, each scaled to its own maximum. */
function histogram(inside, rest, colour) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", `0 0 ${inside.length} 20`);
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.setAttribute("aria-hidden", "true");
  for (const [values, fill, opacity] of [[rest, "#9aa4b1", 0.55], [inside, colour, 0.85]]) {
    const most = Math.max(1, ...values);
    const path = document.createElementNS(SVG, "path");
    const steps = values.map((value, x) => `V${20 - (19 * value) / most}H${x + 1}`).join("");
    path.setAttribute("d", `M0 20${steps}V20Z`);
    path.setAttribute("fill", fill);
    path.setAttribute("fill-opacity", opacity);
    drawing.append(path);
  }
  return drawing;
}

export function aboutImage(details) {
  const size = details.size ? `${details.size[0]} × ${details.size[1]} pixels` : "";
  const stored = details.stored ? `${details.stored}, ${count(Math.ceil(details.bytes / 1024))} KiB` : "";
  const tone = { train: "blue", val: "good", test: "warn", none: "bad" }[details.split];
  return element("section", {},
    element("h2", {}, details.name),
    element("span", { class: `tag ${tone}` }, splitTag(details.split)),
    details.group && element("span", { class: "tag" }, `group ${details.group}`),
    facts([["Size", size], ["Spacing", details.spacing ? `${details.spacing.join(" × ")} mm` : ""], ["Stored as", stored],
      ["Vessel", percent(details.share)]]));
}

/** A row with a check box that shows and hides a mask. */
function switched(words, colour, shown, onToggle) {
  const box = element("input", { type: "checkbox", "aria-label": `Show ${words}` });
  box.checked = shown;
  box.addEventListener("change", () => onToggle(box.checked));
  return element("label", {}, box, swatchOf(colour), element("span", {}, words));
}

function swatchOf(colour) {
  const swatch = element("span", { class: "swatch" });
  swatch.style.background = colour;
  return swatch;
}

/** The masks of further observers. */
export function aboutObservers(details, colours, hidden, onToggle) {
  return element("section", {}, element("h3", {}, "Further observers"), details.observers.map((observer, place) => {
    const key = `observer ${place}`;
    const agreed = observer.dice === null ? "both drew nothing" : `Dice ${observer.dice.toFixed(3)} with the first`;
    return element("div", { class: "object" },
      switched(`Observer ${observer.name}`, colours[place % colours.length], !hidden.has(key), (show) => onToggle(key, show)),
      element("small", {}, `${count(observer.pixels)} pixels, ${agreed}`));
  }));
}

/** hidden: set of indices of objects. onToggle: called with (index, whether to show). */
export function aboutObjects(details, colours, hidden, onToggle) {
  const objects = details.objects.map((found, place) => {
    const extent = found.box ? `, within ${found.box[2] - found.box[0]} × ${found.box[3] - found.box[1]}` : "";
    const words = found.pixels ? `grey ${found.mean.toFixed(0)} on average` : "empty mask";
    return element("div", { class: "object" },
      switched(found.phrase, colours[place], !hidden.has(place), (show) => onToggle(place, show)),
      element("small", {}, `${count(found.pixels)} pixels, ${percent(found.share)}${extent}`),
      found.pixels ? element("figure", {}, histogram(found.histogram, details.background, colours[place]),
        element("figcaption", {}, element("span", {}, "dark"), element("span", {}, words), element("span", {}, "bright"))) : "");
  });
  return element("section", {}, element("h3", {}, `Objects (${details.objects.length})`),
    objects.length ? objects : element("p", { class: "note" }, "None: the image is labelled as showing no vessel."));
}

export function aboutFindings(notes, title = "Findings") {
  return element("section", {}, element("h3", {}, `${title} (${notes.length})`), notes.length ? notes.map(finding)
    : element("p", { class: "note" }, "Nothing was left out, changed or doubtful."));
}

function finding(note) {
  return element("div", { class: "finding" },
    element("span", { class: `tag ${EFFECTS[note.effect] || "blue"}` }, note.effect),
    element("strong", {}, note.title), element("div", {}, note.reason),
    element("div", { class: "where" }, [note.where, note.source].filter(Boolean).join(" · ")));
}

/** seen: the server's response on the view, or null while it is pending. */
export function aboutModel(seen, settings, colours) {
  const section = element("section", { id: "model" }, element("h3", {}, "Input of the model"));
  if (!seen || seen.state === "loading") {
    section.append(element("p", { class: "note" }, seen ? "Reading the config…" : "…"));
  } else if (seen.state !== "ready") {
    section.append(element("p", { class: "problem", role: "alert" }, seen.problem));
  } else {
    section.append(element("p", { class: "note" }, roleOf(seen, settings)), shapes(seen),
      ...seen.conversations.flatMap((said, number) => conversation(said, seen, number, colours)));
    if (settings?.note) section.append(element("p", { class: "note" }, settings.note));
  }
  return section;
}

function roleOf(seen, settings) {
  if (seen.role === "evaluation") return "As in validation and evaluation: without augmentation, with the first question.";
  if (seen.role === "unused") return "Training does not use this image (train_dataset.limit); shown as in evaluation.";
  if (!settings?.augment) return `Epoch ${seen.epoch} of training, without augmentation.`;
  const repeats = seen.view === seen.epoch ? "" : `: repeats view ${seen.view}, the config has ${settings.variants} per image`;
  return `Epoch ${seen.epoch} of training${repeats}.`;
}

function shapes(seen) {
  const grid = seen.tiles > 1 ? ` (${seen.columns} × ${seen.rows}${seen.thumbnail ? " and a thumbnail" : ""})` : "";
  return facts([
    ["InternVL", `${seen.tiles} tile${seen.tiles > 1 ? "s" : ""} of ${seen.tile} × ${seen.tile}${grid}`],
    ["SAM2", `${seen.square} × ${seen.square}`],
    ["Masks", `${seen.objects.length} of ${seen.width} × ${seen.height}`],
  ]);
}

function conversation(said, seen, number, colours) {
  const alone = seen.conversations.length > 1;
  const lines = said.rounds.flatMap((round, place) => {
    const asked = seen.objects[alone ? number : place];
    return [
      element("li", { class: "question" }, round.question),
      element("li", { class: "answer" }, swatchOf(colours[asked.object] ?? COLOURS[0]),
        element("span", {}, round.answer, element("span", { class: "note" }, ` ${count(asked.pixels)} pixels`))),
    ];
  });
  return [element("ul", { class: "chat", "aria-label": "Conversation" }, lines), tokens(said, seen)];
}

function tokens(said, seen) {
  if (said.problem) return element("p", { class: "problem" }, said.problem);
  if (!said.tokens) return element("p", { class: "note" }, `${count(seen.image_tokens)} tokens of the image.`);
  const parts = [seen.image_tokens, said.tokens.all - seen.image_tokens - said.tokens.learnt, said.tokens.learnt];
  const bar = element("div", { class: "tokens", "aria-hidden": "true" }, parts.map((part) => {
    const piece = element("i");
    piece.style.width = `${(100 * part) / said.tokens.all}%`;
    return piece;
  }));
  return element("div", {}, bar, element("p", { class: "note" },
    `${count(said.tokens.all)} tokens of at most ${count(said.tokens.limit)}: ${count(parts[0])} of the image, `
    + `${count(parts[1])} of the question${said.rounds.length > 1 ? "s" : ""}, ${count(parts[2])} learnt.`));
}

/** Facts on the whole folder, for the dialog. */
export function aboutDataset(dataset, settings) {
  const augment = settings?.augment ? Object.entries(settings.augment).filter(([, value]) => value)
    .map(([name, value]) => `${name.replaceAll("_", " ")}${value === true ? "" : ` ${value}`}`).join(", ") : "none";
  const model = settings?.state === "ready" ? facts([
    ["Config", settings.config], ["Training split", settings.split], ["Augmentation", augment],
    ["Views per image", settings.variants ?? "a new one in every epoch"], ["Seed", settings.seed],
    ["InternVL tiles", `${settings.tile_size} pixels per side, at most ${settings.max_tiles}, ${settings.tokens_per_tile} tokens each`],
    ["SAM2 square", `${settings.sam_size} pixels per side`],
    ["Tokenizer", settings.tokenizer ? "available" : settings.note],
  ]) : element("p", { class: "note" }, settings?.problem || "Reading the config…");
  return [
    facts([["Source", dataset.source], ["Fingerprint", dataset.fingerprint], ["Prepared with", dataset.prepared_with]]),
    element("h3", {}, "Input of the model"), model,
    ...dataset.problems.map((problem) => element("p", { class: "problem" }, problem)),
    dataset.elsewhere.length ? aboutFindings(dataset.elsewhere, "Findings on files that are not in the list") : "",
  ].filter(Boolean);
}
