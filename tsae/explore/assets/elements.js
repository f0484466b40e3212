// Elements. Text of the corpus becomes text nodes and attributes alone, never markup.
const OTHER = { baseline: "tokenized", tokenized: "baseline" };
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, v]) => element.style.setProperty(key, v));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Characters that show nothing, or change the order of what is around them, get a sign.
function visible(text) {
  return text.replace(
    /[\u0000-\u001f\u007f-\u009f\u00a0\u00ad\u061c\u1680\u2000-\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\u3000\ufeff]/gu,
    (c) => {
      const code = c.codePointAt(0);
      if (c === "\n") return "↵";
      if (c === "\t") return "⇥";
      if (code < 32) return String.fromCharCode(0x2400 + code);
      return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
    },
  );
}

function wordOf(token) {
  const text = D.words[token] ?? "";
  if (!text) return "∅";
  return visible(text).replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length));
}

const tokenLink = (token, attributes = {}) =>
  token < 0
    ? h("span", {}, "–")
    : h("a", { class: "token", href: `#/token/${token}`, dir: "auto", ...attributes }, wordOf(token));

const featureLink = (role, feature, attributes = {}) =>
  h("a", { class: `feature ${role}`, href: `#/feature/${role}/${feature}`, ...attributes }, String(feature));

const number = (value) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-3)) return value.toExponential(1);
  return Math.abs(value) >= 1000 ? count(value) : value === 0 ? "0" : value.toPrecision(3);
};
const count = (value) => Math.round(value).toLocaleString("en");
const percent = (share) => {
  if (!Number.isFinite(share)) return "–";
  const value = 100 * share;
  return `${Math.abs(value) >= 99.95 || value === 0 ? Math.round(value) : value.toPrecision(Math.abs(value) >= 10 ? 3 : 2)}%`;
};
const cosine = (value) => (Number.isFinite(value) ? value.toFixed(2) : "–");
const title = (role) => (role === "tokenized" ? "Tokenized SAE" : "Baseline");
const short = (role) => (role === "tokenized" ? "tokenized" : "baseline");

const facts = (...entries) => factsOf("facts", entries);
const factsOf = (kind, entries) =>
  h(
    "dl",
    { class: kind },
    entries.filter(Boolean).map(([name, ...value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );

const bar = (share, role = "") =>
  h(
    "span",
    { class: `bar ${role}`, "aria-hidden": "true" },
    h("span", { style: { width: `${Math.max(0, Math.min(100, 100 * share))}%` } }),
  );

// Rows of a label, a bar and a number.
const bars = (rows, role, note = "") =>
  h(
    "ol",
    { class: "bars" },
    rows.map(([label, share, text]) =>
      h("li", {}, label, bar(share, role), h("span", { class: "number" }, text, note)),
    ),
  );

const section = (heading, about, ...children) =>
  h("section", {}, h("h3", {}, heading), about ? h("p", { class: "about" }, about) : null, children);

// A side for each SAE; the one that is looked at comes first on a narrow screen.
const sides = (make, first = null) =>
  h(
    "div",
    { class: ROLES.length > 1 ? "sides" : "sides one" },
    ROLES.map((role) => h("div", { class: `side ${role}${role === first ? " first" : ""}` }, make(role))),
  );

// Text of held-out tokens with a shade for each value, which is a share of the highest.
function passage(start, length, { values = null, highest = 1, mark = -1, link = tokenHref, sign = 1 } = {}) {
  return h(
    "p",
    { class: "passage", dir: "auto" },
    Array.from({ length }, (_, i) => {
      const place = start + i;
      const token = D.seq.tokens[place];
      const value = values ? values[i] : 0;
      const share = Math.min(1, Math.abs(value) / (highest || 1));
      return h(
        "a",
        {
          href: link(place, token),
          tabindex: "-1",
          class: i === mark ? "shade mark" : value ? "shade" : null,
          style: value ? { "--share": (sign * share).toFixed(3) } : null,
          title: value ? `${visible(D.words[token] ?? "")}  ${number(value)}` : null,
        },
        i ? flowing(token) : flowing(token).replace(/^ +/, ""),
      );
    }),
  );
}

const flowing = (token) => visible(D.words[token] ?? "") || "∅";
const tokenHref = (_place, token) => `#/token/${token}`;
const textHref = (place) => `#/text/${Math.floor(place / ABOUT.contexts)}/${place % ABOUT.contexts}`;

// Fill a list from its start; returns the button that makes it grow, which by itself it does when its end comes into view.
function growing(container, n, make, step = 60, byItself = true) {
  let shown = 0;
  const more = h("button", { type: "button", class: "more" }, "More");
  const grow = () => {
    const end = Math.min(n, shown + step);
    const rows = [];
    for (; shown < end; shown += 1) rows.push(make(shown));
    container.append(...rows);
    more.hidden = shown >= n;
  };
  more.addEventListener("click", grow);
  if (byItself) {
    new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && grow(), {
      rootMargin: "400px",
    }).observe(more);
  }
  grow();
  return more;
}

function say(text) {
  document.getElementById("said").textContent = text;
}
