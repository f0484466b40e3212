// Held-out text: sequences to choose from, and what each SAE makes of every token.
const PARTS = ["bias", "table", "features", "error"];
const SHADES = { error: "what the SAE misses", table: "share of the table", features: "share of the features" };
let shading = { role: ROLES.includes("tokenized") ? "tokenized" : ROLES[0], by: "error" };

function showTexts(words) {
  const list = h("ol", { class: "passages" });
  const input = h("input", {
    type: "search",
    value: words,
    "aria-label": "Words in held-out text",
    placeholder: "Words in held-out text, for example: the city of",
  });
  const state = h("p", { class: "about", role: "status" });
  const render = (query) => {
    list.replaceChildren();
    list.nextElementSibling?.remove();
    const matches = query.trim() ? matchesOf(query) : null;
    const n = matches ? matches.length : ABOUT.sequences;
    state.textContent = matches
      ? `${count(n)} place${n === 1 ? "" : "s"} in held-out text`
      : `${count(n)} sequences of ${ABOUT.contexts} tokens, cut from documents that were not trained on`;
    const make = (i) => {
      const [place, length] = matches ? matches[i] : [i * ABOUT.contexts + 1, 0];
      return h(
        "li",
        {},
        h("a", { class: "number", href: textHref(place), "data-item": "" }, matches ? "open" : `sequence ${i}`),
        matches ? around(place, length) : passage(place, Math.min(28, ABOUT.contexts - 1), { link: textHref }),
      );
    };
    list.after(growing(list, n, make, 30));
  };
  let timer = 0;
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      history.replaceState(
        null,
        "",
        input.value.trim() ? `#/text/find/${encodeURIComponent(input.value.trim())}` : "#/text",
      );
      render(input.value);
    }, 150);
  });
  const content = h("div", {}, h("h1", {}, "Held-out text"), h("p", {}, input), state, list);
  render(words);
  return { title: "Held-out text", content: [content] };
}

async function showText(sequence, position) {
  if (!(sequence >= 0 && sequence < ABOUT.sequences)) return nothing(`There is no sequence ${sequence}.`);
  const first = sequence * ABOUT.contexts;
  const at = Math.max(0, Math.min(ABOUT.contexts - 1, Number.isFinite(position) ? position : 1));
  const parts = {};
  for (const role of ROLES) {
    parts[role] = await Promise.all(Array.from({ length: ABOUT.contexts }, (_, i) => partsAt(role, first + i)));
  }
  const text = h("div", { class: "reader" });
  const shade = () => {
    const values = Float32Array.from(parts[shading.role], (part, i) => {
      if (!D.seq.kept[first + i]) return 0;
      return shading.by === "error" ? part.nmse : Math.max(0, part.shares[PARTS.indexOf(shading.by)]);
    });
    text.className = `reader side ${shading.role}`;
    text.replaceChildren(
      passage(first, ABOUT.contexts, { values, highest: Math.max(...values, 1e-6), mark: at, link: textHref }),
    );
  };
  const select = h(
    "select",
    {
      id: "shading",
      onchange: (event) => {
        const [role, by] = event.target.value.split("/");
        shading = { role, by };
        shade();
      },
    },
    ROLES.flatMap((role) =>
      Object.entries(SHADES)
        .filter(([by]) => by !== "table" || role === "tokenized")
        .map(([by, what]) =>
          h(
            "option",
            { value: `${role}/${by}`, selected: role === shading.role && by === shading.by },
            `${short(role)}: ${what}`,
          ),
        ),
    ),
  );
  shade();
  const go = (to) => history.replaceState(null, "", textHref(first + to)) ?? route();
  const token = D.seq.tokens[first + at];
  const link = (step, sign, label) =>
    sequence + step >= 0 && sequence + step < ABOUT.sequences
      ? h("a", { href: `#/text/${sequence + step}`, "aria-label": label }, sign)
      : null;
  return {
    title: `Sequence ${sequence}, token ${at}`,
    keepScroll: true,
    next: () => go(Math.min(ABOUT.contexts - 1, at + 1)),
    previous: () => go(Math.max(0, at - 1)),
    content: [
      h(
        "div",
        { class: "line" },
        h("h1", {}, `Sequence ${sequence}`, " ", h("small", {}, `document ${D.seq.documents[first + at]}`)),
        h("p", { class: "steps" }, link(-1, "←", "Previous sequence"), link(1, "→", "Next sequence")),
      ),
      h(
        "p",
        { class: "about" },
        h("label", { for: "shading" }, "Shade by "),
        select,
        " Choose a token, or step with j and k.",
      ),
      text,
      h(
        "h2",
        {},
        "Token ",
        tokenLink(token),
        " ",
        h("small", {}, `position ${at}, norm of its residual ${number(D.seq.norms[first + at])}`),
      ),
      D.seq.kept[first + at]
        ? h(
            "div",
            {},
            h(
              "p",
              { class: "about" },
              "An SAE writes a residual x as bias + token-bias + features + error. The share of a part v is v·x / |x|². The four add up to 100%; a part that points away from x has a negative share.",
            ),
            sides((role) => divided(role, parts[role][at]), shading.role),
          )
        : h("p", {}, "This token is not scored: it is BOS, or its residual is an outlier in norm."),
    ],
  };
}

function divided(role, part) {
  const most = Math.max(...part.shares.map(Math.abs), 0.01);
  const sae = D.sae[role];
  return [
    h("h3", {}, title(role)),
    h(
      "table",
      { class: "parts" },
      h("thead", { class: "unseen" }, h("tr", {}, h("th", {}, "part"), h("th", {}, "share"))),
      h(
        "tbody",
        {},
        part.shares.map((share, i) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, PARTS[i]),
            h(
              "td",
              {},
              h(
                "span",
                { class: `bar ${PARTS[i]}${share < 0 ? " below" : ""}`, "aria-hidden": "true" },
                h("span", { style: { width: `${(100 * Math.abs(share)) / most}%` } }),
              ),
            ),
            h("td", { class: "number" }, i === 1 && role === "baseline" ? "none" : percent(share)),
          ),
        ),
      ),
    ),
    facts(["|error|² / |x|²", percent(part.nmse)], ["active features", count(part.active)]),
    h("h4", {}, "Most active features"),
    bars(
      part.top.map(([feature, activation]) => [
        h("span", { class: "pair" }, featureLink(role, feature), " ", tokenLink(sae.top_token[feature])),
        Math.abs(activation / part.top[0][1]),
        number(activation),
      ]),
      role,
    ),
  ];
}
