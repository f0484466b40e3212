// Addresses, keys and the theme.
const main = document.getElementById("main");
const query = document.getElementById("query");
const keys = document.getElementById("keys");
let view = {};
let turn = 0;
let before = "#/"; // where a search began

const nothing = (text) => ({
  title: "Not found",
  content: [h("h1", {}, "Not found"), h("p", {}, text), h("p", {}, h("a", { href: "#/" }, "Back to the map"))],
});
const whole = (text) => (/^\d+$/.test(text ?? "") ? Number(text) : NaN);

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function viewOf(hash) {
  const [kind, a, b, c] = hash.replace(/^#\/?/, "").split("/").map(decoded);
  switch (kind) {
    case "":
      return showOverview();
    case "feature":
      return ROLES.includes(a) ? showFeature(a, whole(b)) : nothing(`This page has no SAE called ${a}.`);
    case "token":
      return showToken(whole(a));
    case "list":
      return showList(a, b, c);
    case "text":
      return a === undefined
        ? showTexts("")
        : a === "find"
          ? showTexts(b ?? "")
          : showText(whole(a), b === undefined ? NaN : whole(b));
    case "search":
      return showSearch(a ?? "");
    default:
      return nothing("There is nothing at this address.");
  }
}

async function route() {
  const mine = ++turn;
  const hash = location.hash || "#/";
  if (hash === "#main") return main.focus();
  let made;
  try {
    made = await viewOf(hash);
  } catch (error) {
    made = { ...nothing(error.message), title: "Error" };
  }
  if (mine !== turn) return; // another address came meanwhile
  const kept = made.keepScroll && view.keepScroll ? window.scrollY : 0;
  view = made;
  main.replaceChildren();
  fill(main, {}, made.content);
  main.setAttribute("aria-busy", "false");
  main.dataset.view = hash;
  document.title = `${made.title} – ${ABOUT.run}, layer ${ABOUT.layer}`;
  const kind = hash.split("/")[1] ?? "";
  for (const link of document.querySelectorAll("nav a")) {
    const mineToo = link.getAttribute("href").split("/")[1] === kind;
    if (mineToo) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (kind !== "search") {
    before = hash;
    query.value = "";
    if (document.activeElement === query) query.blur();
    say(made.title);
  } else if (document.activeElement !== query) {
    query.value = decoded(hash.split("/")[2] ?? "");
  }
  window.scrollTo(0, kept);
}

function search() {
  const text = query.value.trim();
  const target = text ? `#/search/${encodeURIComponent(text)}` : before;
  if (location.hash.startsWith("#/search/")) {
    history.replaceState(null, "", target);
    route();
  } else if (text) {
    location.hash = target;
  }
}

let typing = 0;
query.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(search, 120);
});
document.getElementById("search").addEventListener("submit", async (event) => {
  event.preventDefault();
  clearTimeout(typing);
  search();
  await new Promise((resolve) => setTimeout(resolve, 0));
  main.querySelector("[data-item]")?.click();
});

function step(by) {
  const items = [...main.querySelectorAll("[data-item]")];
  if (!items.length) return false;
  const at = items.indexOf(document.activeElement);
  const next = items[Math.max(0, Math.min(items.length - 1, at + (at < 0 ? 1 : by)))];
  next.focus();
  next.scrollIntoView({ block: "nearest" });
  return true;
}

function act(key, inList) {
  switch (key) {
    case "j":
      return view.next ? (view.next(), true) : step(1);
    case "k":
      return view.previous ? (view.previous(), true) : step(-1);
    case "ArrowRight":
      return view.next ? (view.next(), true) : false;
    case "ArrowLeft":
      return view.previous ? (view.previous(), true) : false;
    case "ArrowDown":
      return inList && step(1);
    case "ArrowUp":
      return inList && step(-1);
    case "o":
      return view.other ? (view.other(), true) : false;
    case "?":
      keys.showModal();
      return true;
    case "/":
      query.focus();
      query.select();
      return true;
    case "Escape":
      if (location.hash.startsWith("#/search/")) location.hash = before;
      else location.hash = "#/";
      return true;
    default:
      return false;
  }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
  const typingIn = event.target.closest?.("input, select, textarea");
  if (typingIn) {
    if (event.key === "Escape") {
      clearTimeout(typing);
      if (typingIn === query) {
        query.value = "";
        if (location.hash.startsWith("#/search/")) location.hash = before;
      }
      typingIn.blur();
    } else if (event.key === "ArrowDown" && typingIn !== null && typingIn.type === "search") {
      event.preventDefault();
      step(1);
    }
    return;
  }
  if (act(event.key, event.target.matches?.("[data-item]"))) event.preventDefault();
});

document.getElementById("help").addEventListener("click", () => keys.showModal());

// The system's theme, unless one was chosen; a page from a disk may not be allowed to remember it.
const theme = document.getElementById("theme");
const system = window.matchMedia("(prefers-color-scheme: dark)");
const remembered = () => {
  try {
    return localStorage.getItem("theme");
  } catch {
    return null;
  }
};
function setTheme(chosen) {
  if (chosen) document.documentElement.dataset.theme = chosen;
  const dark = (chosen ?? (system.matches ? "dark" : "light")) === "dark";
  theme.textContent = dark ? "Light" : "Dark";
  theme.setAttribute("aria-label", dark ? "Light colours" : "Dark colours");
  document.dispatchEvent(new Event("themechange"));
}
theme.addEventListener("click", () => {
  const chosen = theme.textContent.toLowerCase();
  try {
    localStorage.setItem("theme", chosen);
  } catch {
    // It holds until the page is closed.
  }
  setTheme(chosen);
});
system.addEventListener("change", () => setTheme(remembered()));
setTheme(remembered());

async function start() {
  document.getElementById("run").textContent = `${ABOUT.run}, layer ${ABOUT.layer}`;
  document.getElementById("to-list").href = `#/list/${ROLES[ROLES.length - 1]}`;
  try {
    await readCore();
  } catch (error) {
    main.replaceChildren(
      h("p", {}, `The data of this page could not be read: ${error.message}. It needs a browser of 2023 or later.`),
    );
    main.setAttribute("aria-busy", "false");
    return;
  }
  window.addEventListener("hashchange", route);
  await route();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
