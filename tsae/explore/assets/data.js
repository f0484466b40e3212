// The data of the page: blocks of columns, deflated, in base64. Each is read once, when it is first asked for.
const ABOUT = JSON.parse(document.getElementById("about").textContent);
const ROLES = ABOUT.saes.map((sae) => sae.role);
const SAE = Object.fromEntries(ABOUT.saes.map((sae) => [sae.role, sae]));
const TYPES = { Uint8Array, Int16Array, Uint16Array, Int32Array, Uint32Array, Float32Array };
const blocks = new Map();
const arrivals = new Map();

// A file beside the page calls this with its own name.
window.explorerPart = (name, text) => arrivals.get(name)?.(text);

function fetchPart(name) {
  return new Promise((resolve, reject) => {
    arrivals.set(name, resolve);
    const script = document.createElement("script");
    script.src = `${encodeURIComponent(ABOUT.parts)}/${encodeURIComponent(name)}.js`;
    script.onerror = () =>
      reject(new Error(`${ABOUT.parts}/${name}.js is not beside this page; copy the folder with it`));
    document.head.append(script);
  });
}

function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i += 1) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function readBlock(name) {
  const element = document.getElementById(`block-${name}`);
  const text = element ? element.textContent : await fetchPart(name);
  element?.remove();
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const columns = {};
  let offset = 0;
  for (const { name: column, type, length } of ABOUT.blocks[name]) {
    if (type === "JSON") {
      columns[column] = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, offset, length)));
      offset += Math.ceil(length / 4) * 4;
    } else {
      columns[column] = new TYPES[type](buffer, offset, length);
      offset += Math.ceil((length * TYPES[type].BYTES_PER_ELEMENT) / 4) * 4;
    }
  }
  return columns;
}

function block(name) {
  if (!blocks.has(name)) blocks.set(name, readBlock(name));
  return blocks.get(name);
}

// Where each of some runs of entries begins, and the end of the last.
function startsOf(counts) {
  const starts = new Uint32Array(counts.length + 1);
  for (let i = 0; i < counts.length; i += 1) starts[i + 1] = starts[i] + counts[i];
  return starts;
}

// What every view needs: texts of tokens, held-out tokens, columns of tokens and of features.
const D = { words: [], seq: null, tok: null, sae: {} };

async function readCore() {
  const [words, sequences, tokens, ...features] = await Promise.all(
    ["words", "sequences", "tokens", ...ROLES.map((role) => `features-${role}`)].map(block),
  );
  D.words = words.texts;
  D.seq = sequences;
  D.tok = tokens;
  ROLES.forEach((role, i) => {
    D.sae[role] = { ...features[i], contexts: startsOf(features[i].context_counts) };
  });
}

// The features of an SAE that a token's page lists: [feature, occurrences] in descending order.
async function featuresOn(role, token) {
  const on = await block(`on-${role}`);
  on.starts ??= startsOf(on.counts);
  const found = [];
  for (let i = on.starts[token]; i < on.starts[token + 1]; i += 1) found.push([on.features[i], on.occurrences[i]]);
  return found;
}

// Contexts of a feature without its activations: where they start, how long they are, which token is the highest.
function placesOf(role, feature) {
  const sae = D.sae[role];
  const found = [];
  for (let i = sae.contexts[feature]; i < sae.contexts[feature + 1]; i += 1) {
    const start = sae.context_places[i] - sae.context_starts[i];
    found.push({ start, active: sae.context_starts[i], length: sae.context_lengths[i], place: sae.context_places[i] });
  }
  return found;
}

async function detailsOf(role, feature) {
  const number = Math.floor(feature / ABOUT.featuresInPart);
  const first = number * ABOUT.featuresInPart;
  const part = await block(`details-${role}-${number}`);
  part.near ??= startsOf(part.near_counts);
  const sae = D.sae[role];
  const at = feature - first;
  const slice = (name) => {
    const n = part[name].length / (Math.min(SAE[role].features, first + ABOUT.featuresInPart) - first);
    return part[name].subarray(at * n, (at + 1) * n);
  };
  const contexts = placesOf(role, feature).map((context, i) => {
    const values = new Float32Array(context.length);
    const index = sae.contexts[feature] - sae.contexts[first] + i;
    for (let near = part.near[index]; near < part.near[index + 1]; near += 1) {
      values[part.near_tokens[near]] = part.near_values[near];
    }
    return { ...context, values };
  });
  return {
    contexts,
    lowest: part.lowest[at],
    highest: part.highest[at],
    heights: slice("heights"),
    topTokens: pairs(slice("top_tokens"), slice("top_tokens_share")),
    raised: pairs(slice("raised"), slice("raised_by")),
    lowered: pairs(slice("lowered"), slice("lowered_by")),
  };
}

function pairs(tokens, values) {
  return Array.from(tokens, (token, i) => [token, values[i]]).filter(([token]) => token >= 0);
}

// A held-out token as an SAE divides it; shares in order: bias, table, features, error.
async function partsAt(role, place) {
  const sequence = Math.floor(place / ABOUT.contexts);
  const number = Math.floor(sequence / ABOUT.sequencesInPart);
  const part = await block(`text-${role}-${number}`);
  const at = place - number * ABOUT.sequencesInPart * ABOUT.contexts;
  const [bias, table, features] = part.shares.subarray(3 * at, 3 * at + 3);
  const n = part.top.length / part.nmse.length;
  const top = [];
  for (let i = 0; i < Math.min(n, part.n_active[at]); i += 1)
    top.push([part.top[at * n + i], part.activations[at * n + i]]);
  const shares = [bias, table, features, 1000 - bias - table - features].map((share) => share / 1000);
  return { shares, nmse: part.nmse[at] / 1000, active: part.n_active[at], top };
}
