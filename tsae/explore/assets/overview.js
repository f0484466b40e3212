// The first page, and the list of all features.
const NAMES = { nmse: "NMSE", fvu: "FVU", ce_added: "loss added", l0: "L0", dead_heldout: "never fire" };
const SHARES = new Set(["ce_added", "dead_heldout"]);
const OFTEN = 20; // firings from which a feature is proposed to start with

function showOverview() {
  return {
    title: "Map",
    content: [
      h(
        "h1",
        {},
        `Layer ${ABOUT.layer}: `,
        ROLES.map((role, i) => [i ? " and " : "", h("span", { class: `role ${role}` }, short(role))]),
        ROLES.length > 1 ? " SAE" : "",
      ),
      h(
        "p",
        { class: "lead" },
        `Each point is a feature. Its height is the share of its activation mass on one token: at the top, features of a single token. Choose a point, or search. Measured on ${count(ABOUT.kept)} held-out tokens; the SAEs saw ${count(ABOUT.trained)} in training.`,
      ),
      sides((role) => [
        h("h2", {}, title(role), " ", h("small", {}, SAE[role].id)),
        metricsOf(role),
        scatter(role),
        h("p", { class: "about" }, silent(role), " ", h("a", { href: `#/list/${role}` }, "All features as a list")),
        starts(role),
      ]),
      tokensToStart(),
    ],
  };
}

const metricsOf = (role) =>
  factsOf(
    "facts metrics",
    Object.keys(NAMES)
      .filter((name) => name in SAE[role].metrics)
      .map((name) => {
        const [value, low, high] = SAE[role].metrics[name];
        const show = (x) => (SHARES.has(name) ? `${(100 * x).toFixed(1)}%` : x.toPrecision(3));
        const interval = low === null || show(low) === show(high) ? null : `${show(low)} to ${show(high)}`;
        return [
          h("abbr", { title: ABOUT.metrics[name] }, NAMES[name]),
          show(value),
          interval ? h("small", {}, h("br", {}), interval) : null,
        ];
      }),
  );

function silent(role) {
  const n = D.sae[role].firings.reduce((total, firings) => total + (firings === 0), 0);
  return `${count(SAE[role].features)} features, of which ${count(n)} fire on no held-out token and are not in the map.`;
}

// Features at both ends: of one token, and of none in particular.
function starts(role) {
  const sae = D.sae[role];
  const often = ordered(role, "share", -1, OFTEN);
  const rare = often.filter((i) => sae.firing_rate[i] < 0.02 && sae.top_token_share[i] < 0.5).reverse();
  const list = (features) =>
    bars(
      features
        .slice(0, 8)
        .map((i) => [
          h("span", { class: "pair" }, featureLink(role, i, { "data-item": "" }), " ", tokenLink(sae.top_token[i])),
          sae.top_token_share[i],
          percent(sae.top_token_share[i]),
        ]),
      role,
    );
  return h(
    "div",
    { class: "columns" },
    section("Of one token", null, list(firstOfEach(often, sae.top_token))),
    section("Of many tokens", null, list(firstOfEach(rare, sae.top_token))),
  );
}

// The first feature of each top token.
function firstOfEach(features, tokens) {
  const seen = new Set();
  return features.filter((i) => !seen.has(tokens[i]) && seen.add(tokens[i]));
}

function tokensToStart() {
  if (!("fvu_table" in D.tok)) return null;
  const tokens = [];
  for (let token = 0; token < ABOUT.vocabulary; token += 1) if (D.tok.heldout[token] >= OFTEN) tokens.push(token);
  tokens.sort((a, b) => D.tok.fvu_table[a] - D.tok.fvu_table[b]);
  const list = (chosen) =>
    bars(
      chosen.map((token) => [
        tokenLink(token, { "data-item": "" }),
        1 - D.tok.fvu_table[token],
        percent(1 - D.tok.fvu_table[token]),
      ]),
      "tokenized",
    );
  return section(
    "What the table explains alone",
    `Variance of a token's residuals that the SAE's bias and its token-bias explain without any feature, for tokens that occur ${OFTEN} times or more in held-out text: the most and the least.`,
    h("div", { class: "columns" }, list(tokens.slice(0, 8)), list(tokens.slice(-8).reverse())),
  );
}

