/* What a number looks like: themes, and each statistic's way from a code to how bad it is and to its colour. */

const PALETTES = {
  light: {
    lines: ["#1f63bd", "#d4551d", "#12855a", "#9b51b5", "#b17a00", "#c2355d", "#157f93", "#6b6a64"],
    around: ["#0d3a75", "#5b95de", "#f1efea", "#ee8a62", "#a01818"],
    along: ["#eaf1fa", "#5b95de", "#0d3a75"],
  },
  dark: {
    lines: ["#6aa5f0", "#f08a55", "#41c393", "#c58be0", "#dba73a", "#f07f9f", "#4fc3d6", "#aaa89f"],
    around: ["#a9cdf8", "#2f75cb", "#30302d", "#cf5a3a", "#ffb49c"],
    along: ["#20304a", "#2f75cb", "#b9d7fa"],
  },
};
const wantsDark = window.matchMedia("(prefers-color-scheme: dark)");
const theme = () => document.documentElement.dataset.theme || (wantsDark.matches ? "dark" : "light");
const colours = () => PALETTES[theme()];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
function mix(stops, x) {
  // x in [0, 1]
  const at = Math.min(Math.max(x, 0), 1) * (stops.length - 1),
    i = Math.min(Math.floor(at), stops.length - 2);
  const [a, b] = [rgb(stops[i]), rgb(stops[i + 1])];
  return a.map((v, k) => Math.round(v + (b[k] - v) * (at - i)));
}
const alpha = (hex, a) => `rgba(${rgb(hex).join(",")},${a})`;

/* A statistic's measure: by code, how bad (for sorting and folding) and which colour.
   With a reference, bad is far from it. Without one it is large, or small for cosines. */
function measured(name, cubed) {
  const { scale, reference } = about(name);
  const to = scale === "log" ? Math.log10 : scale === "count" ? (v) => Math.log10(1 + v) : (v) => v;
  const from = scale === "log" ? (t) => 10 ** t : scale === "count" ? (t) => 10 ** t - 1 : (t) => t;
  const n = cubed.values.length,
    t = Float64Array.from(cubed.values, to);
  const centre = reference === null ? NaN : to(reference);
  const around = Number.isFinite(centre),
    fromZero = reference === 0 && !around;
  const bad = new Float64Array(n),
    x = new Float64Array(n).fill(NaN); // x: place on the colours
  const numbers = [];
  for (let c = ZERO; c < n; c++) if (cubed.counts[c]) numbers.push(c);
  const key = around ? (c) => Math.abs(t[c] - centre) : (c) => t[c];
  const finite = numbers.filter((c) => Number.isFinite(key(c))).sort((a, b) => key(a) - key(b));
  const total = finite.reduce((sum, c) => sum + cubed.counts[c], 0);
  const quantile = (q) => {
    let sum = 0;
    for (const c of finite) if ((sum += cubed.counts[c]) >= q * total) return key(c);
    return NaN;
  };
  let low, high;
  const most = finite.length ? key(finite.at(-1)) : 0; // one cell of 1e30 must not make all others one colour
  if (around) {
    high = Math.max(
      scale === "log" ? Math.min(most, 2 * (quantile(0.995) || 0)) : most,
      { log: 0.5, count: 1, share: 0.01, cosine: 0.1 }[scale] || 0.1,
    );
    low = -high;
  } else {
    [low, high] = finite.length ? [quantile(0.005), Math.min(most, quantile(0.995) + 1)] : [0, 1];
    const least = scale === "log" ? 0.5 : 0.05;
    if (high - low < least) [low, high] = [(low + high - least) / 2, (low + high + least) / 2];
  }
  let below = false,
    above = false;
  for (const c of numbers) {
    if (around) {
      const d = t[c] - centre;
      bad[c] = Math.abs(d);
      x[c] = 0.5 + d / high / 2;
      below ||= d < -high / 50;
      above ||= d > high / 50;
    } else if (fromZero) {
      bad[c] = Math.max(t[c], -1e9);
      x[c] = c === ZERO ? 0.5 : 0.58 + (0.42 * (t[c] - low)) / (high - low);
      above = true;
    } else {
      bad[c] = (scale === "cosine" ? -1 : 1) * Math.max(t[c], -1e9);
      x[c] = (t[c] - low) / (high - low);
    }
  }
  bad[MISSING] = -Infinity;
  bad[INF] = bad[MINUS] = Infinity;
  const kind = around || fromZero ? "around" : "along";
  const both = around && below && above;
  const ends = around
    ? both
      ? [from(centre - high), reference, from(centre + high)]
      : below
        ? [from(centre - high), reference]
        : [reference, from(centre + high)]
    : fromZero
      ? [0, from(high)]
      : [from(low), from(high)];
  const span = kind === "along" || both ? [0, 1] : below ? [0, 0.5] : [0.5, 1];
  return {
    bad,
    x,
    kind,
    ends,
    span,
    folds: around || fromZero ? `farthest from ${fmt(reference)}` : scale === "cosine" ? "smallest" : "largest",
  };
}
async function measure(name) {
  const cubed = await cube(run, name);
  cubed.measure ||= measured(name, cubed);
  if (cubed.painted !== theme()) {
    const stops = colours()[cubed.measure.kind];
    cubed.colour = Uint32Array.from(cubed.measure.x, (x) => {
      if (Number.isNaN(x)) return 0;
      const [r, g, b] = mix(stops, x);
      return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
    });
    cubed.painted = theme();
  }
  return cubed;
}
