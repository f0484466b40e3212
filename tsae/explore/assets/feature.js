// The page of a feature, beside its nearest feature in the other SAE.
const LOGITS =
  "What the decoder row adds to the logits if it reaches the end of the model unchanged: the row, scaled by the final norm to a root mean square of 1, times the norm's gain and the unembedding. The layers in between and all biases are left out.";

async function showFeature(role, feature) {
  const sae = D.sae[role];
  if (!sae || !(feature >= 0 && feature < SAE[role].features))
    return nothing(`There is no feature ${feature} of ${role ?? "an SAE"} here.`);
  const other = ROLES.find((name) => name !== role);
  const match = other ? sae.match[feature] : -1;
  const cards = { [role]: await featureCard(role, feature, true) };
  if (other) cards[other] = await featureCard(other, match, false, sae.match_cosine[feature], feature);
  const go = (step) => `#/feature/${role}/${(feature + step + SAE[role].features) % SAE[role].features}`;
  return {
    title: `Feature ${feature}, ${short(role)}`,
    next: () => (location.hash = go(1)),
    previous: () => (location.hash = go(-1)),
    other: match >= 0 ? () => (location.hash = `#/feature/${other}/${match}`) : null,
    content: [
      h(
        "div",
        { class: "line" },
        h("h1", {}, "Feature ", String(feature), " ", h("span", { class: `role ${role}` }, short(role))),
        h(
          "p",
          { class: "steps" },
          h("a", { href: go(-1), "aria-label": "Previous feature", "aria-keyshortcuts": "k" }, "←"),
          h("a", { href: go(1), "aria-label": "Next feature", "aria-keyshortcuts": "j" }, "→"),
        ),
      ),
      sides((name) => cards[name], role),
    ],
  };
}

async function featureCard(role, feature, main, similarity = null, of = null) {
  const sae = D.sae[role];
  const details = await detailsOf(role, feature);
  const heading = main
    ? h("h2", {}, title(role), ", feature ", String(feature))
    : h("h2", {}, title(role), ", feature ", featureLink(role, feature, { "aria-keyshortcuts": "o" }));
  const nearness = main
    ? null
    : h(
        "p",
        { class: "about" },
        `The decoder row most similar to that of ${short(OTHER[role])} feature ${of}: cosine ${cosine(similarity)}.`,
      );
  if (!sae.firings[feature]) {
    return [
      heading,
      nearness,
      h("p", {}, "This feature fires on no held-out token."),
      logitsOf(details, role),
      nearOf(role, feature, main),
    ];
  }
  return [
    heading,
    nearness,
    facts(
      [
        "fires on",
        percent(sae.firing_rate[feature]),
        h("small", {}, ` ${count(sae.firings[feature])} of ${count(ABOUT.kept)} tokens`),
      ],
      ["activation, mean", number(sae.mean_activation[feature])],
      ["highest", number(sae.max_activation[feature])],
      ["on its top token", percent(sae.top_token_share[feature]), h("small", {}, " of its mass")],
      [
        "on its top bigram",
        percent(sae.top_bigram_share[feature]),
        " ",
        tokenLink(sae.top_bigram_previous[feature]),
        tokenLink(sae.top_bigram_token[feature]),
      ],
    ),
    section(
      "Top contexts",
      "Held-out text around its highest activations, in descending order, shaded by activation. Choose a token for its page.",
      h(
        "ol",
        { class: "contexts" },
        details.contexts.map((context) => contextOf(role, feature, context)),
      ),
    ),
    h(
      "div",
      { class: "columns" },
      section(
        "Tokens",
        "Share of its activation mass on a token.",
        bars(
          details.topTokens.map(([token, share]) => [tokenLink(token), share, percent(share)]),
          role,
        ),
      ),
      section("Activations", null, histogram(details, role)),
    ),
    logitsOf(details, role),
    nearOf(role, feature, main),
  ];
}

const contextOf = (role, feature, context) =>
  h(
    "li",
    {},
    h(
      "a",
      {
        class: "number",
        href: textHref(context.place),
        "aria-label": `Activation ${number(context.values[context.active])}; to its passage`,
      },
      number(context.values[context.active]),
    ),
    passage(context.start, context.length, {
      values: context.values,
      highest: D.sae[role].max_activation[feature],
      mark: context.active,
    }),
  );

function logitsOf(details, role) {
  const most = Math.max(...[...details.raised, ...details.lowered].map(([, by]) => Math.abs(by)), 1e-9);
  const list = (entries) =>
    bars(
      entries.map(([token, by]) => [tokenLink(token), Math.abs(by) / most, number(by)]),
      role,
    );
  return h(
    "div",
    {},
    h(
      "div",
      { class: "columns" },
      section("Raises the logits of", null, list(details.raised)),
      section("Lowers the logits of", null, list(details.lowered)),
    ),
    h("details", { class: "about" }, h("summary", {}, "How logits are computed"), LOGITS),
  );
}

function nearOf(role, feature, main) {
  const sae = D.sae[role];
  const rows = [
    ["token-bias", tokenLink(sae.token_bias_token[feature]), sae.token_bias_cosine[feature]],
    ["unigram residual", tokenLink(sae.unigram_token[feature]), sae.unigram_cosine[feature]],
  ].filter(([, , similarity]) => Number.isFinite(similarity));
  if (main && sae.match)
    rows.push([
      `${short(OTHER[role])} feature`,
      featureLink(OTHER[role], sae.match[feature]),
      sae.match_cosine[feature],
    ]);
  return section(
    "Nearest to its decoder row",
    "By cosine similarity; token-biases and unigram residuals of tokens seen in training.",
    h(
      "table",
      { class: "near" },
      h(
        "tbody",
        {},
        rows.map(([what, link, similarity]) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, what),
            h("td", {}, link),
            h("td", { class: "number" }, cosine(similarity)),
          ),
        ),
      ),
    ),
  );
}