const SORTS = {
  feature: ["feature", (_sae, i) => i],
  rate: ["fires on", (sae, i) => sae.firing_rate[i]],
  highest: ["highest", (sae, i) => sae.max_activation[i]],
  share: ["on top token", (sae, i) => sae.top_token_share[i]],
  bias: ["nearest token-bias", (sae, i) => sae.token_bias_cosine[i]],
  match: ["other SAE", (sae, i) => sae.match_cosine[i]],
};

let fewest = 10; // firings of a feature in the list

function ordered(role, by, sign, least) {
  const sae = D.sae[role];
  const value = SORTS[by][1];
  const keys = Float64Array.from({ length: SAE[role].features }, (_, i) => value(sae, i));
  return Array.from(keys.keys())
    .filter((i) => sae.firings[i] >= least)
    .sort((a, b) => sign * ((keys[a] || 0) - (keys[b] || 0)) || a - b);
}

function showList(role, by = "rate", direction = "down") {
  if (!ROLES.includes(role)) role = ROLES[ROLES.length - 1];
  if (!(by in SORTS)) by = "rate";
  const sae = D.sae[role];
  const order = ordered(role, by, direction === "up" ? 1 : -1, fewest);
  const shown = Object.entries(SORTS).filter(([key]) => key !== "match" || sae.match);
  const body = h("tbody", {});
  const row = (at) => {
    const i = order[at];
    return h(
      "tr",
      {},
      h("td", {}, featureLink(role, i, { "data-item": "" })),
      h("td", { class: "number" }, percent(sae.firing_rate[i])),
      h("td", { class: "number" }, number(sae.max_activation[i])),
      h("td", {}, tokenLink(sae.top_token[i]), " ", h("span", { class: "number" }, percent(sae.top_token_share[i]))),
      h(
        "td",
        {},
        tokenLink(sae.token_bias_token[i]),
        " ",
        h("span", { class: "number" }, cosine(sae.token_bias_cosine[i])),
      ),
      sae.match
        ? h(
            "td",
            {},
            featureLink(OTHER[role], sae.match[i]),
            " ",
            h("span", { class: "number" }, cosine(sae.match_cosine[i])),
          )
        : null,
    );
  };
  const head = shown.map(([key, [name]]) => {
    const way = key === by ? direction : null;
    return h(
      "th",
      { scope: "col", "aria-sort": way ? (way === "up" ? "ascending" : "descending") : null },
      h(
        "a",
        { href: `#/list/${role}/${key}/${way === "down" ? "up" : "down"}` },
        name,
        way ? (way === "up" ? " ↑" : " ↓") : "",
      ),
    );
  });
  const table = h(
    "table",
    { class: "list" },
    h("caption", {}, `${count(order.length)} of ${count(SAE[role].features)} features`),
    h("thead", {}, h("tr", {}, head)),
    body,
  );
  return {
    title: `Features, ${short(role)}`,
    content: [
      h(
        "h1",
        {},
        "Features ",
        ROLES.map((name) => [
          h(
            "a",
            {
              class: `role ${name}`,
              href: `#/list/${name}/${by}/${direction}`,
              "aria-current": name === role ? "true" : null,
            },
            short(name),
          ),
          " ",
        ]),
      ),
      h(
        "p",
        { class: "about" },
        h("label", { for: "fewest" }, "That fire on at least "),
        h(
          "select",
          {
            id: "fewest",
            onchange: (event) => {
              fewest = Number(event.target.value);
              route();
            },
          },
          [1, 10, 100, 1000].map((n) => h("option", { value: n, selected: n === fewest }, count(n))),
        ),
        ` of ${count(ABOUT.kept)} held-out tokens`,
      ),
      h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "List of features" }, table),
      growing(body, order.length, row, 100),
    ],
  };
}
