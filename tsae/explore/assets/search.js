// Search by token, by text and by feature number.
let index = null;

// All held-out text in one string, in lower case, and where each token begins. Sequences are apart, so no match spans two.
function textIndex() {
  if (index) return index;
  const parts = [];
  const starts = new Uint32Array(D.seq.tokens.length);
  let length = 0;
  for (let place = 0; place < D.seq.tokens.length; place += 1) {
    const first = place % ABOUT.contexts === 0;
    const part = first ? "\u0000" : (D.words[D.seq.tokens[place]] ?? "").toLowerCase();
    starts[place] = length;
    parts.push(part);
    length += part.length;
  }
  index = { text: parts.join(""), starts };
  return index;
}

function placeAt(starts, character) {
  let [low, high] = [0, starts.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (starts[middle] <= character) low = middle;
    else high = middle - 1;
  }
  return low;
}

const LETTER = /[\p{L}\p{N}]/u;

// Places of a text, those of whole words first: [first token, number of tokens].
function matchesOf(query, most = 2000) {
  const { text, starts } = textIndex();
  const wanted = query.toLowerCase();
  const [found, inside] = [[], []];
  for (
    let at = text.indexOf(wanted);
    wanted && at >= 0 && found.length + inside.length < most;
    at = text.indexOf(wanted, at + wanted.length)
  ) {
    const first = placeAt(starts, at);
    const within = LETTER.test(text[at - 1] ?? "") || LETTER.test(text[at + wanted.length] ?? "");
    (within ? inside : found).push([first, placeAt(starts, at + wanted.length - 1) - first + 1]);
  }
  return found.concat(inside);
}

function tokensLike(query) {
  const wanted = query.toLowerCase();
  const found = [];
  for (let token = 0; token < D.words.length; token += 1) {
    const text = D.words[token].toLowerCase();
    if (!text.includes(wanted)) continue;
    const bare = text.trim();
    const rank = D.words[token].trim() === query ? 0 : bare === wanted ? 1 : bare.startsWith(wanted) ? 2 : 3;
    found.push([rank, -D.tok.trained[token], token]);
  }
  return found.sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]).map(([, , token]) => token);
}

// Features with the text in their top contexts; first those whose highest activations are on it.
function featuresNear(role, matches) {
  const near = new Uint8Array(D.seq.tokens.length);
  for (const [first, length] of matches) {
    for (let i = first; i < first + length; i += 1) near[i] = 2;
  }
  const sae = D.sae[role];
  const found = [];
  for (let feature = 0; feature < SAE[role].features; feature += 1) {
    let [on, inside] = [0, 0];
    for (let i = sae.contexts[feature]; i < sae.contexts[feature + 1]; i += 1) {
      if (near[sae.context_places[i]]) on += 1;
      const start = sae.context_places[i] - sae.context_starts[i];
      for (let place = start; place < start + sae.context_lengths[i]; place += 1) {
        if (near[place]) {
          inside += 1;
          break;
        }
      }
    }
    if (inside) found.push({ feature, on, inside, of: sae.contexts[feature + 1] - sae.contexts[feature] });
  }
  return found.sort((a, b) => b.on - a.on || b.inside - a.inside || a.feature - b.feature);
}

function showSearch(query) {
  const trimmed = query.trim();
  if (!trimmed) return showOverview();
  const tokens = tokensLike(trimmed);
  const matches = matchesOf(trimmed);
  const numbered = /^\d+$/.test(trimmed) ? ROLES.filter((role) => Number(trimmed) < SAE[role].features) : [];
  const near = Object.fromEntries(ROLES.map((role) => [role, featuresNear(role, matches)]));
  const total = ROLES.reduce((sum, role) => sum + near[role].length, 0);
  say(
    `${count(numbered.length)} features of that number, ${count(tokens.length)} tokens, ${count(total)} features with the text in their contexts, ${count(matches.length)} places in held-out text`,
  );
  return {
    title: `Search: ${visible(trimmed)}`,
    keepFocus: true,
    content: [
      h("h1", {}, "Search ", h("bdi", {}, visible(trimmed))),
      numbered.length
        ? section(
            "Features of that number",
            null,
            h(
              "ul",
              { class: "chips" },
              numbered.map((role) =>
                h("li", {}, featureLink(role, Number(trimmed), { "data-item": "" }), ` ${short(role)}`),
              ),
            ),
          )
        : null,
      section(
        `Tokens (${count(tokens.length)})`,
        tokens.length ? "With the times that each was seen in training." : "None with this text.",
        h(
          "ul",
          { class: "chips" },
          tokens
            .slice(0, 40)
            .map((token) =>
              h("li", {}, tokenLink(token, { "data-item": "" }), " ", h("small", {}, count(D.tok.trained[token]))),
            ),
        ),
      ),
      h("h2", {}, "Features with this text in their top contexts"),
      sides((role) => {
        const list = h("ol", { class: "bars roomy" });
        const more = growing(
          list,
          near[role].length,
          (i) => {
            const { feature, on, inside, of } = near[role][i];
            return h(
              "li",
              {},
              h(
                "span",
                { class: "pair" },
                featureLink(role, feature, { "data-item": "" }),
                " ",
                tokenLink(D.sae[role].top_token[feature]),
              ),
              bar(on / of, role),
              h("span", { class: "number" }, `${on ? `on ${on}` : `in ${inside}`} of ${of}`),
            );
          },
          12,
          false,
        );
        return [
          h("h3", {}, `${title(role)} (${count(near[role].length)})`),
          near[role].length
            ? h(
                "p",
                { class: "about" },
                "“on”: contexts whose highest activation is on the text; “in”: contexts that contain it.",
              )
            : null,
          list,
          more,
        ];
      }),
      section(
        `Places in held-out text (${count(matches.length)})`,
        null,
        h(
          "ol",
          { class: "contexts" },
          matches
            .slice(0, 5)
            .map(([place, length]) =>
              h(
                "li",
                {},
                h("a", { class: "number", href: textHref(place), "data-item": "" }, "open"),
                around(place, length),
              ),
            ),
        ),
        matches.length > 5
          ? h("p", {}, h("a", { href: `#/text/find/${encodeURIComponent(trimmed)}` }, "All places"))
          : null,
      ),
    ],
  };
}
