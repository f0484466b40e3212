// A histogram, and the map of an SAE's features.
function histogram(details, role) {
  const { heights, lowest, highest } = details;
  const most = Math.max(...heights, 1);
  const [width, height] = [240, 70];
  const step = width / heights.length;
  const edge = (i) => lowest + ((highest - lowest) * i) / heights.length;
  // On a logarithmic axis, or rare high activations would not be seen.
  const tall = (n) => (n ? (height * Math.log1p(n)) / Math.log1p(most) : 0);
  const label = `Histogram of ${count(heights.reduce((a, b) => a + b, 0))} activations from ${number(lowest)} to ${number(highest)}, counts on a logarithmic axis`;
  return h(
    "figure",
    { class: "histogram" },
    s(
      "svg",
      { viewBox: `0 0 ${width} ${height + 14}`, role: "img", "aria-label": label, class: role },
      Array.from(heights, (n, i) =>
        s(
          "rect",
          { x: i * step + 0.5, y: height - tall(n), width: step - 1, height: tall(n) },
          s("title", {}, `${number(edge(i))} to ${number(edge(i + 1))}: ${count(n)}`),
        ),
      ),
      s("line", { x1: 0, x2: width, y1: height, y2: height }),
      s("text", { x: 0, y: height + 12 }, number(lowest)),
      s("text", { x: width, y: height + 12, "text-anchor": "end" }, number(highest)),
    ),
    h(
      "details",
      {},
      h("summary", {}, "As a table"),
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, h("th", {}, "activation"), h("th", {}, "firings"))),
        h(
          "tbody",
          {},
          Array.from(heights, (n, i) =>
            h("tr", {}, h("td", {}, `${number(edge(i))} to ${number(edge(i + 1))}`), h("td", {}, count(n))),
          ),
        ),
      ),
    ),
  );
}

const MARGIN = { left: 40, right: 12, top: 10, bottom: 34 };

// Features of an SAE: how often they fire, and how much of their activation mass is on one token.
function scatter(role, current = -1) {
  const sae = D.sae[role];
  const low = Math.log10(Math.min(...ROLES.map((name) => lowest(D.sae[name].firing_rate))));
  const canvas = h("canvas", {
    role: "img",
    class: role,
    "aria-label": `Map of the ${SAE[role].features} features of the ${short(role)} SAE: firing rate against the share of activation mass on the top token. The list of features has the same numbers.`,
  });
  const tip = h("div", { class: "tip", hidden: true });
  const figure = h("figure", { class: "map" }, canvas, tip);
  let points = null;
  let hovered = -1;

  const layout = () => {
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const x = (rate) => MARGIN.left + ((Math.log10(rate) - low) / -low) * (width - MARGIN.left - MARGIN.right);
    const y = (share) => MARGIN.top + (1 - share) * (height - MARGIN.top - MARGIN.bottom);
    return { width, height, x, y };
  };

  const draw = () => {
    const { width, height, x, y } = layout();
    if (!width) return;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const [ink, colour] = [style.color, style.accentColor];
    context.font = `11px ${style.fontFamily}`;
    context.strokeStyle = context.fillStyle = ink;
    context.lineWidth = 1;
    context.textAlign = "center";
    for (let power = Math.ceil(low); power <= 0; power += 1) {
      grid(context, x(10 ** power), MARGIN.top, x(10 ** power), height - MARGIN.bottom);
      context.fillText(
        `${Number((10 ** (power + 2)).toPrecision(1))}%`,
        x(10 ** power) - (power === 0 ? 8 : 0),
        height - MARGIN.bottom + 14,
      );
    }
    context.fillText("fires on (share of tokens)", MARGIN.left + (width - MARGIN.left - MARGIN.right) / 2, height - 4);
    context.textAlign = "right";
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      grid(context, MARGIN.left, y(share), width - MARGIN.right, y(share));
      context.fillText(`${100 * share}%`, MARGIN.left - 5, y(share) + 4);
    }
    points = [];
    context.fillStyle = colour;
    context.globalAlpha = sae.firings.length > 5000 ? 0.35 : 0.5;
    const radius = sae.firings.length > 5000 ? 1.6 : 2.2;
    for (let i = 0; i < sae.firings.length; i += 1) {
      if (!sae.firings[i]) continue;
      const [px, py] = [x(sae.firing_rate[i]), y(sae.top_token_share[i])];
      points.push(px, py, i);
      context.beginPath();
      context.arc(px, py, radius, 0, 7);
      context.fill();
    }
    context.globalAlpha = 1;
    for (const chosen of [current, hovered]) {
      if (chosen < 0 || !sae.firings[chosen]) continue;
      context.strokeStyle = ink;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x(sae.firing_rate[chosen]), y(sae.top_token_share[chosen]), 6, 0, 7);
      context.stroke();
    }
  };

  const nearest = (event) => {
    if (!points) return -1;
    let [best, found] = [20 ** 2, -1];
    for (let i = 0; i < points.length; i += 3) {
      const distance = (points[i] - event.offsetX) ** 2 + (points[i + 1] - event.offsetY) ** 2;
      if (distance < best) [best, found] = [distance, points[i + 2]];
    }
    return found;
  };

  canvas.addEventListener("pointermove", (event) => {
    const found = nearest(event);
    if (found !== hovered) {
      hovered = found;
      draw();
    }
    tip.hidden = found < 0;
    canvas.classList.toggle("over", found >= 0);
    if (found < 0) return;
    tip.replaceChildren(
      h("b", {}, `Feature ${found}`),
      h("br", {}),
      wordOf(sae.top_token[found]),
      ` ${percent(sae.top_token_share[found])}, fires on ${percent(sae.firing_rate[found])}`,
      h("br", {}),
      snippet(role, found),
    );
    tip.style.left = `${Math.min(event.offsetX + 12, canvas.clientWidth - 235)}px`;
    tip.style.top = `${Math.max(0, event.offsetY - 80)}px`;
  });
  canvas.addEventListener("pointerleave", () => {
    hovered = -1;
    tip.hidden = true;
    draw();
  });
  canvas.addEventListener("click", (event) => {
    const found = nearest(event);
    if (found >= 0) location.hash = `#/feature/${role}/${found}`;
  });
  const again = new ResizeObserver(() => (canvas.isConnected ? draw() : again.disconnect()));
  again.observe(canvas);
  document.addEventListener("themechange", () => canvas.isConnected && draw());
  return figure;
}

// The text up to a feature's highest activation.
function snippet(role, feature) {
  const [{ place, start }] = placesOf(role, feature);
  const before = Array.from(D.seq.tokens.subarray(Math.max(start, place - 8), place), flowing).join("");
  return h("span", { class: "snippet", dir: "auto" }, "… ", before, h("b", {}, flowing(D.seq.tokens[place])));
}

function grid(context, x1, y1, x2, y2) {
  context.globalAlpha = 0.15;
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
  context.globalAlpha = 0.8;
}

// The lowest rate of a feature that fires.
function lowest(rates) {
  let found = 0.1;
  for (const rate of rates) if (rate > 0 && rate < found) found = rate;
  return found;
}
