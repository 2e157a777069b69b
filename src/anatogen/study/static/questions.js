// The questions of one case: the current one open, the others a line each with what was answered.

const OPTION_KEYS = "123456789";
const MAX_SCORE = 100;

/** An element with attributes and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/**
 * Draws the questions.
 * @param {HTMLElement} box
 * @param {object[]} questions Of the protocol.
 * @param {(id: string) => number | undefined} answer What was answered.
 * @param {number} current Which question is open.
 * @param {{onOpen: (index: number) => void, onAnswer: (index: number, value: number) => void,
 *     onScore: (value: number) => void}} told
 */
export function drawQuestions(box, questions, answer, current, told) {
  const focused = box.contains(document.activeElement) ? document.activeElement.matches("input") : undefined;
  box.replaceChildren(
    ...questions.map((question, index) => {
      const value = answer(question.id);
      const open = index === current;
      const number = questions.length > 1 ? `${index + 1}` : "";
      const label = `question-${index}`;
      const head = element(
        "button",
        { type: "button", class: "head", "aria-expanded": open, onclick: () => told.onOpen(index) },
        element("span", { class: "number" }, number),
        element("span", { class: "text", id: label }, question.text),
        element("span", { class: "given" }, open ? "" : textOf(question, value)),
      );
      const body = () =>
        question.kind === "score"
          ? score(question, value, label, told.onScore)
          : choice(question, value, label, (chosen) => told.onAnswer(index, chosen));
      return element(
        "section",
        { class: "question", "data-open": open, "data-answered": value !== undefined },
        head,
        ...(open ? [body()] : []),
      );
    }),
  );
  // Who goes by Tab stays in the open question.
  if (focused !== undefined) box.querySelector(focused ? "input" : "[data-open] .head")?.focus();
}

/** What was answered, in the question's words. */
function textOf(question, value) {
  if (value === undefined) return "";
  if (question.kind === "score") return `${value}`;
  return question.options.find((option) => option.value === value)?.text ?? "";
}

function choice(question, value, label, onAnswer) {
  return element(
    "div",
    { class: "options", role: "radiogroup", "aria-labelledby": label },
    ...question.options.map((option, place) =>
      element(
        "button",
        {
          type: "button", role: "radio", class: "option", "aria-checked": String(option.value === value),
          onclick: () => onAnswer(option.value),
        },
        element("kbd", {}, OPTION_KEYS[place] ?? ""),
        element("span", {}, option.text),
      ),
    ),
  );
}

function score(question, value, label, onScore) {
  const shown = element("output", { class: "score" }, value === undefined ? "–" : `${value}`);
  const slider = element("input", {
    type: "range", min: 0, max: MAX_SCORE, step: 1, value: value ?? MAX_SCORE / 2, "aria-labelledby": label,
    "data-empty": value === undefined,
    oninput: () => {
      shown.textContent = slider.value;
      slider.removeAttribute("data-empty");
    },
    onchange: () => onScore(Number(slider.value)),
  });
  return element(
    "div",
    { class: "scale" },
    shown,
    slider,
    element("div", { class: "ends" }, element("span", {}, question.low), element("span", {}, question.high)),
    element(
      "p", { class: "quiet" },
      "Type a number from 0 to 100, or ", element("kbd", {}, "←"), " ", element("kbd", {}, "→"),
    ),
  );
}

/** The value that a key gives as an answer to a question of choice. */
export function valueOfKey(question, key) {
  const place = OPTION_KEYS.indexOf(key);
  return key.length === 1 && place >= 0 ? question.options[place]?.value : undefined;
}

/** Digits typed one after another, as a score. */
export class Typed {
  constructor() {
    this.digits = "";
    this.last = 0;
  }

  /** The score after another digit; digits a second and a half apart begin a new one. */
  add(digit) {
    const now = Date.now();
    const longer = now - this.last < 1500 ? this.digits + digit : digit;
    this.digits = Number(longer) > MAX_SCORE ? digit : longer;
    this.last = now;
    return Number(this.digits);
  }

  clear() {
    this.digits = "";
  }
}
