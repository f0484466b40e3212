// The page of a token.
async function showToken(token) {
  if (!(token >= 0 && token < ABOUT.vocabulary)) return nothing(`There is no token ${token}.`);
  const columns = D.tok;
  const has = "bias_norm" in columns;
  const heldout = columns.heldout[token];
  const neighbours = has ? await block("neighbours") : null;
  const on = Object.fromEntries(await Promise.all(ROLES.map(async (role) => [role, await featuresOn(role, token)])));
  const places = occurrences(token, 6);
  const n = neighbours ? neighbours.neighbour.length / ABOUT.vocabulary : 0;
  const row = (column) => column.subarray(n * token, n * (token + 1));
  const near = neighbours ? pairs(row(neighbours.neighbour), row(neighbours.neighbour_cosine)) : [];
  const go = (step) => `#/token/${(token + step + ABOUT.vocabulary) % ABOUT.vocabulary}`;
  return {
    title: `Token ${wordOf(token)}`,
    next: () => (location.hash = go(1)),
    previous: () => (location.hash = go(-1)),
    content: [
      h(
        "div",
        { class: "line" },
        h("h1", {}, "Token ", h("bdi", { class: "token" }, wordOf(token)), " ", h("small", {}, `id ${token}`)),
        h(
          "p",
          { class: "steps" },
          h("a", { href: go(-1), "aria-label": "Previous token" }, "←"),
          h("a", { href: go(1), "aria-label": "Next token" }, "→"),
        ),
      ),
      facts(
        ["in training", count(columns.trained[token]), h("small", {}, " times")],
        ["held out", count(heldout), h("small", {}, " times")],
        has && ["norm of its token-bias", number(columns.bias_norm[token])],
        ["norm of its unigram residual", number(columns.unigram_norm[token])],
        has && ["cosine of the two", cosine(columns.cosine[token])],
        has && [
          "cosine, centred",
          cosine(columns.centred_cosine[token]),
          h("small", {}, " means over tokens taken out"),
        ],
      ),
      h(
        "div",
        { class: "columns" },
        explained(token, heldout, has),
        has &&
          section(
            "Nearest rows of the table",
            "Token-biases of other tokens seen in training, by cosine similarity.",
            near.length
              ? bars(
                  near.map(([other, similarity]) => [tokenLink(other), similarity, cosine(similarity)]),
                  "tokenized",
                )
              : h("p", {}, "This token was not seen in training, so its row was not trained."),
          ),
      ),
      h("h2", {}, "Features that fire on it"),
      sides((role) => [
        h("h3", {}, title(role)),
        on[role].length
          ? h(
              "div",
              {},
              h(
                "p",
                { class: "about" },
                `Share of its ${count(heldout)} held-out occurrences on which a feature fires, and the feature's own top token.`,
              ),
              bars(
                on[role].map(([feature, n]) => [
                  h(
                    "span",
                    { class: "pair" },
                    featureLink(role, feature, { "data-item": "" }),
                    " ",
                    tokenLink(D.sae[role].top_token[feature]),
                  ),
                  n / heldout,
                  percent(n / heldout),
                ]),
                role,
              ),
            )
          : h("p", {}, heldout ? "None." : "It is in no held-out text."),
        topFeatures(role, token),
      ]),
      section(
        "In held-out text",
        null,
        places.length
          ? h(
              "ol",
              { class: "contexts" },
              places.map((place) =>
                h("li", {}, h("a", { class: "number", href: textHref(place), "data-item": "" }, "open"), around(place)),
              ),
            )
          : h("p", {}, "Nowhere."),
      ),
    ],
  };
}

// FVU: what is left of the token's residuals.
function explained(token, heldout, has) {
  const rows = [
    has && ["table alone", D.tok.fvu_table[token], "tokenized"],
    ...ROLES.map((role) => [role === "tokenized" ? "tokenized SAE" : "baseline", D.tok[`fvu_${role}`][token], role]),
  ].filter(Boolean);
  return section(
    "Unexplained variance of its residuals",
    "FVU over its held-out occurrences: squared errors as a share of squared distances to the mean of all residuals. The table alone reconstructs x as the SAE's bias plus the token-bias.",
    heldout
      ? h(
          "ol",
          { class: "bars" },
          rows.map(([what, fvu, role]) =>
            h("li", {}, h("span", {}, what), bar(fvu, role), h("span", { class: "number" }, percent(fvu))),
          ),
        )
      : h("p", {}, "It is in no held-out text."),
  );
}

function topFeatures(role, token) {
  const sae = D.sae[role];
  const found = [];
  for (let i = 0; i < sae.top_token.length; i += 1) if (sae.top_token[i] === token) found.push(i);
  if (!found.length) return h("p", { class: "about" }, "It is the top token of no feature.");
  found.sort((a, b) => sae.top_token_share[b] - sae.top_token_share[a]);
  return h(
    "div",
    {},
    h(
      "p",
      { class: "about" },
      `It is the top token of ${count(found.length)} feature${found.length > 1 ? "s" : ""}; share of their mass:`,
    ),
    bars(
      found
        .slice(0, 12)
        .map((feature) => [
          featureLink(role, feature, { "data-item": "" }),
          sae.top_token_share[feature],
          percent(sae.top_token_share[feature]),
        ]),
      role,
    ),
  );
}

function occurrences(token, most) {
  const found = [];
  for (let place = 0; place < D.seq.tokens.length && found.length < most; place += 1) {
    if (D.seq.tokens[place] === token && D.seq.kept[place]) found.push(place);
  }
  return found;
}

function around(place, length = 1) {
  const first = Math.floor(place / ABOUT.contexts) * ABOUT.contexts;
  const start = Math.max(first, place - 12);
  const end = Math.min(first + ABOUT.contexts, place + length + 10);
  const values = new Float32Array(end - start);
  values.fill(1, place - start, place - start + length);
  return passage(start, end - start, { values, highest: 2, link: (at) => textHref(at) });
}
